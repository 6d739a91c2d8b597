"""One synchronous round: choose a cohort, give out tasks, take the events, combine the updates, write it all down."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fedhybrid.engine.dispatch import Dispatcher, Played, choose, outcome_of
from fedhybrid.engine.federation import Federation
from fedhybrid.engine.world import World
from fedhybrid.protocols import PolicyState, ServerState
from fedhybrid.records import ClientRecord, ClientTask, LocalWork, TaskEvent, Update
from fedhybrid.seeds import derive_seed

__all__ = ["aggregated", "on_own_data", "play_round", "prepared"]

_MOST_WAITS = 1_000  # for a device to come online or to get memory back, until a round is given up


def play_round(
    job: Federation,
    world: World,
    server: ServerState,
    policy: PolicyState,
    *,
    round_index: int,
    selections: int,
    wall_time_s: Callable[[], float],
    on_task: Callable[[ClientRecord], None],
) -> Played:
    """Plays round `round_index`; where no update comes back, the server stays as it is (`Method.acts_alone`).

    Where the policy finds nobody, it is asked again as soon as somebody may be back online or, in the next window of
    moving budgets, may have more memory.

    With over-selection the round ends as soon as as many updates are there as were wanted; with a deadline, at the
    latest then. What is not back is late: it is given up, its client is free again, its bytes down were spent.

    Args:
        job: The parts of the run.
        world: Driver, plans, candidates and test set.
        server: State before the round.
        policy: The policy's state before the round.
        round_index: Counts from 0.
        selections: How many times the policy has chosen before.
        wall_time_s: Real seconds since the run began, for the record.
        on_task: Is called as each task ends.
    """
    world.begin(round_index)
    desk = Dispatcher(job=job, world=world, round_index=round_index, on_task=on_task)
    if round_index == 0:
        server = prepared(job, world, server, desk)
    wanted = job.clients_per_round
    asked = math.ceil(wanted * job.schedule.over_selection_ratio - 1e-9)
    cohort, policy = choose(job, world, policy, asked, selections)
    for _ in range(_MOST_WAITS):
        if cohort or not world.wait_for_somebody():
            break
        cohort, policy = choose(job, world, policy, asked, selections)
    lost: list[TaskEvent] = []
    limit_s = job.schedule.deadline_s
    end_s = None if limit_s is None else world.driver.now() + limit_s
    for stage in job.method.stages[:-1]:
        server, cohort, failed = _staged(job, desk, server, cohort, stage=stage, draw=round_index, end_s=end_s)
        lost += failed
    tickets = desk.assign(server, cohort, draw=round_index)
    events = _waited_for(desk, tickets, wanted=wanted, version=server.version, end_s=end_s)
    updates = [event.result for event in events if isinstance(event.result, Update)]
    server = aggregated(job, server, updates, alone=job.method.acts_alone)
    if job.method.closes and updates and world.is_tested(round_index):
        back = sorted(update.client for update in updates)
        server, _, _ = _staged(job, desk, server, back, stage="close", draw=round_index, end_s=None)
    score = world.score(server, round_index)
    on_own_data(job, world, server, desk, round_index)
    policy = job.policy.observe([outcome_of(world, event, selections) for event in lost + events], policy)
    record = desk.close(server=server, used=updates, score=score, wall_time_s=wall_time_s())
    return Played(server=server, policy=policy, selections=selections + 1, record=record, clients=desk.records)


def _staged(
    job: Federation,
    desk: Dispatcher,
    server: ServerState,
    cohort: list[int],
    *,
    stage: str,
    draw: int,
    end_s: float | None,
) -> tuple[ServerState, list[int], list[TaskEvent]]:
    """The server after a stage of a round beside its training, who is still there, and the ends of all others."""
    tickets = desk.assign(server, cohort, draw=draw, phase=stage)
    events = _waited_for(desk, tickets, wanted=len(tickets), version=server.version, end_s=end_s)
    updates = [event.result for event in events if isinstance(event.result, Update)]
    server = replace(aggregated(job, server, updates), version=server.version)
    failed = [event for event in events if not isinstance(event.result, Update)]
    return server, sorted(update.client for update in updates), failed


def _waited_for(
    desk: Dispatcher, tickets: list[int], *, wanted: int, version: int, end_s: float | None = None
) -> list[TaskEvent]:
    """The events of a round's tasks, the late ones among them; nobody is waited for after `end_s`."""
    world = desk.world
    events: list[TaskEvent] = []
    open_tickets = set(tickets)
    completed = 0
    while open_tickets and not (len(tickets) > wanted and completed >= wanted):
        left_s = None if end_s is None else end_s - world.driver.now()
        event = world.driver.next_event(left_s)
        if event is None:
            break
        open_tickets.remove(event.ticket)
        events.append(event)
        desk.ended(event, version=version)
        completed += isinstance(event.result, Update)
    for ticket in sorted(open_tickets):
        events.append(world.driver.cancel(ticket))
        desk.ended(events[-1], version=version)
    return events


def aggregated(job: Federation, server: ServerState, updates: list[Update], *, alone: bool = False) -> ServerState:
    """The server after these updates; as it was where there are none, unless it acts `alone` then."""
    if not updates and not alone:
        return server
    # Sums of floats depend on their order: in rounds it shall not be that of arrival, which is only a matter of speed.
    ordered = updates if job.schedule.asynchronous else sorted(updates, key=lambda update: update.client)
    return replace(job.method.aggregate(server, ordered), version=server.version + 1, buffers=server.buffers)


def prepared(job: Federation, world: World, server: ServerState, desk: Dispatcher) -> ServerState:
    """The method's one-off preparations, each done once by every client that is online now, without a deadline."""
    for phase in job.method.preparations:
        tickets = desk.assign(server, world.candidates().client.tolist(), draw=0, phase=phase)
        events = _waited_for(desk, tickets, wanted=len(tickets), version=server.version)
        updates = [event.result for event in events if isinstance(event.result, Update)]
        server = replace(aggregated(job, server, updates), version=server.version)
    return server


def on_own_data(job: Federation, world: World, server: ServerState, desk: Dispatcher, round_index: int) -> None:
    """Some clients test the new model on their own data, each inside its budget, where the recipe asks for it."""
    # Not after a last round that is tested only because it is the last: with more rounds it would not have taken time.
    if not job.evaluation.clients or (round_index + 1) % job.evaluation.every:
        return
    seed = derive_seed(job.seed, purpose="evaluate", round_index=round_index)
    clients = world.candidates().sample(job.evaluation.clients, np.random.default_rng(seed))
    work = LocalWork(epochs=1, batch_size=job.work.batch_size, lr=job.work.lr)
    now, sent = world.stream(round_index), job.method.tested_names(server.weights)
    for client in clients.tolist():
        task = ClientTask(
            round_index=server.version,
            client=client,
            weights=server.weights,
            work=work,
            plan=None,
            seed=derive_seed(seed, purpose="evaluate", client=client),
            kind="evaluate",
            sent=sent,
            classes=None if now is None else now.seen,
        )
        desk.submit(task)
    while (event := world.driver.next_event()) is not None:
        desk.ended(event, version=server.version)
