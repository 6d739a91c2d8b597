"""The bytes of an update: a header, then of each tensor what the receiver cannot know.

    header    2 bytes "fh", 1 byte version, 1 byte: 1 where all tensors are sent and nothing is masked, else 0;
              4 bytes checksum of what both sides must agree on, 4 bytes checksum of all that follows
    if 0      2 bits a tensor of the reference: not there, whole, masked
    a tensor  if masked: how many elements, and which ones;
              if only some of these are sent: which ones;
              if in levels: the first and the last one, then their numbers; else the elements as they lie in memory

Tensors stand in the order of their names, which do not travel, nor do shapes, types, or counts that follow from the
chain's options. Integers are little-endian, and packed without gaps inside each list. "Which ones" is a bit map or
indices, whichever is smaller, and nothing at all where it is all or none. Every length is known before it is read, so
that damaged or hostile bytes cannot make the receiver ask for more memory than the reference's.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from typing import NoReturn, final

import numpy as np
import torch
from torch import Tensor

from fedhybrid.errors import ConfigError
from fedhybrid.records import IntArray
from fedhybrid.updates.base import Codes, Form, Piece, working_type
from fedhybrid.updates.bitpack import pack, packed_bytes, unpack

__all__ = [
    "ABSENT",
    "HEADER_BYTES",
    "MASKED",
    "WHOLE",
    "Reader",
    "join",
    "mask_bytes",
    "open_payload",
    "piece_bytes",
    "places_bytes",
    "range_bytes",
    "read_mask",
    "read_piece",
    "write_mask",
    "write_piece",
]

ABSENT, WHOLE, MASKED = range(3)
_KIND_BITS = 2

_HEADER = struct.Struct("<2sBBII")
_MAGIC, _VERSION = b"fh", 1
HEADER_BYTES = _HEADER.size


@final
class Reader:
    """Hands out a payload's bytes from front to back."""

    def __init__(self, payload: bytes) -> None:
        self._rest = memoryview(payload)

    def take(self, count: int) -> memoryview:
        """The next bytes.

        Raises:
            ConfigError: There are fewer.
        """
        if count > len(self._rest):
            _refuse(f"{count} more bytes were expected, {len(self._rest)} are there")
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def close(self) -> None:
        """Nothing may be left.

        Raises:
            ConfigError: Something is.
        """
        if len(self._rest):
            _refuse(f"{len(self._rest)} bytes are left at the end")


def join(kinds: Sequence[int], sections: Sequence[bytes], layout: int) -> bytes:
    """The payload.

    Args:
        kinds: ABSENT, WHOLE or MASKED of each tensor of the reference.
        sections: What follows.
        layout: Checksum of what both sides must agree on.
    """
    whole = all(kind == WHOLE for kind in kinds)
    body = b"".join(sections if whole else [pack(np.array(kinds), _KIND_BITS), *sections])
    return _HEADER.pack(_MAGIC, _VERSION, whole, layout, zlib.crc32(body)) + body


def open_payload(payload: bytes, names: int, layout: int) -> tuple[list[int], Reader]:
    """The kind of each of so many tensors, and what follows.

    Raises:
        ConfigError: No such payload, a damaged one, or one for another model or chain.
    """
    reader = Reader(payload)
    magic, version, whole, told_layout, told_body = _HEADER.unpack(reader.take(HEADER_BYTES))
    if (magic, version) != (_MAGIC, _VERSION) or whole not in (0, 1):
        _refuse(f"it does not begin like one of version {_VERSION}")
    if told_layout != layout:
        _refuse("it was made for other tensors (names, shapes, types) or by other transforms than the receiver's")
    if told_body != zlib.crc32(memoryview(payload)[HEADER_BYTES:]):
        _refuse("its checksum is wrong")
    if whole:
        return [WHOLE] * names, reader
    kinds = unpack(reader.take(packed_bytes(names, _KIND_BITS)), names, _KIND_BITS).tolist()
    if not set(kinds) <= {ABSENT, WHOLE, MASKED}:
        _refuse("it names a kind of tensor that does not exist")
    return kinds, reader


def piece_bytes(form: Form) -> int:
    """Bytes of a piece of this form."""
    which_bytes = places_bytes(form.count, form.total)
    if form.bits is None:
        return which_bytes + form.count * form.dtype.itemsize
    return which_bytes + range_bytes(form.dtype) + packed_bytes(form.count, form.bits)


def range_bytes(dtype: torch.dtype) -> int:
    """Bytes of the first and the last level: two 32-bit floats, for 64-bit tensors two of theirs."""
    return struct.calcsize(_range_format(dtype))


