"""A chain of update transforms: tensors to bytes at the sender, and back at the receiver."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

from torch import Tensor

from fedhybrid.errors import ConfigError
from fedhybrid.records import IntArray
from fedhybrid.tree import Tensors, total_bytes
from fedhybrid.updates import wire
from fedhybrid.updates.aggregate import check_update
from fedhybrid.updates.base import Context, Pieces, Transform
from fedhybrid.updates.lanes import Lanes, forms_of, places_in
from fedhybrid.updates.residue import STATE_PREFIX, after_sending, kept_errors

__all__ = ["Pipeline", "Received", "Sent", "exact_bytes", "order_problems"]

_NOTHING: Mapping[str, Tensor] = {}


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What leaves the sender.

    Attributes:
        payload: The bytes that travel.
        state: What the chain keeps for this client in place of what it kept before; it is never sent. Names begin with
            `STATE_PREFIX`.
    """

    payload: bytes = field(repr=False)
    state: Tensors = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Of the payload."""
        return len(self.payload)


@dataclass(frozen=True, kw_only=True)
class Received:
    """What the receiver makes of it.

    Attributes:
        values: Whole tensors, for the names that were sent; the reference's values outside a mask.
        masks: For some of these a bool tensor of the same shape, False where nothing was sent.
    """

    values: Tensors
    masks: Tensors = field(default_factory=dict)


@final
@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Update transforms that are applied from first to last, and undone from last to first.

    Attributes:
        parts: In the order of their stages, none twice.

    Raises:
        ConfigError: Another order.
    """

    parts: tuple[Transform, ...] = ()

    def __post_init__(self) -> None:
        problems = order_problems(list(enumerate(self.parts)))
        if problems:
            raise ConfigError([f"part {position} of the pipeline: {problem}" for position, problem in problems])

    @cached_property
    def is_identity(self) -> bool:
        """Whether every bit comes back as it was: no part changes anything that the receiver cannot undo."""
        return not any(part.lossy and not part.idle for part in self.parts)

    @cached_property
    def _active(self) -> tuple[Transform, ...]:
        """The parts that do something; none where nothing is lost, because even a difference would be rounded."""
        return () if self.is_identity else tuple(part for part in self.parts if not part.idle)

    def expected_bytes(self, reference: Mapping[str, Tensor]) -> int:
        """What a whole update without masks will take, exactly, before there is one."""
        if self.is_identity:
            return total_bytes(reference)
        return wire.HEADER_BYTES + sum(wire.piece_bytes(forms_of(self._active, t)[-1]) for t in reference.values())

    def encode(
        self,
        values: Mapping[str, Tensor],
        *,
        reference: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        seed: int,
        masks: Mapping[str, Tensor] = _NOTHING,
    ) -> Sent:
        """Turns an update into bytes.

        Args:
            values: Some or all of the reference's names, of the same shapes and types.
            reference: What the receiver will have too: the model that the client started from.
            state: What this client keeps: the `state` of its last `Sent`, other names are not looked at.
            seed: Of everything that is random; equal arguments give equal bytes.
            masks: For some names a bool tensor of the same shape; where it is False nothing is sent. One that is True
                everywhere says nothing and does not travel.

        Raises:
            ConfigError: Names, shapes or types are not the reference's.
        """
        if (problem := check_update(values, masks, reference)) is not None:
            raise ConfigError(f"the update cannot be sent: {problem}")
        names = sorted(reference)
        inside = {name: places_in(masks[name]) if name in masks else None for name in names if name in values}
        lanes = Lanes(parts=self._active, reference=reference, places=inside)
        kept = kept_errors(state, reference)
        pieces, contexts = lanes.pieces(values), lanes.contexts(errors=lanes.flat(kept), seed=seed)
        remembered: tuple[Pieces, int] | None = None
        for number, (part, context) in enumerate(zip(self._active, contexts, strict=True), start=1):
            pieces = part.encode(pieces, context)
            if part.remembers:
                remembered = pieces, number
        sent = lanes.narrowed(pieces)
        if remembered is not None:
            meant, number = remembered
            seen = _undone(lanes.widened(sent), self._active[number:], contexts[number:])
            kept = after_sending(kept, meant, seen, lanes)
        sections: list[bytes] = []
        for name, piece in sent.items():
            if (places := inside[name]) is not None:
                sections += wire.write_mask(places, values[name].numel())
            sections += wire.write_piece(piece, lanes.forms[name][-1])
        payload = wire.join([_kind(name, inside) for name in names], sections, self._layout(reference, names))
        return Sent(payload=payload, state={STATE_PREFIX + name: tensor for name, tensor in kept.items()})

    def decode(self, payload: bytes, *, reference: Mapping[str, Tensor]) -> Received:
        """Turns bytes back into an update.

        Args:
            payload: From outside: nothing in it is trusted.
            reference: As at the sender.

        Raises:
            ConfigError: The bytes are damaged, cut short, too many, or made for another model or pipeline.
        """
        names = sorted(reference)
        kinds, reader = wire.open_payload(payload, len(names), self._layout(reference, names))
        places: dict[str, IntArray | None] = {}
        read: Pieces = {}
        for name, kind in zip(names, kinds, strict=True):
            if kind != wire.ABSENT:
                total = reference[name].numel()
                places[name] = wire.read_mask(reader, total) if kind == wire.MASKED else None
                read[name] = wire.read_piece(reader, forms_of(self._active, reference[name], places[name])[-1])
        reader.close()
        if not read:
            raise ConfigError("the update's bytes cannot be read: they hold no tensor")
        lanes = Lanes(parts=self._active, reference=reference, places=places)
        pieces = _undone(read, self._active, lanes.contexts())
        return Received(values=lanes.whole(pieces), masks=lanes.masks())

    def _layout(self, reference: Mapping[str, Tensor], names: Sequence[str]) -> int:
        """Checksum of what both sides must agree on."""
        told = [(name, tuple(reference[name].shape), str(reference[name].dtype)) for name in names]
        return zlib.crc32(repr((told, self._active)).encode())


