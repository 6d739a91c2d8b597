"""What SCFL and CodedFedL share: a model whose last layer trains by plain SGD, and rows that are coded once."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.executor import SGD
from fedhybrid.methods.averaging import AbstractFederated
from fedhybrid.methods.coded.lifting import lifted
from fedhybrid.methods.coded.rows import CodedSet
from fedhybrid.methods.coded.steps import check_head
from fedhybrid.methods.coded.tasks import ENCODE, HEAD, coded_submodel, with_holders
from fedhybrid.protocols import Optimizer, ServerState, Submodel, Transport
from fedhybrid.records import Update

__all__ = ["AbstractCoded", "at_least"]


@dataclass(frozen=True, kw_only=True)
class AbstractCoded(AbstractFederated):
    """Trains the last layer in rounds; runs the unplanned step.

    Attributes:
        coded_rows: Rows that every client sends.
        ridge: Weight of half the squared length of W in the objective.
        lift: Random Fourier features on top of the frozen layers, as many; 0: the last layer reads their output itself.
        lift_gamma: Of their kernel, times the number of features below.
    """

    coded_rows: int = 256
    ridge: float = 0.0
    lift: int = 0
    lift_gamma: float = 1.0

    def __post_init__(self) -> None:
        if problems := self._problems():
            raise ConfigError(problems)

    def _problems(self) -> list[str]:
        """What is wrong with the options; a method adds its own."""
        problems = at_least(("coded_rows", self.coded_rows, 1), ("ridge", self.ridge, 0), ("lift", self.lift, 0))
        if not (math.isfinite(self.lift_gamma) and self.lift_gamma > 0):
            problems.append(f"lift_gamma must be positive and finite, got {self.lift_gamma}")
        return problems

    @property
    def plans(self) -> bool:
        """No plans unless a recipe switches them on: what trains is small."""
        return False

    @property
    def asynchronous(self) -> bool:
        """False: probabilities of arrival belong to a round and its deadline."""
        return False

    @property
    def differences(self) -> bool:
        """Clients send how far W has moved, or would."""
        return True

    @property
    def codes(self) -> bool:
        """Whether rows are coded at all."""
        return True

    @property
    def preparations(self) -> tuple[str, ...]:
        """Coding, unless nothing of it would count."""
        return (ENCODE,) if self.codes else ()

    @property
    def acts_alone(self) -> bool:
        """The server has its own step when nobody is in time."""
        return self.codes

    def transport(self, version: int) -> Transport | None:
        """Tensors as they are: probabilities of arrival count their bytes."""
        return Transport()

    def optimizer(self, base: Optimizer) -> Optimizer:
        """Plain SGD.

        Raises:
            ConfigError: It is another one.
        """
        if not isinstance(base, SGD) or base.momentum or base.weight_decay:
            raise ConfigError(
                "coded training adds up steps of plain SGD: optimizer 'sgd' without momentum and weight_decay is "
                "needed (method_options.ridge is its weight decay)"
            )
        return self.of_sgd(base)

    def of_sgd(self, base: SGD) -> SGD:
        """The clients' own."""
        return base

    def adapt(self, model: nn.Module, sample: Tensor) -> nn.Module:
        """The recipe's model, if it ends in a linear layer: as it is, or with random features before a new one.

        Raises:
            ConfigError: It does not.
        """
        check_head(model, sample)
        return lifted(model, sample, self.lift, self.lift_gamma) if self.lift else model

    def menu(self, model: nn.Module) -> tuple[str, ...]:
        """The last layer."""
        return (HEAD,)

    def submodel(self, whole: Submodel, name: str) -> Submodel:
        """The step that trains the last layer, the one that codes, or the recipe's own."""
        return coded_submodel(whole, name)

    def aggregate(self, server: ServerState, updates: Sequence[Update]) -> ServerState:
        """The sum of all rows, once; then what the method makes of rows and updates."""
        server = with_holders(server, updates)
        if updates and updates[0].kind == ENCODE:
            made = CodedSet.summed(updates)
            return server if made is None else replace(server, extra={**server.extra, **made.to_extra()})
        return self.stepped(server, CodedSet.of_extra(server.extra), updates)

    @abstractmethod
    def stepped(self, server: ServerState, held: CodedSet | None, updates: Sequence[Update]) -> ServerState:
        """The server after a round of training.

        Args:
            server: Before it.
            held: The coded rows; None where nobody has sent any.
            updates: That were in time; perhaps none.
        """


def at_least(*rows: tuple[str, float, float]) -> list[str]:
    """What is wrong with options (name, value, least value)."""
    return [
        f"{name} must be at least {least:g}, got {value}"
        for name, value, least in rows
        if not (math.isfinite(value) and value >= least)
    ]
