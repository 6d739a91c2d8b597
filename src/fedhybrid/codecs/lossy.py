"""What lossy codecs share: they write to memory that is given, so that exact gates can be put round any of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from fedhybrid.codecs.base import CodecState, empty_dense, flat_view, numel_of, span_elements, spans
from fedhybrid.codecs.bits import Packer, packed_bytes
from fedhybrid.codecs.gates import Gates, exceeding
from fedhybrid.errors import ConfigError, FedHybridError

__all__ = ["FLOAT_TYPES", "LossyCodec", "LossyPart"]

FLOAT_TYPES = (torch.float32, torch.bfloat16, torch.float16)

_FACT_BYTES = 8  # smallest and largest value, 32-bit floats
_ALIGNED_BYTES = 8


class LossyPart(Protocol):
    """How numbers become bytes and come back; see `Codec` for what the methods have in common with it."""

    @property
    def name(self) -> str:
        """As in `CODECS`."""
        ...

    def accepts(self, shape: Sequence[int], dtype: torch.dtype) -> bool:
        """Whether tensors of this shape and type can be encoded."""
        ...

    def encoded_bytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Length of the code."""
        ...

    def encode_into(self, code: Tensor, x: Tensor, state: CodecState) -> None:
        """Writes every byte of the code; `code` begins at a multiple of 8 bytes, `x` has elements."""
        ...

    def decode_into(self, out: Tensor, code: Tensor) -> None:
        """Writes every element of `out`, which has the shape, strides and type of what was encoded, and elements."""
        ...


@final
@dataclass(frozen=True)
class LossyCodec:
    """A lossy codec, with exact gates if asked: one bit an element and finite gate keeps each element on its side.

    Attributes:
        part: What it is made of; its docstring states the error. Gates move a value towards the element's.
        gates: (low, high), infinite where there is none: `x <= low`, `low < x < high` and `x >= high` hold for every
            decoded element exactly where they held before. If nothing lies beyond the gates (the output of a clamp),
            what lies on one is decoded to it exactly.
    """

    part: LossyPart
    gates: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.gates is not None and not self.gates[0] < self.gates[1]:
            raise ConfigError(f"gates must be (low, high) with low < high, got {self.gates}")

    @property
    def name(self) -> str:
        """As in `CODECS`."""
        return self.part.name

    @property
    def lossless(self) -> bool:
        """Never."""
        return False

    def accepts(self, shape: Sequence[int], dtype: torch.dtype) -> bool:
        """What the part accepts."""
        return self.part.accepts(shape, dtype)

    def encoded_bytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """The part's bytes; with gates, one bit an element and gate, and two numbers."""
        if not numel_of(shape):
            return 0
        return self._begin(numel_of(shape), dtype) + self.part.encoded_bytes(shape, dtype)

    def encode(self, x: Tensor, state: CodecState | None = None) -> Tensor:
        """See `Codec`; the part says which values it refuses.

        Raises:
            FedHybridError: There are gates and something in `x` is not finite.
        """
        code = torch.empty(self.encoded_bytes(x.shape, x.dtype), dtype=torch.uint8)
        if x.numel():
            begin = self._begin(x.numel(), x.dtype)
            if begin:
                self._keep_gates(x, code[:begin])
            self.part.encode_into(code[begin:], x, CodecState() if state is None else state)
        return code

    def decode(self, code: Tensor, like_shape: Sequence[int], like_stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Codec`."""
        out = empty_dense(like_shape, like_stride, dtype)
        if out.numel():
            begin = self._begin(out.numel(), dtype)
            self.part.decode_into(out, code[begin:])
            if begin:
                self._enforce_gates(out, code[:begin])
        return out

    def _begin(self, numel: int, dtype: torch.dtype) -> int:
        """Where the part's code begins."""
        planes = Gates.of(self.gates, dtype).planes
        kept_bytes = _FACT_BYTES + planes * packed_bytes(numel) if planes else 0
        return -(-kept_bytes // _ALIGNED_BYTES) * _ALIGNED_BYTES

    def _keep_gates(self, x: Tensor, kept: Tensor) -> None:
        elements, gates = flat_view(x), Gates.of(self.gates, x.dtype)
        packer, lowest, highest = Packer(span_elements(x.numel())), math.inf, -math.inf
        kept[-_ALIGNED_BYTES:] = 0
        for begin, end in spans(x.numel()):
            span = elements[begin:end].float()
            low, high = (float(bound) for bound in span.aminmax())
            if not (math.isfinite(low) and math.isfinite(high)):
                raise FedHybridError(
                    f"exact gates need finite numbers; a {x.dtype} tensor of shape {list(x.shape)} holds nan or "
                    "infinity. The training has diverged (try a smaller learning rate), or keep this tensor."
                )
            lowest, highest = min(lowest, low), max(highest, high)
            for number, threshold in enumerate(gates.thresholds):
                packer.mark(exceeding(span, threshold))
                packer.pack(kept[_FACT_BYTES + number * packed_bytes(x.numel()) + begin // 8 :])
        kept[:_FACT_BYTES].view(torch.float32).copy_(torch.tensor((lowest, highest)))

    def _enforce_gates(self, out: Tensor, kept: Tensor) -> None:
        elements, gates = flat_view(out), Gates.of(self.gates, out.dtype)
        low, high = kept[:_FACT_BYTES].view(torch.float32).tolist()
        planes = [kept[_FACT_BYTES + i * packed_bytes(out.numel()) :] for i in range(gates.planes)]
        for begin, end in spans(out.numel()):
            span = elements[begin:end].float()  # no copy of 32-bit elements
            gates.enforce(span.clamp_(low, high), (low, high), [plane[begin // 8 :] for plane in planes])
            if span.dtype != out.dtype:
                elements[begin:end] = span
