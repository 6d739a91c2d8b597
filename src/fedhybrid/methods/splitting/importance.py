"""How much each part of the model still learns: the edge manager's statistics.

RECONSTRUCTED: importance of a layer is the moving average of ||dw|| / ||w|| from round to round. Averages are kept for
each tensor, of both squares, because the server's side of a method sees tensors by their names and not the model; a
part's importance is made of its tensors' when a cut is chosen: sqrt(sum of |dw|^2 / sum of |w|^2).

What is remembered are tensors of `ServerState.extra`, in the order of the model's names, so that checkpoints hold it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedhybrid.tree import Tensors

__all__ = ["first_watch", "importance_of", "quiet_parts", "watched"]

_MOVED, _SIZE, _QUIET = "smartsplit/moved", "smartsplit/size", "smartsplit/quiet"


def first_watch(weights: Mapping[str, Tensor]) -> Tensors:
    """Nothing seen yet."""
    count = len(weights)
    return {
        _MOVED: torch.zeros(count, dtype=torch.float64),
        _SIZE: torch.zeros(count, dtype=torch.float64),
        _QUIET: torch.zeros(count, dtype=torch.int64),
    }


def watched(
    extra: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    *,
    memory: float,
    quiet_below: float | None,
    checks: int,
) -> Tensors:
    """What is remembered after one more round.

    Args:
        extra: What was before it.
        before: The global model then.
        after: And now.
        memory: Weight of the past in the averages; the first round's values stand alone.
        quiet_below: Counts the tensors that have moved less than this share of their length in one more check, and
            starts again from 0 for the others; None where this round is no check.
        checks: Who has been quiet in so many of them in a row counts as quiet from then on, however it moves: parts
            that some devices no longer train are still moved by others, whose cut holds nothing else.
    """
    moved = torch.tensor(
        [float((after[n].double() - w.double()).square().sum()) for n, w in before.items()], dtype=torch.float64
    )
    size = torch.tensor([float(w.double().square().sum()) for w in before.values()], dtype=torch.float64)
    if extra[_SIZE].any():
        moved = memory * extra[_MOVED] + (1 - memory) * moved
        size = memory * extra[_SIZE] + (1 - memory) * size
    quiet = extra[_QUIET]
    if quiet_below is not None:
        quiet = torch.where((moved < quiet_below**2 * size) | (quiet >= checks), quiet + 1, 0)
    return {_MOVED: moved, _SIZE: size, _QUIET: quiet}


def importance_of(extra: Mapping[str, Tensor], names: Sequence[str], parts: Sequence[Sequence[str]]) -> list[float]:
    """I of each part; all zero before the first round.

    Args:
        extra: What is remembered.
        names: Of the model's tensors, in the order in which it is.
        parts: Names of each part's parameters.
    """
    place = {name: number for number, name in enumerate(names)}
    found = []
    for own in parts:
        numbers = [place[name] for name in own]
        moved, size = float(extra[_MOVED][numbers].sum()), float(extra[_SIZE][numbers].sum())
        found.append((moved / size) ** 0.5 if size else 0.0)
    return found


def quiet_parts(
    extra: Mapping[str, Tensor], names: Sequence[str], parts: Sequence[Sequence[str]], *, checks: int
) -> int:
    """How many parts, counted from the first, have all been quiet for so many checks in a row; arguments as above."""
    place = {name: number for number, name in enumerate(names)}
    count = 0
    for own in parts:
        if any(int(extra[_QUIET][place[name]]) < checks for name in own):
            break
        count += 1
    return count
