"""From a cohort to tasks under way, and from ended tasks to records: what every schedule shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from fedhybrid.engine.costs import WorldCosts
from fedhybrid.engine.federation import Federation
from fedhybrid.engine.scoring import Tested
from fedhybrid.engine.world import World
from fedhybrid.protocols import PolicyState, RoundPlan, ServerState
from fedhybrid.records import COMPLETED, ClientRecord, ClientTask, Outcome, RoundRecord, TaskEvent, Update
from fedhybrid.seeds import derive_seed

__all__ = ["Dispatcher", "Played", "choose", "counts", "outcome_of"]


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a round leaves: the new server, the policy's new state, and the records (clients in order of their end)."""

    server: ServerState
    policy: PolicyState
    selections: int
    record: RoundRecord
    clients: list[ClientRecord]


def choose(
    job: Federation, world: World, policy: PolicyState, count: int, selection: int
) -> tuple[list[int], PolicyState]:
    """Asks the policy for a cohort among the clients that are online and free."""
    seed = derive_seed(job.seed, purpose="select", round_index=selection)
    view = world.candidates()
    cohort, policy = job.policy.select(view, count, policy, round_index=selection, seed=seed)
    return cohort.tolist(), policy


@dataclass(kw_only=True)
class Dispatcher:
    """Gives out the tasks of one round (or aggregation), and keeps the books on their ends.

    Attributes:
        job: The parts of the run.
        world: Driver, plans and data.
        round_index: Of the round whose books these are.
        on_task: Is told of each end.
        events: What has ended, in order.
        records: Of the same.
    """

    job: Federation
    world: World
    round_index: int
    on_task: Callable[[ClientRecord], None]
    events: list[TaskEvent] = field(default_factory=list)
    records: list[ClientRecord] = field(default_factory=list)

    def assign(self, server: ServerState, cohort: Sequence[int], *, draw: int, phase: str = "train") -> list[int]:
        """Sends each client of the cohort its task; returns the tickets."""
        job, world, now = self.job, self.world, self.world.stream(self.round_index)
        promised = world.promised(cohort)
        offers = {
            client: world.book.offer(world.device(client).name, budget_bytes)
            for client, budget_bytes in zip(cohort, promised, strict=True)
        }
        plan = RoundPlan(
            round_index=server.version,
            cohort=tuple(cohort),
            plans={client: plan for client, (_, plan) in offers.items()},
            submodels={client: submodel for client, (submodel, _) in offers.items()},
            costs=WorldCosts(world=world),
            work=job.work,
            run_seed=job.seed,
            draw=draw,
            phase=phase,
            stream=now,
        )
        shown = None if now is None else now.classes
        return [self.submit(replace(task, classes=shown)) for task in job.method.assign(server, plan)]

    def submit(self, task: ClientTask) -> int:
        """Sends one task; returns its ticket."""
        ticket = self.world.driver.submit(task.client, task)
        self.world.tasks[ticket] = task
        return ticket

    def ended(self, event: TaskEvent, *, version: int) -> ClientRecord:
        """Writes down the end of a task at this version of the server.

        What the client keeps counts if its update does: with one that is lost, damaged or too stale, it goes on from
        what it had.
        """
        task = self.world.tasks.pop(event.ticket)
        if isinstance(event.result, Update) and event.result.state is not None:
            self.world.states[task.client] = event.result.state
        record = _client_record(self.world, task, event, self.round_index, version)
        self.events.append(event)
        self.records.append(record)
        self.on_task(record)
        return record

    def close(
        self,
        *,
        server: ServerState,
        used: Sequence[Update],
        score: Tested,
        wall_time_s: float,
    ) -> RoundRecord:
        """The round's record.

        Args:
            server: After the round.
            used: The updates that it was made of.
            score: How good it is.
            wall_time_s: Real seconds since the run began.
        """
        costs = [event.cost for event in self.events]
        energies_j = [cost.energy_j for cost in costs]
        training = [record for record in self.records if counts(record)]
        tested = [record.accuracy for record in self.records if record.accuracy is not None]
        version = server.version - 1 if used else server.version
        return RoundRecord(
            round=self.round_index,
            virtual_time_s=self.world.driver.now(),
            accuracy=score.accuracy,
            loss=score.loss,
            train_loss=_train_loss(used),
            cohort=sorted(record.client for record in training),
            completed=sum(record.outcome == COMPLETED for record in training),
            failed=sum(record.outcome != COMPLETED for record in training),
            bytes_up=sum(cost.bytes_up for cost in costs),
            bytes_down=sum(cost.bytes_down for cost in costs),
            wall_time_s=wall_time_s,
            late=sum(record.outcome == "late" for record in training),
            staleness_mean=sum(version - update.round_index for update in used) / len(used) if used else None,
            energy_j=None if None in energies_j else sum(e for e in energies_j if e is not None),
            violations=sum(cost.violations for cost in costs),
            client_accuracy=sum(tested) / len(tested) if tested else None,
            task=score.task,
            task_accuracies=score.task_accuracies,
        )


def counts(record: ClientRecord) -> bool:
    """Whether a task is one of a round's cohort: its training, or what failed before it."""
    return record.kind == "train" or (record.kind not in ("evaluate", "close") and record.outcome != COMPLETED)


def outcome_of(world: World, event: TaskEvent, selection: int) -> Outcome:
    """What the policy learns of a task's end."""
    result = event.result
    seen = result.samples_seen if isinstance(result, Update) else 0
    return Outcome(
        client=result.client,
        round_index=selection,
        squared_loss_mean=result.squared_loss_sum / seen if isinstance(result, Update) and seen else None,
        num_samples=world.num_samples(result.client),
        duration_s=event.duration_s,
        kind=_kind_of(event),
    )


def _kind_of(event: TaskEvent) -> str:
    return COMPLETED if isinstance(event.result, Update) else event.result.kind


def _client_record(world: World, task: ClientTask, event: TaskEvent, round_index: int, version: int) -> ClientRecord:
    tier, result = world.tier(task.client), event.result
    ran = result if isinstance(result, Update) else result.ran
    update = result if isinstance(result, Update) else None
    return ClientRecord(
        round=round_index,
        client=task.client,
        tier=tier.name,
        device=tier.device.name,
        outcome=_kind_of(event),
        budget_bytes=event.budget_bytes,
        planned_peak_bytes=event.planned_peak_bytes,
        measured_peak_bytes=ran.measured_peak_bytes if ran else None,
        plan=task.plan,
        submodel=task.submodel,
        samples=ran.samples_seen if ran else 0,
        steps=ran.steps if ran else 0,
        train_loss=update.loss_mean if update else None,
        virtual_time_s=event.duration_s,
        detail="" if isinstance(result, Update) else result.detail,
        kind=task.kind,
        at_s=event.at_s,
        staleness=version - task.round_index,
        bytes_up=event.cost.bytes_up,
        bytes_down=event.cost.bytes_down,
        energy_j=event.cost.energy_j,
        violations=event.cost.violations,
        switches=event.cost.switches,
        accuracy=update.metrics.get("accuracy") if update else None,
        runtime_bytes=event.cost.runtime_bytes,
    )


def _train_loss(updates: Sequence[Update]) -> float | None:
    """Mean loss of the samples that were trained on; None where nobody trained."""
    seen = sum(update.samples_seen for update in updates)
    return sum(update.loss_mean * update.samples_seen for update in updates) / seen if seen else None
