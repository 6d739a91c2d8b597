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

from fedhybrid.errors import ConfigError
from fedhybrid.methods.memory_bank import AbstractMemory, Losses, MemoryRules

__all__ = ["Replay"]


@final
@dataclass(frozen=True, kw_only=True)
class Replay(AbstractMemory):
    """Training on exemplars of earlier classes and on samples of new ones.

    Attributes:
        exemplars: Of a class, on each client.
        total_exemplars: Of all classes, on each client; above 0 it replaces `exemplars`.
        least_exemplars: A client whose memory does not hold as many keeps half, and so on down to this; 0: never.
        distillation: Weight of 1 - cosine of the features to those of the encoder before the task.
        scale: Of the cosines, to begin with; it is trained.
        tune_epochs: Passes over all exemplars, with the encoder frozen, in a task's last round; 0: none.
        tune_lr_ratio: Of the learning rate, then.
    """

    exemplars: int = 20
    total_exemplars: int = 0
    least_exemplars: int = 0
    distillation: float = 5.0
    scale: float = 10.0
    tune_epochs: int = 20
    tune_lr_ratio: float = 0.1

    def __post_init__(self) -> None:
        if problems := self.rules.problems():
            raise ConfigError(problems)

    @property
    def rules(self) -> MemoryRules:
        """As the options say."""
        return MemoryRules(
            exemplars=self.exemplars,
            total=self.total_exemplars,
            least=self.least_exemplars,
            losses=Losses(distillation=self.distillation),
            tune_epochs=self.tune_epochs,
            tune_lr_ratio=self.tune_lr_ratio,
            scale=self.scale,
        )
