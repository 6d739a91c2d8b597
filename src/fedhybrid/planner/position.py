"""What stands at one position of a step: its calls, and how many bytes they need above what reaches into it."""

from __future__ import annotations

from collections.abc import Sequence

from fedhybrid.planner.problem import Form, PlanOp, PlanUpdate, Problem

__all__ = ["Call", "Segment", "climb", "fixed_lives", "involved", "segments_of"]


class Call:
    """One call at a position: what it reads and gives birth to. `spare` births are never read: they die at once."""

    __slots__ = ("births", "op", "spare")

    def __init__(self, op: PlanOp, births: tuple[int, ...], spare: tuple[int, ...]) -> None:
        self.op, self.births, self.spare = op, births, spare


class Segment:
    """Backward positions between which a storage that was made again stays. `natural`: its first use."""

    __slots__ = ("end", "natural", "start")

    def __init__(self, natural: int, end: int) -> None:
        self.start = self.natural = natural
        self.end = end


def segments_of(uses: list[int], window: int) -> list[Segment]:
    """Groups uses that are at most `window` ops apart."""
    found = [Segment(uses[0], uses[0])]
    for use in uses[1:]:
        if use - found[-1].end > window:
            found.append(Segment(use, use))
        else:
            found[-1].end = use
    return found


def climb(
    nbytes: Sequence[int],
    calls: Sequence[Call],
    forms: Sequence[Form],
    updates: Sequence[PlanUpdate],
    dying: Sequence[Sequence[int]],
) -> int:
    """The largest number of bytes, above those live before, during the calls and updates of one position.

    Args:
        nbytes: Of each storage.
        calls: In order. `forms`: the chosen form of each.
        forms: See `calls`.
        updates: After the calls.
        dying: Storages that die after each call and update.
    """
    live = top = 0
    for call, form, gone in zip(calls, forms, dying, strict=False):
        fresh = sum([nbytes[storage] for storage in call.births])
        here = live + fresh + form.workspace_bytes
        if call.spare:
            here += sum([nbytes[storage] for storage in call.spare])
        for storage in form.in_place:
            if storage in gone:
                here -= nbytes[storage]
                break
        top = max(top, here)
        live += fresh
        for storage in gone:
            live -= nbytes[storage]
    for update, gone in zip(updates, dying[len(calls) :], strict=True):
        top = max(top, live + update.workspace_bytes)
        for storage in gone:
            live -= nbytes[storage]
    return top


def involved(prelude: list[Call]) -> set[int]:
    """Storages that a prelude reads or makes."""
    found: set[int] = set()
    for call in prelude:
        found.update(call.op.reads)
        found.update(call.births)
    return found


def fixed_lives(problem: Problem) -> tuple[list[int], list[int], list[int]]:
    """For each storage: where it is born (-1: never), its last reader in the forward pass, and in the whole step."""
    born = [-1] * len(problem.nbytes)
    forward_end, direct_end = born.copy(), born.copy()
    for position, op in enumerate(problem.ops):
        for storage in op.births:
            born[storage] = direct_end[storage] = position
            forward_end[storage] = position
        for storage in op.reads:
            direct_end[storage] = position
            if position < problem.backward_at:
                forward_end[storage] = position
    return born, forward_end, direct_end
