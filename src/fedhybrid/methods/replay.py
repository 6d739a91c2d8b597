"""Replay: classes come one task after the other; exemplars of earlier ones are trained on with the new ones.

Source: S.-A. Rebuffi, A. Kolesnikov, G. Sperl, C. H. Lampert, "iCaRL: Incremental Classifier and Representation
Learning", CVPR 2017, https://arxiv.org/abs/1611.07725
Follows: Algorithms 2 to 5: training on the new samples and on the exemplars together, exemplars by herding.
Differs: it is MTN without its transformer (`methods/mtn.py`), to compare with that: a cosine head in place of sigmoids
and of the nearest mean, distillation of features in place of scores, a last round on the exemplars alone, which are as
many of each class. The federated form is ours, as in `methods/mtn.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedhybrid.methods.memory_bank import AbstractMemory

__all__ = ["Replay"]


@final
@dataclass(frozen=True, kw_only=True)
class Replay(AbstractMemory):
    """Training on exemplars of earlier classes and on samples of new ones; options as in `AbstractMemory`."""
