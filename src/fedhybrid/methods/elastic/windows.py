"""FedEL's window over the blocks of a network, from the input to the output and back again.

Blocks count from 1, nearest the input; a window is (first, last), both included.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["first_window", "next_window"]

_SLACK = 1e-9  # of the time: rounding of sums


def first_window(block_s: Sequence[float], limit_s: float) -> tuple[int, int]:
    """From the first block to the first at which the blocks' seconds reach the limit; to the last if they never do.

    Args:
        block_s: Seconds of each block's gradients and updates.
        limit_s: Of a step.
    """
    return 1, _reach(block_s, 0, limit_s)


def next_window(
    block_s: Sequence[float], limit_s: float, *, last: int, lowest: int, contiguous: bool = False
) -> tuple[int, int]:
    """The window after one that ended at block `last`.

    >>> next_window([1, 1, 1, 1, 1], 2, last=2, lowest=2)
    (2, 4)

    Args:
        block_s: See `first_window`.
        limit_s: See `first_window`.
        last: End of the window before; 0 if there was none.
        lowest: Of the blocks in which a tensor was chosen then: the new window begins there.
        contiguous: It begins behind `last` instead (the variant FedEL-C).
    """
    if not 0 < last < len(block_s):
        return first_window(block_s, limit_s)
    return last + 1 if contiguous else lowest, _reach(block_s, last, limit_s)


def _reach(block_s: Sequence[float], done: int, limit_s: float) -> int:
    seconds = 0.0
    for block in range(done + 1, len(block_s) + 1):
        seconds += block_s[block - 1]
        if seconds >= limit_s * (1 - _SLACK):
            return block
    return len(block_s)
