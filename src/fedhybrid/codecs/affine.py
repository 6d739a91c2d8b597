"""Groups of elements in 8, 4 or 2 bits each, between the group's smallest and largest value.

Exact gates: a small positive output of a ReLU that is rounded to 0 switches a gradient off, which harms training far
more than the rounding itself. There are two ways to keep every element on its side of a gate. If the tensor was clamped
to its gates, nothing lies beyond them, and the outermost numbers of a group can mean "on the gate" and nothing else: no
byte more. Otherwise one bit an element and gate is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from fedhybrid.codecs import affine_plain, kernels
from fedhybrid.codecs.base import CodecState, empty_dense, flat_view, numel_of
from fedhybrid.codecs.bits import packed_bytes
from fedhybrid.codecs.gates import Gates
from fedhybrid.errors import ConfigError, FedHybridError

__all__ = ["GroupAffine", "affine_2", "affine_4", "affine_8"]

_WIDTHS = (2, 4, 8)
_ROUNDINGS = ("nearest", "stochastic")
_SMALLEST_GROUP, _LARGEST_GROUP = 8, 2**15  # whole bytes of 1 bit each; the smallest span
_RANGE_BYTES = 8  # two 32-bit floats
_NO_GATES, _CLAMPED, _PLANES = 0, 1, 2  # as in native/jobs.hpp


@final
@dataclass(frozen=True, kw_only=True)
class GroupAffine:
    """Groups of elements in 8, 4 or 2 bits each, between the group's smallest and largest value.

    Error, with r = largest - smallest value and m = largest magnitude of the group, n = 2**bits - 1 less one for each
    finite gate of a clamped tensor (there r is of what lies strictly between the gates): at most
    r / (2 n) (1 + 2**-10) + 2**-20 m if rounding is to nearest, r / n (1 + 2**-10) + 2**-20 m if it is stochastic; a
    16-bit type rounds once more.

    Where there are no compiled kernels, with M = largest magnitude of all: r / 510 + 2**-19 M in 8 bits;
    r / 2n + 2**-11 m + 2**-10 r + 2**-19 M in 4 and 2, whose ranges are 16-bit floats; and r / (2**bits - 1) + 2**-20 m
    of a clamped tensor, r being from gate to gate in groups with elements on both.

    Planes of gates move a value towards the element's, never away.

    Attributes:
        bits: 8, 4 or 2.
        group: Elements a group, a power of two; less than 256 is slow.
        gates: (low, high), infinite where there is none: `x <= low`, `low < x < high` and `x >= high` hold for every
            decoded element exactly where they held before.
        clamped: Nothing lies beyond the gates; the tensor is the output of a clamp. Then what lies on a gate is decoded
            to it exactly, and gates cost nothing. Otherwise they cost one bit an element and finite gate. Elements
            beyond, of which there should be none, are decoded to the gate.
        rounding: "nearest", or "stochastic": up or down at random so that the decoded value is right on average, up to
            2**-12 of r / n (what lies on a gate stays there). Without compiled kernels it is to nearest in any case.
    """

    bits: Literal[2, 4, 8] = 8
    group: int = 256
    gates: tuple[float, float] | None = None
    clamped: bool = False
    rounding: Literal["nearest", "stochastic"] = "nearest"

    def __post_init__(self) -> None:
        problems = []
        if self.bits not in _WIDTHS:
            problems.append(f"bits must be 2, 4 or 8, got {self.bits}")
        if not _SMALLEST_GROUP <= self.group <= _LARGEST_GROUP or self.group & (self.group - 1):
            problems.append(
                f"group must be a power of two from {_SMALLEST_GROUP} to {_LARGEST_GROUP}, got {self.group}"
            )
        if self.gates is not None and not self.gates[0] < self.gates[1]:
            problems.append(f"gates must be (low, high) with low < high, got {self.gates}")
        if self.clamped and self.gates is None:
            problems.append("clamped needs gates, got none")
        if self.rounding not in _ROUNDINGS:
            problems.append(f"rounding must be {' or '.join(map(repr, _ROUNDINGS))}, got {self.rounding!r}")
        if problems:
            raise ConfigError(problems)

    @property
    def name(self) -> str:
        """As in `CODECS`."""
        return f"affine-{self.bits}"

    @property
    def lossless(self) -> bool:
        """Never."""
        return False

    def accepts(self, shape: Sequence[int], dtype: torch.dtype) -> bool:
        """32- and 16-bit floating point numbers."""
        return dtype in kernels.TYPES

    def encoded_bytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """The groups' numbers, two 32-bit floats a group, and one bit an element and finite gate if not clamped."""
        numel, planes = numel_of(shape), 0 if self.clamped else Gates.of(self.gates, dtype).planes
        row_bytes = self.group * self.bits // 8 + _RANGE_BYTES
        return row_bytes * -(-numel // self.group) + planes * packed_bytes(numel)

    def encode(self, x: Tensor, state: CodecState | None = None) -> Tensor:
        """See `Codec`.

        Raises:
            FedHybridError: Something in `x` is not finite. One nan would silently spoil its whole group, and the look
                at each group's range is needed anyway.
        """
        code = torch.empty(self.encoded_bytes(x.shape, x.dtype), dtype=torch.uint8)
        elements, gates = flat_view(x), Gates.of(self.gates, x.dtype)
        if not x.numel():
            return code
        if kernels.available():
            seed = (CodecState() if state is None else state).next_seed() if self.rounding == "stochastic" else None
            finite = kernels.groups_encode(elements, self._job(gates, x.numel()), code, seed=seed)
        elif self.clamped:
            finite = affine_plain.encode_clamped(elements, code, bits=self.bits, group=self.group, gates=gates)
        else:
            finite = affine_plain.encode(elements, code, bits=self.bits, group=self.group, gates=gates)
        if not finite:
            raise FedHybridError(
                f"the codec {self.name!r} stores finite numbers; a {x.dtype} tensor of shape {list(x.shape)} holds "
                "nan or infinity. The training has diverged (try a smaller learning rate), or keep this tensor."
            )
        return code

    def decode(self, code: Tensor, like_shape: Sequence[int], like_stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Codec`."""
        out, gates = empty_dense(like_shape, like_stride, dtype), Gates.of(self.gates, dtype)
        if not out.numel():
            return out
        if kernels.available():
            kernels.groups_decode(code, self._job(gates, out.numel()), flat_view(out))
        elif self.clamped:
            affine_plain.decode_clamped(code, flat_view(out), bits=self.bits, group=self.group, gates=gates)
        else:
            affine_plain.decode(code, flat_view(out), bits=self.bits, group=self.group, gates=gates)
        return out

    def _job(self, gates: Gates, numel: int) -> kernels.Groups:
        kept = _NO_GATES if not gates.planes else _CLAMPED if self.clamped else _PLANES
        return kernels.Groups(
            numel=numel, group=self.group, type=kernels.TYPES[gates.dtype], bits=self.bits, gates=kept,
            low=gates.low, high=gates.high, outside_low=gates.outside_low, inside_low=gates.inside_low,
            inside_high=gates.inside_high, outside_high=gates.outside_high,
        )  # fmt: skip


def affine_8(
    gates: tuple[float, float] | None = None,
    clamped: bool = False,
    rounding: Literal["nearest", "stochastic"] = "nearest",
) -> GroupAffine:
    """Groups of 256 elements in 8 bits each (26 % of 32-bit floats), with exact gates if asked."""
    return GroupAffine(bits=8, gates=gates, clamped=clamped, rounding=rounding)


def affine_4(
    gates: tuple[float, float] | None = None,
    clamped: bool = False,
    rounding: Literal["nearest", "stochastic"] = "nearest",
) -> GroupAffine:
    """Groups of 256 elements in 4 bits each (13 % of 32-bit floats), with exact gates if asked."""
    return GroupAffine(bits=4, gates=gates, clamped=clamped, rounding=rounding)


def affine_2(
    gates: tuple[float, float] | None = None,
    clamped: bool = False,
    rounding: Literal["nearest", "stochastic"] = "nearest",
) -> GroupAffine:
    """Groups of 256 elements in 2 bits each (7 % of 32-bit floats), with exact gates if asked."""
    return GroupAffine(bits=2, gates=gates, clamped=clamped, rounding=rounding)
