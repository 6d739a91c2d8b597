"""Unsigned integers of any width side by side, the first in the lowest bits: bytes that every machine reads alike.

(The codecs' packing stays inside one process: with compiled kernels the elements stand in an order of their own, and
only widths that divide a byte are known there.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["pack", "packed_bytes", "unpack"]

Unsigned = NDArray[np.unsignedinteger[Any]]

_GROUP = 8  # so many numbers are a whole number of bytes, whatever their width
_MOST_BITS = 64


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` numbers of so many bits each.

    >>> packed_bytes(3, 3)
    2
    """
    return -(-count * bits // 8)


def pack(numbers: NDArray[Any], bits: int) -> bytes:
    """The lowest `bits` bits of each number.

    Args:
        numbers: Integers or booleans in [0, 2**bits), shape (count,).
        bits: From 0 to 64.

    >>> pack(np.array([1, 2, 3]), 4).hex()
    '2103'
    """
    assert 0 <= bits <= _MOST_BITS
    if bits == 0 or not len(numbers):
        return b""
    if bits == 1:
        return np.packbits(numbers.astype(bool, copy=False), bitorder="little").tobytes()
    if bits in (8, 16, 32, 64):
        return numbers.astype(f"<u{bits // 8}", copy=False).tobytes()
    groups = -(-len(numbers) // _GROUP)
    columns = np.zeros((_GROUP, groups), _word(bits))  # the n-th numbers of all groups side by side
    filled = np.zeros(groups * _GROUP, columns.dtype)
    filled[: len(numbers)] = numbers
    columns[:] = filled.reshape(groups, _GROUP).T
    out = np.zeros((bits, groups), np.uint8)
    for number, column in enumerate(columns):
        for byte, shift in _bytes_of(number, bits):
            out[byte] |= (column >> shift if shift >= 0 else column << -shift).astype(np.uint8)
    return out.T.tobytes()[: packed_bytes(len(numbers), bits)]


def unpack(packed: bytes | memoryview, count: int, bits: int) -> Unsigned:
    """The numbers that `pack` wrote, as the smallest unsigned type that holds them (of 1, 2, 4, 8 bytes).

    Args:
        packed: `packed_bytes(count, bits)` bytes.
        count: Numbers.
        bits: Of each.
    """
    assert len(packed) == packed_bytes(count, bits)
    raw = np.frombuffer(packed, np.uint8)
    if bits == 0 or not count:
        return np.zeros(count, np.uint8)
    if bits == 1:
        return np.unpackbits(raw, count=count, bitorder="little")
    if bits in (8, 16, 32, 64):
        return raw.view(f"<u{bits // 8}")
    groups = -(-count // _GROUP)
    filled = np.zeros(groups * bits, np.uint8)
    filled[: len(raw)] = raw
    rows = np.ascontiguousarray(filled.reshape(groups, bits).T)
    columns = np.zeros((_GROUP, groups), _word(bits))
    for number in range(_GROUP):
        for byte, shift in _bytes_of(number, bits):
            part = rows[byte].astype(columns.dtype)
            columns[number] |= part << shift if shift >= 0 else part >> -shift
    columns &= (1 << bits) - 1
    return np.ascontiguousarray(columns.T).reshape(-1)[:count]


def _word(bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The smallest unsigned type of so many bits."""
    return np.dtype(f"u{next(size for size in (1, 2, 4, 8) if 8 * size >= bits)}")


def _bytes_of(number: int, bits: int) -> list[tuple[int, int]]:
    """The bytes of its group that a number reaches into, and how far to the right it is shifted for each."""
    begin, end = number * bits, (number + 1) * bits
    return [(byte, 8 * byte - begin) for byte in range(begin // 8, -(-end // 8))]
