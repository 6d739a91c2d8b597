"""The front door: a federation, round after round, safe against being killed at any moment.

candidates -> policy.select -> method.assign -> driver -> method.aggregate -> evaluate -> records -> checkpoint
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace

from fedhybrid.collection import collection_paused
from fedhybrid.engine.checkpoint import Checkpoint
from fedhybrid.engine.dispatch import Played
from fedhybrid.engine.federation import Federation
from fedhybrid.engine.folder import RunFolder
from fedhybrid.engine.merges import play_merge
from fedhybrid.engine.progress import Progress
from fedhybrid.engine.rounds import play_round
from fedhybrid.engine.runtime import one_thread
from fedhybrid.engine.summary import summarise
from fedhybrid.engine.world import Assemble, World, assemble
from fedhybrid.records import Summary
from fedhybrid.tree import buffers_of, tensors_of

__all__ = ["run_federation"]

_CHECKPOINT_S = 1.0  # of work that a stop may cost; to disk and back costs some milliseconds each time


def run_federation(
    job: Federation,
    folder: RunFolder,
    progress: Progress,
    *,
    label: str = "",
    runtime_bytes: int,
    assemble: Assemble = assemble,
) -> Summary:
    """Plays the rounds that are left, and stores records, plans, model and summary in the folder.

    A run that was stopped in the folder goes on after its last complete round, and ends as if it had not been stopped.

    Args:
        job: What to run.
        folder: Where to.
        progress: Is told what happens.
        label: Names the run towards `progress`.
        runtime_bytes: Memory of the process before `job` was built; only for the summary.
        assemble: Puts everything together; another one brings devices that are elsewhere.

    Raises:
        ConfigError: Another process writes into the folder, or its files do not belong together.
        CaptureError: The model's step cannot be captured.
    """
    began_s = time.perf_counter()
    with one_thread(), folder.locked():
        state = folder.restore() or _start(job)
        state = replace(state, server=replace(state.server, buffers=buffers_of(job.model)))
        wall_before_s = state.wall_time_s

        def wall_time_s() -> float:
            return wall_before_s + time.perf_counter() - began_s

        progress.on_start(label, first_round=state.next_round, rounds=job.rounds)
        progress.on_stage(label, "capturing the training step, planning for each device")
        with collection_paused():
            world = assemble(job, folder, state)
        folder.reopen(state)  # only now, as nothing can be wrong any more with what is there
        world.states.clear_left_overs()
        stored_s = wall_time_s()

        def due(round_index: int, since_s: float) -> bool:
            """A run ends in the same bytes wherever it was stored, so a clock may decide when."""
            every = job.checkpoint_every
            return since_s >= _CHECKPOINT_S if every is None else (round_index + 1) % every == 0

        with closing(world.driver):
            for round_index in range(state.next_round, job.rounds):
                played = (play_merge if job.schedule.asynchronous else play_round)(
                    job,
                    world,
                    state.server,
                    state.policy,
                    round_index=round_index,
                    selections=state.selections,
                    wall_time_s=wall_time_s,
                    on_task=lambda record: progress.on_task(label, record),
                )
                state = _after(played, state, world, folder.append(played.record, played.clients))
                if round_index + 1 == job.rounds or due(round_index, wall_time_s() - stored_s):
                    state = replace(state, client_states=world.states.write())
                    folder.store(state)
                    world.states.tidy()
                    stored_s = wall_time_s()
                progress.on_round(label, played.record)
        summary = summarise(
            job,
            world,
            folder.rounds(),
            folder.clients(),
            weights=state.server.weights,
            runtime_bytes=runtime_bytes,
        )
        folder.finish(state.server.weights, summary)
    progress.on_end(label, summary)
    return summary


def _after(played: Played, before: Checkpoint, world: World, lengths_bytes: tuple[int, int]) -> Checkpoint:
    """The state after a round."""
    return replace(
        before,
        next_round=played.record.round + 1,
        now_s=world.driver.now(),
        wall_time_s=played.record.wall_time_s,
        rounds_length_bytes=lengths_bytes[0],
        clients_length_bytes=lengths_bytes[1],
        policy=played.policy,
        server=played.server,
        selections=played.selections,
        next_ticket=world.driver.next_ticket,
        pending=tuple(world.driver.pending()),
    )


def _start(job: Federation) -> Checkpoint:
    """The state before the first round."""
    return Checkpoint(
        next_round=0,
        now_s=0.0,
        wall_time_s=0.0,
        rounds_length_bytes=0,
        clients_length_bytes=0,
        policy=job.policy.init(),
        server=job.method.init(tensors_of(job.model)),
    )
