"""What TEA-Fed and TEASQ-Fed share: the merge's options and clients that train on a proximal objective."""

from __future__ import annotations

from dataclasses import dataclass

from fedhybrid.errors import ConfigError
from fedhybrid.executor import Proximal
from fedhybrid.methods.averaging import AbstractAsynchronous
from fedhybrid.methods.local import train_locally
from fedhybrid.methods.teasq.merging import merge_problems
from fedhybrid.protocols import ClientRuntime, Optimizer
from fedhybrid.records import ClientTask, Update

__all__ = ["AbstractTea"]


@dataclass(frozen=True, kw_only=True)
class AbstractTea(AbstractAsynchronous):
    """Everything but aggregation.

    Attributes:
        mixing: alpha: how far a merge of fresh models moves the global one, above 0 and at most 1.
        exponent: a: how fast models lose weight with age, at least 0.
        mu: Strength of the pull towards the model that the client received, at least 0.
    """

    mixing: float = 0.6
    exponent: float = 0.5
    mu: float = 0.01

    def __post_init__(self) -> None:
        if problems := self._problems():
            raise ConfigError(problems)

    def _problems(self) -> list[str]:
        """What is wrong with the options; a method adds its own."""
        return merge_problems(mixing=self.mixing, exponent=self.exponent, mu=self.mu)

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured optimizer, on the proximal objective where there is a pull."""
        return Proximal(base=base, mu=self.mu) if self.mu else base

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        """Local epochs of ordinary training."""
        return train_locally(task, client)
