"""Which samples stand for a class."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["herded"]


def herded(features: Float[Tensor, "n d"], count: int) -> Int64[Tensor, " m"]:
    """Samples whose mean feature is near that of all, in the order in which they are chosen; at most `count`.

    Each next one brings the mean of those chosen nearest to the mean of all; ties go to the first. So the first m of
    more are what m alone would be, and whoever has to give some up gives up the last.

    Source: S.-A. Rebuffi, A. Kolesnikov, G. Sperl, C. H. Lampert, "iCaRL: Incremental Classifier and Representation
    Learning", CVPR 2017, https://arxiv.org/abs/1611.07725, Algorithm 4.

    Args:
        features: Normalised, of all samples of the class.
        count: How many.
    """
    features = features.to(torch.float64)
    wanted, total = features.mean(dim=0), torch.zeros(features.shape[1], dtype=torch.float64)
    free = torch.ones(len(features), dtype=torch.bool)
    order: list[int] = []
    for number in range(1, min(count, len(features)) + 1):
        distance = (wanted - (total + features) / number).square().sum(dim=1)
        order.append(int(distance.masked_fill(~free, torch.inf).argmin()))
        free[order[-1]] = False
        total += features[order[-1]]
    return torch.tensor(order, dtype=torch.int64)
