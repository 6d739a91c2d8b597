"""The verbs of every method that is FedAvg but for its optimizer or its plans: whole cohort, local training, mean.

A method that changes one of these verbs does not inherit here; it implements the protocol and calls the functions of
this file that it keeps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from fedhybrid.methods.local import train_locally
from fedhybrid.protocols import Attendant, ClientRuntime, Optimizer, RoundPlan, ServerState, Submodel, Transport
from fedhybrid.records import ClientTask, Update
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import Tensors, detached_copy
from fedhybrid.updates import average_present

__all__ = ["AbstractAsynchronous", "AbstractAveraging", "AbstractFederated", "averaged_by_samples", "tasks_for_cohort"]


def tasks_for_cohort(server: ServerState, plan: RoundPlan) -> list[ClientTask]:
    """The same task for every client: the global weights, the round's work, the client's own plan and seed."""
    return [
        ClientTask(
            round_index=plan.round_index,
            client=client,
            weights=server.weights,
            work=plan.work,
            plan=plan.plans[client],
            kind=plan.phase,
            submodel=plan.submodels.get(client, ""),
            seed=derive_seed(plan.run_seed, purpose=plan.phase, round_index=plan.draw, client=client),
        )
        for client in plan.cohort
    ]


def averaged_by_samples(server: ServerState, updates: Sequence[Update]) -> ServerState:
    """The mean of the clients' models, weighted by the samples that each holds; buffers (statistics of batch norm)
    are averaged like parameters, so nothing of one client leaks to the next. Each element's mean is over those who sent
    it; what nobody sent stays as it was.
    """
    mean = average_present(
        server.weights,
        [update.weights for update in updates],
        [update.num_samples for update in updates],
        [update.masks for update in updates],
    )
    return ServerState(weights=mean, extra=server.extra)


class AbstractFederated(ABC):
    """One global model, sent to everyone as it is; what is left to a method stands first."""

    @property
    @abstractmethod
    def plans(self) -> bool:
        """Whether each client gets an execution plan for its budget."""

    @property
    @abstractmethod
    def asynchronous(self) -> bool:
        """Whether `aggregate` knows what to do with few updates of different staleness."""

    @abstractmethod
    def optimizer(self, base: Optimizer) -> Optimizer:
        """The clients' optimizer, made from the configured one."""

    @abstractmethod
    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        """The client's side."""

    @abstractmethod
    def aggregate(self, server: ServerState, updates: Sequence[Update]) -> ServerState:
        """The server after a round."""

    @property
    def codec(self) -> str | None:
        """None: no codec is forced on a client's step."""
        return None

    @property
    def fallback(self) -> str | None:
        """None: a client's plan follows from its budget."""
        return None

    @property
    def differences(self) -> bool:
        """Clients send whole models."""
        return False

    @property
    def preparations(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def stages(self) -> tuple[str, ...]:
        """Nothing but training."""
        return ("train",)

    @property
    def closes(self) -> bool:
        """False: the model is tested as it comes from training."""
        return False

    @property
    def acts_alone(self) -> bool:
        """False: without updates the server stays as it is."""
        return False

    def transport(self, version: int) -> Transport | None:
        """None: tensors go through what the recipe says."""
        return None

    @property
    def is_personal(self) -> bool:
        """False: everybody answers with the global model."""
        return False

    def tested_names(self, weights: Tensors) -> tuple[str, ...] | None:
        """None: a client that tests the global model receives all of it."""
        return None

    def personal(self, model: nn.Module, weights: Tensors, state: Tensors) -> Tensors:
        """The global model."""
        return weights

    def adapt(self, model: nn.Module, sample: Tensor) -> nn.Module:
        """The recipe's model as it is."""
        return model

    def menu(self, model: nn.Module) -> tuple[str, ...]:
        """The whole model."""
        return ("",)

    def submodel(self, whole: Submodel, name: str) -> Submodel:
        """The whole model."""
        return whole

    def init(self, weights: Tensors) -> ServerState:
        """The initial global model."""
        return ServerState(weights=detached_copy(weights))

    def attend(self, task: ClientTask, whole: Submodel) -> Attendant | None:
        """None: clients train alone."""
        return None

    def assign(self, server: ServerState, plan: RoundPlan) -> list[ClientTask]:
        """The global model and the same work for everyone."""
        return tasks_for_cohort(server, plan)


class AbstractAsynchronous(AbstractFederated):
    """What asynchronous methods have in common; how they aggregate sets them apart."""

    @property
    def plans(self) -> bool:
        """No plans unless a recipe switches them on: each client runs the whole step as it is."""
        return False

    @property
    def asynchronous(self) -> bool:
        """It is made for that."""
        return True


class AbstractAveraging(AbstractFederated):
    """FedAvg's verbs; a method adds its optimizer and whether it plans."""

    @property
    def asynchronous(self) -> bool:
        """False: a mean of the models that came replaces the global one, which one slow client could take back."""
        return False

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        """Local epochs of ordinary training."""
        return train_locally(task, client)

    def aggregate(self, server: ServerState, updates: Sequence[Update]) -> ServerState:
        """Mean of the models, weighted by samples."""
        return averaged_by_samples(server, updates)
