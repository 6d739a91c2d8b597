"""A graph's identity, independent of names: same operators, shapes, types and wiring give the same text."""

from __future__ import annotations

import hashlib
from typing import Any

from fedhybrid.graph.ir import Ref, Role, StepGraph, map_refs

__all__ = ["fingerprint"]


def fingerprint(graph: StepGraph, optimizer: str) -> str:
    """16 hexadecimal digits that are equal for graphs on which the same plan means the same.

    Args:
        graph: After all rewrites.
        optimizer: Text that says which state the optimizer keeps; it shifts the resident bytes.
    """
    number: dict[int, int] = {}
    lines: list[Any] = [optimizer]
    roles = {Role.PARAM: graph.params.values(), Role.BUFFER: graph.buffers.values(), Role.BATCH: graph.batch}
    for role, values in roles.items():
        for value in values:
            number[value] = len(number)
            v = graph.values[value]
            lines.append((role.value, v.shape, v.stride, str(v.dtype)))
    for value in graph.constants:
        number[value] = len(number)
        lines.append(("constant", graph.values[value].shape))
    for op in graph.ops:
        args = map_refs((op.args, op.kwargs), lambda v: Ref(number[v]))
        for output in op.outputs:
            if output is not None:
                number[output] = len(number)
        shapes = [None if o is None else (graph.values[o].shape, str(graph.values[o].dtype)) for o in op.outputs]
        lines.append((op.target, repr(args), shapes))
    lines.append(
        (graph.backward_at, number[graph.loss], sorted((number[p], number[g]) for p, g in graph.grads.items()))
    )
    return hashlib.blake2b(repr(lines).encode(), digest_size=8).hexdigest()
