"""The memory timeline said slowly: a set of live instances, looked at before and after every call."""

from __future__ import annotations

from fedhybrid.planner import Problem, Schedule


def simulate(problem: Problem, schedule: Schedule) -> list[int]:
    """Bytes at the worst moment of each call; asserts that nothing is read before its birth or after its death."""
    readers: dict[int, list[int]] = {}
    for position, step in enumerate(schedule.steps):
        for instance in step.reads:
            readers.setdefault(instance, []).append(position)
    outputs = {min(i for i, s in enumerate(schedule.storage_of) if s == storage) for storage in problem.outputs}
    live: set[int] = set()
    tops = []

    def held() -> int:
        return sum(problem.nbytes[schedule.storage_of[instance]] for instance in live)

    for position, step in enumerate(schedule.steps):
        assert set(step.reads) <= live, f"call {position} reads memory that is not there"
        fresh = sum(problem.nbytes[schedule.storage_of[instance]] for instance in step.births)
        if step.in_place >= 0:
            assert readers[step.in_place][-1] == position, "overwritten before its last reader"
            taken = problem.nbytes[schedule.storage_of[step.in_place]]
            assert problem.nbytes[schedule.storage_of[step.births[0]]] == taken
            fresh -= taken
        tops.append(held() + fresh + step.workspace_bytes)
        live |= set(step.births)
        live = {i for i in live if i in outputs or (i in readers and readers[i][-1] > position)}
    return tops
