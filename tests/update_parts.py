"""Updates of all kinds of tensors, for the tests of their transforms."""

from __future__ import annotations

import struct
import zlib
from itertools import permutations
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fedhybrid.errors import ConfigError
from fedhybrid.tree import Tensors
from fedhybrid.updates import TRANSFORMS, Pipeline, parse_pipeline

# Options with which each transform does something.
EXAMPLES: dict[str, dict[str, Any]] = {
    "clip": {"max_norm": 0.5},
    "delta": {},
    "error-feedback": {},
    "quantise": {"bits": 5},
    "top-k": {"ratio": 0.3},
}
TYPES = (
    torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8,
    torch.bool,
)  # fmt: skip
SHAPES = ((), (0,), (1,), (7,), (3, 0, 2), (2, 3), (4, 3, 3, 3), (257,))


def chain(*names: str, **options: dict[str, Any]) -> Pipeline:
    """The named transforms with the example's options, or those given by `name_with_underscores`."""
    tables = [{"name": name, **EXAMPLES[name], **options.get(name.replace("-", "_"), {})} for name in names]
    return parse_pipeline(tables, where="test")


def every_order() -> dict[str, Pipeline]:
    """All chains of one to five transforms that can be made, by their names."""
    found = {}
    for count in range(1, len(TRANSFORMS) + 1):
        for names in permutations(sorted(TRANSFORMS), count):
            try:
                found[" ".join(names)] = chain(*names)
            except ConfigError:
                continue
    return found


def tensor_of(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    high = 2 if dtype == torch.bool else 100
    return torch.randint(0, high, shape, generator=generator).to(dtype)


@st.composite
def models(draw: st.DrawFn) -> Tensors:
    """A model of one to five tensors of all shapes and types."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    kinds = draw(st.lists(st.tuples(st.sampled_from(SHAPES), st.sampled_from(TYPES)), min_size=1, max_size=5))
    return {f"layer{i}.{dtype}": tensor_of(shape, dtype, generator) for i, (shape, dtype) in enumerate(kinds)}


@st.composite
def updates(draw: st.DrawFn, partial: bool = True) -> tuple[Tensors, Tensors, Tensors]:
    """(reference, values, masks); some names may be missing, some masked."""
    reference = draw(models())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    values = {name: tensor_of(tuple(t.shape), t.dtype, generator) for name, t in reference.items()}
    masks: Tensors = {}
    if partial:
        names = draw(st.lists(st.sampled_from(sorted(values)), min_size=1, unique=True))
        values = {name: values[name] for name in names}
        for name in draw(st.lists(st.sampled_from(names), unique=True)):
            share = draw(st.sampled_from((0.0, 0.02, 0.5, 1.0)))
            masks[name] = torch.rand(values[name].shape, generator=generator) < share
    return reference, values, masks


def bits_of(tensors: Tensors) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """Something that is equal only where every bit is."""
    return {
        name: (t.dtype, tuple(t.shape), t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, t in tensors.items()
    }


def with_checksum(payload: bytes) -> bytes:
    """The payload as a sender would make it who damages it on purpose."""
    return payload[:8] + struct.pack("<I", zlib.crc32(payload[12:])) + payload[12:]
