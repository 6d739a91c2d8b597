"""The tensors of one update, flat and seen through their masks: what a chain works on, and the way back to shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import final

import numpy as np
import torch
from torch import Tensor

from fedhybrid.records import IntArray
from fedhybrid.tree import Tensors
from fedhybrid.updates.base import Context, Form, Piece, Pieces, Transform, working_type

__all__ = ["Lanes", "forms_of", "places_in", "with_values_at"]


@final
@dataclass(frozen=True, kw_only=True)
class Lanes:
    """Which tensors are sent, and which elements of each.

    Attributes:
        parts: Of the chain.
        reference: The model.
        places: For each name that is sent, in ascending order, where its mask is True; None without a mask.
    """

    parts: tuple[Transform, ...]
    reference: Mapping[str, Tensor]
    places: Mapping[str, IntArray | None]

    @cached_property
    def forms(self) -> dict[str, tuple[Form, ...]]:
        """See `forms_of`, by name."""
        return {name: forms_of(self.parts, self.reference[name], inside) for name, inside in self.places.items()}

    def flat(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """Those of the tensors that are sent, shape (elements inside the mask,), of their working types."""
        return {name: _flat(tensors[name], inside) for name, inside in self.places.items() if name in tensors}

    def pieces(self, tensors: Mapping[str, Tensor]) -> Pieces:
        """The same, at the beginning of the chain."""
        return {name: Piece(values=values, total=values.numel()) for name, values in self.flat(tensors).items()}

    def contexts(self, *, errors: Mapping[str, Tensor] | None = None, seed: int = 0) -> list[Context]:
        """What each part may look at."""
        base = self.flat(self.reference) if self.parts else {}
        return [
            Context(base=base, errors=errors or {}, seed=seed, forms={n: steps[at] for n, steps in self.forms.items()})
            for at in range(1, len(self.parts) + 1)
        ]

    def narrowed(self, pieces: Pieces) -> Pieces:
        """With the tensors' own types, in which values travel."""
        return {name: _typed(piece, self.reference[name].dtype) for name, piece in pieces.items()}

    def widened(self, pieces: Pieces) -> Pieces:
        """With their working types, as the receiver has them."""
        return {name: _typed(piece, working_type(self.reference[name].dtype)) for name, piece in pieces.items()}

    def whole(self, pieces: Pieces) -> Tensors:
        """Tensors of the reference's shapes and types from the beginning of the chain; its values outside the masks."""
        whole = {}
        for name, piece in pieces.items():
            expected, inside = self.reference[name].detach().to("cpu"), self.places[name]
            values = piece.values.to(expected.dtype)
            whole[name] = (
                values.view(expected.shape) if inside is None else with_values_at(expected, inside, values)
            )  # fmt: skip
        return whole

    def masks(self) -> Tensors:
        """The masks that `places` were made from."""
        return {
            name: with_values_at(torch.zeros(self.reference[name].shape, dtype=torch.bool), inside, True)
            for name, inside in self.places.items()
            if inside is not None
        }


def forms_of(parts: Sequence[Transform], tensor: Tensor, places: IntArray | None = None) -> tuple[Form, ...]:
    """How a tensor would be written down before the first part, and after each."""
    return _forms(tuple(parts), tensor.dtype, tensor.numel() if places is None else len(places))


@lru_cache(maxsize=4096)
def _forms(parts: tuple[Transform, ...], dtype: torch.dtype, count: int) -> tuple[Form, ...]:
    forms = [Form(dtype=dtype, total=count, count=count)]
    for part in parts:
        forms.append(part.form(forms[-1]))
    return tuple(forms)


def places_in(mask: Tensor) -> IntArray | None:
    """Where a mask is True; None where it is everywhere."""
    flat = mask.detach().to("cpu").reshape(-1).numpy()
    return None if flat.all() else np.flatnonzero(flat)


def with_values_at(whole: Tensor, places: IntArray, values: Tensor | bool) -> Tensor:
    """A copy with other values at some places."""
    copy = whole.clone(memory_format=torch.contiguous_format)
    copy.view(-1)[torch.from_numpy(places)] = values
    return copy


def _flat(tensor: Tensor, places: IntArray | None) -> Tensor:
    flat = tensor.detach().to("cpu").reshape(-1)
    return (flat if places is None else flat[torch.from_numpy(places)]).to(working_type(tensor.dtype))


def _typed(piece: Piece, dtype: torch.dtype) -> Piece:
    return piece if piece.values.dtype == dtype else replace(piece, values=piece.values.to(dtype))
