"""What an update transform is: a step from named tensors towards the bytes that travel, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedhybrid.records import IntArray

__all__ = ["FLOATS", "Codes", "Context", "Form", "Piece", "Pieces", "Transform", "working_type"]

# What transforms may change. Other types travel as they are, element for element.
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Codes(NamedTuple):
    """Numbers of evenly spaced levels.

    Attributes:
        numbers: The level of each value, from 0 on.
        low: Value of the first level.
        high: Value of the last one; both are nan where the values were not finite.
    """

    numbers: NDArray[np.unsignedinteger]
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One tensor of an update on its way; nobody writes into one, for it may share memory with the model.

    Attributes:
        values: The numbers that are sent, in the tensor's order, of its `working_type`. Shape (count,); (0,) where
            `codes` stand for them.
        total: Elements that there were before some were chosen.
        places: Which of them are sent, ascending; None where all are.
        codes: Levels instead of values.
    """

    values: Tensor
    total: int
    places: IntArray | None = None
    codes: Codes | None = None


Pieces = dict[str, Piece]


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a piece is written down, which both sides know beforehand: it depends on no value.

    Attributes:
        dtype: The tensor's own type.
        total: Elements that there were before some were chosen.
        count: Elements that are sent.
        bits: Of the number of a level; None where the values themselves are sent.
    """

    dtype: torch.dtype
    total: int
    count: int
    bits: int | None = None


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a transform may look at beside the update; tensors are flat and hold what the update's mask lets through.

    Attributes:
        base: The reference, by the names of the pieces, each of its `working_type`.
        forms: How this transform shall leave each piece.
        errors: What earlier updates of this client lost, likewise, for some names.
        seed: Of everything that is random.
    """

    base: Mapping[str, Tensor]
    forms: Mapping[str, Form]
    errors: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0


class Transform(Protocol):
    """One link of a chain that makes an update smaller: a frozen dataclass of its options, without state.

    Attributes:
        stage: Transforms of a chain stand in ascending order of it, those of one stage in any.
        lossy: Whether what comes back may differ by more than rounding.
        remembers: Whether what later transforms lose is added to the client's next update.
    """

    stage: ClassVar[int]
    lossy: ClassVar[bool]
    remembers: ClassVar[bool]

    @property
    def name(self) -> str:
        """As in `TRANSFORMS`."""
        ...

    @property
    def idle(self) -> bool:
        """Whether with these options nothing is changed."""
        ...

    def form(self, form: Form) -> Form:
        """How a piece is written down after `encode`, from how it would have been before."""
        ...

    def encode(self, pieces: Pieces, context: Context) -> Pieces:
        """The step towards the wire; names stay."""
        ...

    def decode(self, pieces: Pieces, context: Context) -> Pieces:
        """The way back, as far as there is one."""
        ...


def working_type(dtype: torch.dtype) -> torch.dtype:
    """The type that a tensor is worked on in: 16-bit floats would lose small errors that add up.

    >>> working_type(torch.bfloat16)
    torch.float32
    """
    return torch.float32 if dtype in FLOATS[2:] else dtype
