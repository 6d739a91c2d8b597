"""Which parts of a weight are kept or dropped together, how many are kept, and where their elements stand.

Source of the schemes: G. Yuan et al., "MEST: Accurate and Fast Memory-Economic Sparse Training Framework on the Edge",
NeurIPS 2021, https://arxiv.org/abs/2110.14032, section 3. RECONSTRUCTED: the eight patterns, and the layouts in memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["PATTERNS", "SCHEMES", "Layout"]

SCHEMES = ("irregular", "block", "pattern", "channel")

_BLOCK_FILTERS = 4
_KERNEL = 9
_CENTRE = 4
# Elements of a 3 x 3 kernel, row by row, that each pattern keeps: four squares and four T shapes round the centre.
PATTERNS = (
    (0, 1, 3, 4), (1, 2, 4, 5), (3, 4, 6, 7), (4, 5, 7, 8),
    (1, 3, 4, 5), (3, 4, 5, 7), (1, 3, 4, 7), (1, 4, 5, 7),
)  # fmt: skip
_PATTERN_ELEMENTS = 4
# The n-th neighbour of the centre of each pattern, four bits for each pattern, the first in the lowest bits: looked up
# by a shift, so that a step needs no table.
_NEIGHBOURS = tuple(
    sum([p for p in pattern if p != _CENTRE][n] << (4 * number) for number, pattern in enumerate(PATTERNS))
    for n in range(_PATTERN_ELEMENTS - 1)
)


@final
@dataclass(frozen=True, kw_only=True)
class Layout:
    """A weight in units: elements that are kept or dropped together.

    Units: "irregular" single elements; "block" one column (input channel and place in the kernel) of 4 consecutive
    filters (of 2 or 1 where 4 does not divide their number); "pattern" a 3 x 3 kernel, of which one of `PATTERNS`
    is kept; "channel" a filter. Units are numbered in the order of the weight's elements.

    Attributes:
        scheme: One of `SCHEMES`.
        shape: Of the dense weight: (out, in, height, width) or (out, in).

    >>> Layout(scheme="irregular", shape=(16, 16, 3, 3)).kept(0.9)
    230
    """

    scheme: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements of the dense weight."""
        return math.prod(self.shape)

    @property
    def columns(self) -> int:
        """Elements of one filter."""
        return self.numel // self.shape[0]

    @property
    def block_filters(self) -> int:
        """Filters of a block."""
        return math.gcd(self.shape[0], _BLOCK_FILTERS)

    @property
    def units(self) -> int:
        """How many there are."""
        return {
            "irregular": self.numel,
            "block": self.numel // self.block_filters,
            "pattern": self.numel // _KERNEL,
            "channel": self.shape[0],
        }[self.scheme]

    @property
    def unit_elements(self) -> int:
        """Elements of a unit that are held where it is kept."""
        return {
            "irregular": 1,
            "block": self.block_filters,
            "pattern": _PATTERN_ELEMENTS,
            "channel": self.columns,
        }[self.scheme]

    @property
    def groups(self) -> int:
        """Runs of units of which equally many are kept: filters for "pattern", else all are one."""
        return self.shape[0] if self.scheme == "pattern" else 1

    @property
    def has_patterns(self) -> bool:
        """Whether each unit has a pattern beside its place."""
        return self.scheme == "pattern"

    @property
    def least_sparsity(self) -> float:
        """Patterns keep 4 of 9 elements of a kernel, so no weight is denser than that."""
        return 1 - _PATTERN_ELEMENTS / _KERNEL if self.has_patterns else 0.0

    def kept(self, sparsity: float) -> int:
        """Units kept at this sparsity, the ratio of elements that are zero; at least one in each group.

        Patterns: a kernel holds 4 of 9 elements, so the ratio of kernels is (1 - sparsity) 9 / 4.
        """
        run = self.units // self.groups
        ratio = 1 - sparsity
        if self.has_patterns:
            ratio *= _KERNEL / _PATTERN_ELEMENTS
        return self.groups * min(run, max(1, run - round((1 - ratio) * run)))

    @property
    def place_dtype(self) -> torch.dtype:
        """The smaller integer that holds the number of every unit; see `numbers`."""
        return torch.int16 if self.units <= 2**16 else torch.int32

    def numbers(self, places: Tensor) -> Tensor:
        """Places as whole numbers, int32: in two bytes those from 32768 on are stored as negative ones."""
        wide = places.to(torch.int32)
        return wide.bitwise_and(2**16 - 1) if 2**15 < self.units <= 2**16 else wide

    def values_shape(self, kept: int) -> tuple[int, ...]:
        """Of the values of so many units: (units, elements of a unit), with as many dimensions as the weight has.

        Parameter groups that go by dimensions so treat values like the weight.
        """
        return (kept, self.unit_elements, *(1,) * (len(self.shape) - 2))

    def addresses(self, places: Tensor, patterns: Tensor | None = None) -> Tensor:
        """Numbers of the elements that units hold, in the flattened dense weight: int32 of shape (units, elements).

        Args:
            places: The units, of `place_dtype`.
            patterns: Numbers of their patterns, uint8; where the scheme has them.
        """
        place = self.numbers(places)
        if self.scheme == "irregular":
            return place[:, None]
        if self.scheme == "block":
            block = torch.div(place, self.columns, rounding_mode="floor")
            first = place + block * ((self.block_filters - 1) * self.columns)
            rows = [first + row * self.columns for row in range(self.block_filters)]
            return torch.stack(rows, dim=1)
        if self.scheme == "channel":
            within = torch.arange(self.columns, dtype=torch.int32, device=places.device)
            return place[:, None] * self.columns + within
        assert patterns is not None
        shifts = patterns.to(torch.int32) * 4
        kernel = place * _KERNEL
        chosen = [kernel + _CENTRE]
        for table in _NEIGHBOURS:
            chosen.append(kernel + torch.bitwise_right_shift(torch.full_like(shifts, table), shifts).bitwise_and(15))
        return torch.stack(chosen, dim=1)

    def scattered(self, values: Tensor, places: Tensor, patterns: Tensor | None = None) -> Tensor:
        """The dense weight with these values, zero elsewhere. Makes one dense tensor."""
        addresses = self.addresses(places, patterns).reshape(-1)
        zeros = values.new_zeros(1).expand(self.numel)
        return zeros.index_add(0, addresses, values.reshape(-1)).view(self.shape)

    def gathered(self, weight: Tensor, places: Tensor, patterns: Tensor | None = None) -> Tensor:
        """The values that units have in a dense weight; the inverse of `scattered` for what a mask keeps."""
        addresses = self.addresses(places, patterns).reshape(-1)
        return weight.reshape(-1).index_select(0, addresses).view(self.values_shape(len(places)))
