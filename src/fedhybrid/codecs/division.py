"""DIVISION: the averages of small blocks of each map in bfloat16, and what is left in two bits.

Source: G. Wang, Z. Liu, Z. Jiang, N. Liu, N. Zou, X. Hu, "DIVISION: Memory Efficient Training via Dual Activation
Precision", ICML 2023, https://arxiv.org/abs/2208.04187
Follows: the released pack and unpack: average pooling, residual against the rounded averages, range of each map,
stochastic rounding.
Differs: blocks at the border are averages of what is there (the released pooling leaves the border out, so that the
grid of averages does not lie on the map); ranges are rounded so that they cover the residual; maps end at whole bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fedhybrid.codecs import kernels, rows_plain
from fedhybrid.codecs.base import CodecState, flat_view
from fedhybrid.codecs.lossy import FLOAT_TYPES, LossyCodec
from fedhybrid.codecs.rows import RowLayout, refusal, round_down, run_bytes
from fedhybrid.errors import ConfigError

__all__ = ["Division", "division"]

_EPSILON = 2.0**-120
_LARGEST_MAGNITUDE = 2.0**126
_LARGEST_BLOCK, _SMALLEST_BLOCK, _BLOCKS = 2**16, 2**13, 32


@final
@dataclass(frozen=True, kw_only=True)
class Division:
    """The averages of small blocks of each map in bfloat16, and what is left in a few bits.

    Error, with R what is left of a map after its averages and r its range: at most (1 + 2**-6) (r + 2**-7 |least R|)
    / (2**bits - 1) and rounding of 32-bit floats, and unbiased. 16-bit types round once more.

    Attributes:
        block: Side of a block; maps of less height are one block high.
        bits: Of what is left: 1, 2, 4 or 8.
    """

    block: int = 8
    bits: int = 2

    def __post_init__(self) -> None:
        problems = []
        if self.block < 1:
            problems.append(f"block must be 1 or more, got {self.block}")
        if self.bits not in (1, 2, 4, 8):
            problems.append(f"bits must be 1, 2, 4 or 8, got {self.bits}")
        if problems:
            raise ConfigError(problems)

    @property
    def name(self) -> str:
        """As in `CODECS`."""
        return "division"

    def accepts(self, shape: Sequence[int], dtype: torch.dtype) -> bool:
        """Maps [batch, channels, height, width] of height 2 and more, of 32- and 16-bit floating point numbers."""
        return dtype in FLOAT_TYPES and len(shape) == 4 and shape[2] > 1

    def encoded_bytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Two an average, the bits of each map, four a map."""
        return sum(self._sizes(shape)) * shape[0] * shape[1]

    def encode_into(self, code: Tensor, x: Tensor, state: CodecState) -> None:
        """See `LossyPart`.

        Raises:
            FedHybridError: Something is not finite, or so large that what is left reaches 2**126.
        """
        seed, maps = state.next_seed(), _in_memory(x)
        if maps is not None and kernels.available():
            self._encode_maps(maps, code, seed, x)
            return
        for number, (begin, end, part) in enumerate(_parts(x, maps)):
            piece = torch.empty(sum(self._sizes(x.shape)) * (end - begin), dtype=torch.uint8)
            self._encode_maps(part, piece, (seed + number * 0x9E3779B97F4A7C15) % 2**63, x)
            for target, source in zip(self._split(code, x.shape), self._split(piece, x.shape), strict=True):
                target[begin:end] = source

    def decode_into(self, out: Tensor, code: Tensor) -> None:
        """See `LossyPart`."""
        maps = _in_memory(out)
        if maps is not None and kernels.available():
            self._decode_maps(code, maps)
            return
        for begin, end, part in _parts(out, maps, empty=True):
            piece = torch.empty(sum(self._sizes(out.shape)) * (end - begin), dtype=torch.uint8)
            for source, target in zip(self._split(code, out.shape), self._split(piece, out.shape), strict=True):
                target.copy_(source[begin:end])
            self._decode_maps(piece, part)
            if maps is None:
                _put(out, begin, part)

    def _pool(self, shape: Sequence[int]) -> int:
        return min(self.block, shape[-2])

    def _sizes(self, shape: Sequence[int]) -> tuple[int, int, int, int]:
        """Bytes a map of: averages, numbers, scale, lowest value."""
        height, width = shape[-2:]
        pool = self._pool(shape)
        return 2 * -(-height // pool) * -(-width // pool), run_bytes(height * width, self.bits), 2, 2

    def _split(self, code: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
        """The code's parts as (maps, bytes) each."""
        sizes = self._sizes(shape)
        maps = len(code) // sum(sizes)
        ends = list(accumulate(size * maps for size in sizes))
        return tuple(code[begin:end].view(maps, -1) for begin, end in zip([0, *ends], ends, strict=False))

    def _encode_maps(self, maps: Tensor, code: Tensor, seed: int, whole: Tensor) -> None:
        """Writes the code of contiguous maps, shape (maps, height, width)."""
        if kernels.available():
            count, height, width = maps.shape
            pool = self._pool(maps.shape)
            if not kernels.maps_encode(maps, count, height, width, pool, self.bits, _EPSILON, seed, code):
                raise refusal(self.name, whole)
            return
        averages_bytes, numbers, scale_bytes, low_bytes = self._split(code, maps.shape)
        averages = avg_pool2d(maps.float(), self._pool(maps.shape), ceil_mode=True).bfloat16()
        rest = maps - self._spread(averages, maps.shape)
        flat = rest.view(len(maps), -1)
        lowest, highest = flat.amin(1), flat.amax(1)
        if not float(torch.maximum(-lowest, highest).amax()) < _LARGEST_MAGNITUDE:
            raise refusal(self.name, whole)
        low = round_down(lowest, torch.bfloat16)
        scale = round_down((2**self.bits - 1) / (highest - low.float() + _EPSILON), torch.bfloat16)
        rows_plain.encode(
            flat.view(-1), *self._rows(maps.shape), low.float(), scale.float().reciprocal(), seed=seed,
            offsets=torch.arange(len(maps)) * numbers.shape[1], out=numbers.view(-1), positive=False, count=1,
        )  # fmt: skip
        for stored, value in ((averages_bytes, averages), (scale_bytes, scale), (low_bytes, low)):
            stored.view(-1).copy_(value.view(-1).view(torch.uint8))

    def _decode_maps(self, code: Tensor, maps: Tensor) -> None:
        """Fills contiguous maps, shape (maps, height, width)."""
        if kernels.available():
            count, height, width = maps.shape
            kernels.maps_decode(code, count, height, width, self._pool(maps.shape), self.bits, maps)
            return
        averages_bytes, numbers, scale_bytes, low_bytes = self._split(code, maps.shape)
        scale, low = (part.clone().view(torch.bfloat16).view(-1).float() for part in (scale_bytes, low_bytes))
        rest = torch.empty(maps.shape)
        rows_plain.decode(
            numbers.view(-1), *self._rows(maps.shape), low, scale.reciprocal(),
            offsets=torch.arange(len(maps)) * numbers.shape[1], out=rest.view(-1), count=1,
        )  # fmt: skip
        pool, (height, width) = self._pool(maps.shape), maps.shape[-2:]
        averages = averages_bytes.clone().view(torch.bfloat16).view(len(maps), -(-height // pool), -(-width // pool))
        maps.copy_(rest.add_(self._spread(averages, maps.shape)))

    def _rows(self, shape: Sequence[int]) -> tuple[RowLayout, Tensor]:
        maps, height, width = shape
        return RowLayout(1, maps, height * width), torch.full((maps,), self.bits, dtype=torch.uint8)

    def _spread(self, averages: Tensor, shape: Sequence[int]) -> Tensor:
        """Each average at every place of its block, 32-bit floats."""
        pool, (height, width) = self._pool(shape), shape[-2:]
        lines = averages.float().index_select(2, torch.arange(width) // pool)
        return lines.index_select(1, torch.arange(height) // pool)


class _Part(NamedTuple):
    begin: int
    end: int
    maps: Tensor


def _in_memory(x: Tensor) -> Tensor | None:
    """The maps one after the other as they lie in memory, shape (maps, height, width), if they lie so."""
    n, c, height, width = x.shape
    plain = (width == 1 or x.stride(3) == 1) and x.stride(2) == width
    return flat_view(x).view(n * c, height, width) if plain else None


def _parts(x: Tensor, maps: Tensor | None, *, empty: bool = False) -> Iterator[_Part]:
    """A few maps at a time: as they lie in memory, else copies (or memory for them) in the order of the indices."""
    size = x.shape[2] * x.shape[3]
    wanted = min(_LARGEST_BLOCK, max(_SMALLEST_BLOCK, x.numel() // _BLOCKS))
    count, total = max(1, wanted // size), x.shape[0] * x.shape[1]
    for begin in range(0, total, count):
        end = min(total, begin + count)
        if maps is not None:
            yield _Part(begin, end, maps[begin:end])
            continue
        part = torch.empty((end - begin, *x.shape[2:]), dtype=x.dtype)
        if not empty:
            for view, piece in _lines(x, begin, part):
                piece.copy_(view)
        yield _Part(begin, end, part)


def _put(out: Tensor, begin: int, part: Tensor) -> None:
    for view, piece in _lines(out, begin, part):
        view.copy_(piece)


def _lines(x: Tensor, begin: int, part: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Maps from number `begin` on: those of one sample in `x`, and their places in `part`."""
    channels, done = x.shape[1], 0
    while done < len(part):
        sample, first = divmod(begin + done, channels)
        count = min(channels - first, len(part) - done)
        yield x[sample, first : first + count], part[done : done + count]
        done += count


def division(
    *, block: int = 8, bits: int = 2, gates: tuple[float, float] | None = None, clamped: bool = False
) -> LossyCodec:
    """Block averages in bfloat16 and the rest in two bits (DIVISION), for maps, with exact gates if asked.

    `clamped` is taken as every lossy codec takes it, and makes no difference.
    """
    return LossyCodec(Division(block=block, bits=bits), gates)
