"""One synchronous round: choose a cohort, give out tasks, take the events, combine the updates, write it all down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedhybrid.engine.federation import Federation
from fedhybrid.engine.world import World
from fedhybrid.protocols import PolicyState, RoundPlan, ServerState
from fedhybrid.records import COMPLETED, ClientRecord, ClientTask, Outcome, RoundRecord, TaskEvent, Update
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import total_bytes

__all__ = ["Played", "play_round"]


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a round leaves: the new server, the policy's new state, and the records (clients in order of their end)."""

    server: ServerState
    policy: PolicyState
    record: RoundRecord
    clients: list[ClientRecord]


def play_round(
    job: Federation,
    world: World,
    server: ServerState,
    policy: PolicyState,
    *,
    round_index: int,
    wall_time_s: Callable[[], float],
    on_task: Callable[[ClientRecord], None],
) -> Played:
    """Plays round `round_index`; where no update comes back, the server stays as it is.

    Args:
        job: The parts of the run.
        world: Driver, plans, candidates and test set.
        server: State before the round.
        policy: The policy's state before the round.
        round_index: Counts from 0.
        wall_time_s: Real seconds since the run began, for the record.
        on_task: Is called as each task ends.
    """
    seed = derive_seed(job.seed, purpose="select", round_index=round_index)
    cohort, policy = job.policy.select(
        world.candidates, job.clients_per_round, policy, round_index=round_index, seed=seed
    )
    tasks = {
        world.driver.submit(task.client, task): task
        for task in _assigned(job, world, server, cohort.tolist(), round_index)
    }
    events: list[TaskEvent] = []
    clients: list[ClientRecord] = []
    while (event := world.driver.next_event()) is not None:
        events.append(event)
        clients.append(_client_record(job, world, tasks[event.ticket], event))
        on_task(clients[-1])
    updates = sorted((e.result for e in events if isinstance(e.result, Update)), key=lambda update: update.client)
    server = job.method.aggregate(server, updates) if updates else server
    score = world.evaluator.score(server.weights)
    record = RoundRecord(
        round=round_index,
        virtual_time_s=world.driver.now(),
        accuracy=score.accuracy,
        loss=score.loss,
        train_loss=_train_loss(updates),
        cohort=sorted(cohort.tolist()),
        completed=len(updates),
        failed=len(events) - len(updates),
        bytes_up=sum(total_bytes(ran.weights) for event in events if (ran := _ran(event))),
        bytes_down=sum(total_bytes(task.weights) for task in tasks.values()),
        wall_time_s=wall_time_s(),
    )
    policy = job.policy.observe([_outcome(job, event) for event in events], policy)
    return Played(server=server, policy=policy, record=record, clients=clients)


def _assigned(
    job: Federation, world: World, server: ServerState, cohort: Sequence[int], round_index: int
) -> list[ClientTask]:
    device = {client: job.fleet.tiers[job.fleet.tier[client]].device.name for client in cohort}
    budget_bytes = {client: int(world.candidates.budget_bytes[client]) for client in cohort}
    plan = RoundPlan(
        round_index=round_index,
        cohort=tuple(cohort),
        plans={client: world.book.choose(device[client], budget_bytes[client]) for client in cohort},
        work=job.work,
        run_seed=job.seed,
    )
    return job.method.assign(server, plan)


def _client_record(job: Federation, world: World, task: ClientTask, event: TaskEvent) -> ClientRecord:
    tier, result = job.fleet.tiers[job.fleet.tier[task.client]], event.result
    ran = _ran(event)
    update = result if isinstance(result, Update) else None
    return ClientRecord(
        round=task.round_index,
        client=task.client,
        tier=tier.name,
        device=tier.device.name,
        outcome=COMPLETED if isinstance(result, Update) else result.kind,
        budget_bytes=int(world.candidates.budget_bytes[task.client]),
        planned_peak_bytes=world.book.program(tier.device.name, task.plan).peak_bytes if ran else None,
        measured_peak_bytes=ran.measured_peak_bytes if ran else None,
        plan=task.plan,
        samples=ran.samples_seen if ran else 0,
        steps=ran.steps if ran else 0,
        train_loss=update.loss_mean if update else None,
        virtual_time_s=event.duration_s,
        detail="" if isinstance(result, Update) else result.detail,
    )


def _ran(event: TaskEvent) -> Update | None:
    """What the client trained and sent, also where it cannot be used."""
    return event.result if isinstance(event.result, Update) else event.result.ran


def _outcome(job: Federation, event: TaskEvent) -> Outcome:
    result = event.result
    return Outcome(
        client=result.client,
        round_index=result.round_index,
        squared_loss_mean=result.squared_loss_sum / result.samples_seen if isinstance(result, Update) else None,
        num_samples=len(job.shards[result.client]),
        duration_s=event.duration_s,
    )


def _train_loss(updates: Sequence[Update]) -> float | None:
    """Mean loss of the samples that were trained on; None where nobody trained."""
    seen = sum(update.samples_seen for update in updates)
    return sum(update.loss_mean * update.samples_seen for update in updates) / seen if seen else None
