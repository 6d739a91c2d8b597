"""One aggregation of an asynchronous run: keep clients at work, and combine updates as soon as enough have come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fedhybrid.engine.dispatch import Dispatcher, Played, choose, outcome_of
from fedhybrid.engine.federation import Federation
from fedhybrid.engine.journey import figures_of
from fedhybrid.engine.rounds import aggregated, prepared
from fedhybrid.engine.world import World
from fedhybrid.protocols import PolicyState, ServerState
from fedhybrid.records import ClientRecord, Failure, TaskEvent, Update

__all__ = ["play_merge"]

_PATIENCE = 100  # so many failures for each update that is wanted, and the server goes on with what it has
_MOST_WAITS = 1_000  # for somebody who can be chosen and does not refuse, while nothing is under way; then likewise


def play_merge(
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
    """Goes on until `schedule.buffer` updates have come, and combines them; see `rounds.play_round` for the rest.

    Tasks are still under way at the end: they belong to a later aggregation, and are part of a checkpoint. An update
    that is staler than `schedule.max_staleness` counts as the failure "stale".

    A client may refuse its task: less memory than any plan needs, before the first step. With moving budgets that is
    no reason to ask the next one at once, again and again: after as many refusals in a row as tasks may be under way,
    the server asks nobody until the next window of time (`fleet.memory.window_s`) begins. It asks again then, and waits
    again at the first refusal, until an update or another failure ends the row.
    """
    world.begin(round_index)
    desk = Dispatcher(job=job, world=world, round_index=round_index, on_task=on_task)
    if round_index == 0:
        server = prepared(job, world, server, desk)
    buffer: list[Update] = []
    failures = waits = 0
    while len(buffer) < job.schedule.buffer and failures < _patience(job):
        free = job.schedule.in_flight - len(world.driver.busy)
        pause_s = _pause_s(job, desk.events, world.driver.now())
        if free > 0 and pause_s is None:
            cohort, policy = choose(job, world, policy, free, selections)
            desk.assign(server, cohort, draw=selections)
            selections += 1
        short = len(world.driver.busy) < job.schedule.in_flight
        timeout_s = world.next_arrival_s() if pause_s is None else pause_s
        event = world.driver.next_event(timeout_s if short else None)
        if event is None:
            if not world.driver.busy:
                waits += 1
                if waits > _MOST_WAITS or timeout_s is None:
                    break
            continue
        event = _fresh_enough(event, server.version, job.schedule.max_staleness)
        desk.ended(event, version=server.version)
        policy = job.policy.observe([outcome_of(world, event, selections)], policy)
        if isinstance(event.result, Update):
            buffer.append(event.result)
        else:
            failures += 1
    server = aggregated(job, server, buffer)
    record = desk.close(server=server, used=buffer, score=world.score(server, round_index), wall_time_s=wall_time_s())
    return Played(server=server, policy=policy, selections=selections, record=record, clients=desk.records)


def _patience(job: Federation) -> int:
    """Failures until an aggregation is given up; refusals, which come by the handful a window, need more."""
    each = job.schedule.buffer if job.fleet.memory is None else max(job.schedule.buffer, job.schedule.in_flight)
    return _PATIENCE * each


def _pause_s(job: Federation, events: Sequence[TaskEvent], now_s: float) -> float | None:
    """Seconds in which nobody is asked; None where somebody may be. It follows from this aggregation's own events."""
    memory, last = job.fleet.memory, events[-job.schedule.in_flight :]
    if memory is None or len(last) < job.schedule.in_flight or not all(map(_is_refusal, last)):
        return None
    if memory.window(last[-1].at_s) != memory.window(now_s):
        return None
    return memory.next_window_s(now_s) - now_s


def _is_refusal(event: TaskEvent) -> bool:
    """Whether the client could not even begin."""
    result = event.result
    return isinstance(result, Failure) and result.kind == "out_of_memory" and event.cost.compute_s == 0


def _fresh_enough(event: TaskEvent, version: int, most: int | None) -> TaskEvent:
    result = event.result
    if most is None or not isinstance(result, Update) or version - result.round_index <= most:
        return event
    detail = f"its model was {version - result.round_index} aggregations old, at most {most} are used"
    failure = Failure(
        client=result.client, round_index=result.round_index, kind="stale", detail=detail, ran=figures_of(result)
    )
    return replace(event, result=failure)