def exact_bytes(values: Mapping[str, Tensor], masks: Mapping[str, Tensor] = _NOTHING) -> int:
    """Bytes of tensors that travel as they are, where no payload is made: their elements inside the masks, and the
    masks.
    """
    if not masks:
        return total_bytes(values)
    sum_bytes = 0
    for name, tensor in values.items():
        count = total = tensor.numel()
        if name in masks and (count := int(masks[name].sum())) < total:
            sum_bytes += wire.mask_bytes(count, total)
        sum_bytes += count * tensor.element_size()
    return sum_bytes


def order_problems(parts: Sequence[tuple[int, Transform]]) -> list[tuple[int, str]]:
    """What is wrong with an order of transforms: (position, in words).

    Args:
        parts: (position, transform) in the order in question.
    """
    problems = []
    for number, (position, part) in enumerate(parts):
        earlier = [other for _, other in parts[:number]]
        if any(other.name == part.name for other in earlier):
            problems.append((position, f"{part.name} is there twice; take one of them out"))
        late = [other.name for other in earlier if other.stage > part.stage]
        if late:
            problems.append((position, f"{part.name} must stand before {', '.join(late)}"))
        if part.remembers and not any(other.lossy for _, other in parts[number + 1 :]):
            problems.append((position, f"{part.name} needs a transform after it that loses something, such as top-k"))
    return problems


def _kind(name: str, inside: Mapping[str, IntArray | None]) -> int:
    return wire.ABSENT if name not in inside else wire.WHOLE if inside[name] is None else wire.MASKED


def _undone(pieces: Pieces, parts: Sequence[Transform], contexts: Sequence[Context]) -> Pieces:
    for part, context in zip(reversed(parts), reversed(contexts), strict=True):
        pieces = part.decode(pieces, context)
    return pieces
