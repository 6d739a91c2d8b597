"""Which samples a client forgets, and which it can do without.

Source: G. Yuan et al., MEST, NeurIPS 2021, https://arxiv.org/abs/2110.14032, section 3.4, after M. Toneva et al., "An
Empirical Study of Example Forgetting during Deep Neural Network Learning", ICLR 2019, https://arxiv.org/abs/1812.05159.
A sample is forgotten when it was classified rightly and, the next time that it is met in training, wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fedhybrid.tree import Tensors

__all__ = ["History", "never_seen", "remembered", "seen"]

_PREFIX = "forgetting."


class History(NamedTuple):
    """What is known of each of a client's samples; all of shape (samples,).

    Attributes:
        times: How often it was forgotten, int32.
        right: Whether it was classified rightly the last time, bool.
        learned: Whether it ever was, bool.
    """

    times: Tensor
    right: Tensor
    learned: Tensor

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], samples: int) -> History:
        """What a client has kept, or nothing yet."""
        kept = [state.get(_PREFIX + field) for field in cls._fields]
        times, right, learned = kept
        if times is None or right is None or learned is None or len(times) != samples:
            return never_seen(samples)
        return cls(times, right, learned)

    def as_state(self) -> Tensors:
        """For the client to keep."""
        return {_PREFIX + field: getattr(self, field) for field in self._fields}


def never_seen(samples: int) -> History:
    """The history of samples that have not been met."""
    none = torch.zeros(samples, dtype=torch.bool)
    return History(torch.zeros(samples, dtype=torch.int32), none, none.clone())


def seen(history: History, positions: Tensor, correct: Tensor) -> History:
    """The history after one batch.

    Args:
        history: Before it.
        positions: Of the batch's samples.
        correct: Whether each was classified rightly, bool.
    """
    times, right, learned = (field.clone() for field in history)
    times[positions] += (right[positions] & ~correct).to(times.dtype)
    right[positions] = correct
    learned[positions] |= correct
    return History(times, right, learned)


def remembered(history: History, left_out: int) -> Tensor:
    """Positions of the samples that training goes on with, ascending: all but the least forgotten ones.

    Samples that were never classified rightly count as forgotten most often; of equals the first are left out.

    >>> ever = torch.tensor([True, True, True, False])
    >>> history = History(torch.tensor([2, 0, 1, 0]), ever, ever)
    >>> remembered(history, 2).tolist()
    [0, 3]
    """
    most = torch.iinfo(torch.int32).max
    ranks = torch.where(history.learned, history.times, torch.full_like(history.times, most))
    return ranks.argsort(stable=True)[left_out:].sort().values