def _range_format(dtype: torch.dtype) -> str:
    return "<2d" if dtype == torch.float64 else "<2f"


def write_piece(piece: Piece, form: Form) -> list[bytes]:
    """The sections of a piece, whose values have the tensor's own type."""
    sections = [] if piece.places is None else [_write_places(piece.places, piece.total)]
    if piece.codes is None:
        return [*sections, piece.values.contiguous().view(torch.uint8).numpy().tobytes()]
    assert form.bits is not None
    numbers, low, high = piece.codes
    return [*sections, struct.pack(_range_format(form.dtype), low, high), pack(numbers, form.bits)]


def read_piece(reader: Reader, form: Form) -> Piece:
    """The piece of this form that comes next.

    Raises:
        ConfigError: It is cut short, or what it says cannot be.
    """
    places = _read_places(reader, form.count, form.total) if form.count < form.total else None
    work = working_type(form.dtype)
    if form.bits is None:
        values = _elements(reader.take(form.count * form.dtype.itemsize), form.dtype).to(work)
        return Piece(values=values, total=form.total, places=places)
    low, high = struct.unpack(_range_format(form.dtype), reader.take(range_bytes(form.dtype)))
    nothing_finite = math.isnan(low) and math.isnan(high)
    if not nothing_finite and not (low <= high and math.isfinite(high - low)):
        _refuse(f"its levels go from {low} to {high}")
    numbers = unpack(reader.take(packed_bytes(form.count, form.bits)), form.count, form.bits)
    return Piece(
        values=torch.empty(0, dtype=work), total=form.total, places=places, codes=Codes(numbers, low, high)
    )  # fmt: skip


def _elements(raw: memoryview, dtype: torch.dtype) -> Tensor:
    """A copy of the bytes, as elements."""
    if not len(raw):
        return torch.empty(0, dtype=dtype)
    copied = torch.from_numpy(np.frombuffer(raw, np.uint8).copy())
    return copied != 0 if dtype == torch.bool else copied.view(dtype)


def write_mask(places: IntArray, total: int) -> list[bytes]:
    """How many elements of a tensor are sent, and which ones."""
    return [len(places).to_bytes(_count_bytes(total), "little"), _write_places(places, total)]


def read_mask(reader: Reader, total: int) -> IntArray:
    """The places that `write_mask` wrote.

    Raises:
        ConfigError: It is cut short, or what it says cannot be.
    """
    count = int.from_bytes(reader.take(_count_bytes(total)), "little")
    if count > total:
        _refuse(f"it says that {count} of a tensor's {total} elements are sent")
    return _read_places(reader, count, total)


def mask_bytes(count: int, total: int) -> int:
    """Bytes of a mask that lets so many of a tensor's elements through."""
    return _count_bytes(total) + places_bytes(count, total)


def places_bytes(count: int, total: int) -> int:
    """Bytes that say which `count` of `total` elements are meant: a bit map or indices, whichever is smaller.

    >>> places_bytes(1, 1000), places_bytes(500, 1000), places_bytes(1000, 1000)
    (2, 125, 0)
    """
    return 0 if count in (0, total) else packed_bytes(min(count * _index_bits(total), total), 1)


def _count_bytes(total: int) -> int:
    return -(-total.bit_length() // 8)


def _index_bits(total: int) -> int:
    return (total - 1).bit_length()


def _mapped(count: int, total: int) -> bool:
    return total <= count * _index_bits(total)


def _write_places(places: IntArray, total: int) -> bytes:
    if len(places) in (0, total):
        return b""
    if not _mapped(len(places), total):
        return pack(places, _index_bits(total))
    chosen = np.zeros(total, bool)
    chosen[places] = True
    return pack(chosen, 1)


def _read_places(reader: Reader, count: int, total: int) -> IntArray:
    raw = reader.take(places_bytes(count, total))
    if count in (0, total):
        return np.arange(count)
    if _mapped(count, total):
        places = np.flatnonzero(unpack(raw, total, 1).view(bool))
        if len(places) != count:
            _refuse(f"its bit map has {len(places)} elements where {count} are meant")
        return places
    places = unpack(raw, count, _index_bits(total)).astype(np.int64)
    if places[-1] >= total or not bool((places[1:] > places[:-1]).all()):
        _refuse(f"its indices are not in ascending order from 0 to {total - 1}")
    return places


def _refuse(why: str) -> NoReturn:
    raise ConfigError(f"the update's bytes cannot be read: {why}")
