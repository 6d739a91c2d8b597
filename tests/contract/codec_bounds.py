"""The error that each lossy codec states, for each element, and values that each codec takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fedhybrid.codecs import Codec, CodecState, GroupAffine, kernels

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
TYPES = (*FLOATS, torch.int64, torch.int32)
Bound = Callable[..., Tensor]


def values_for(codec: Codec, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if not dtype.is_floating_point:
        return torch.randint(0, 2**15, shape, generator=generator).to(dtype)
    if codec.name == "bits":
        return (torch.rand(shape, generator=generator) < 0.7).to(dtype) * torch.tensor(1 / 0.7, dtype=dtype)
    values = torch.randn(shape, generator=generator).to(dtype)
    if codec.name == "sparse":
        values.view(-1)[1::2] = 0
    return values


def shape_for(codec: Codec, shape: tuple[int, int, int]) -> tuple[int, ...]:
    """That shape, or one of four dimensions and as many elements for codecs that take nothing else."""
    if any(codec.accepts(shape, dtype) for dtype in TYPES):
        return shape
    a, b, c = shape
    height = next(h for h in range(min(b, 14), 0, -1) if b % h == 0)
    return (a, b // height, height, c)


def type_for(codec: Codec, shape: tuple[int, ...], dtype: torch.dtype) -> torch.dtype:
    return dtype if codec.accepts(shape, dtype) else torch.int64


def bound_of(codec: Codec, x: Tensor, state: CodecState) -> Tensor:
    """The stated bound of each element of `x`, after `state` was used to encode it; the type's last rounding included.

    A lossy row of the table that has no entry here fails the contract.
    """
    if codec.lossless:
        return torch.zeros(x.shape, dtype=torch.float64)
    bound = BOUNDS[codec.name](codec, x, state).reshape(x.shape)
    if codec.name in ("bf16", "sparse"):
        return bound
    return bound + (x.double().abs() + bound) * torch.finfo(x.dtype).eps * 2 + torch.finfo(x.dtype).smallest_normal


def _affine(codec: GroupAffine, x: Tensor, state: CodecState) -> Tensor:
    """Groups are those of the elements in order: for contiguous tensors, no gates."""
    bounds, levels = [], 2**codec.bits - 1
    for group in x.double().flatten().split(codec.group):
        spread, magnitude = group.max() - group.min(), group.abs().max()
        if kernels.available():
            step = spread / levels if codec.rounding == "stochastic" else spread / (2 * levels)
            rounding = step * (1 + 2**-10) + magnitude / 2**20
        elif codec.bits == 8:
            rounding = spread / 510
        else:
            rounding = spread / (2 * levels) + magnitude / 2**11 + spread / 2**10
        bounds.append(rounding.expand(len(group)))
    return torch.cat(bounds) + (0 if kernels.available() else x.double().abs().max() / 2**19)


def _bf16(codec: Codec, x: Tensor, state: CodecState) -> Tensor:
    exact = x.dtype != torch.float32
    return torch.zeros_like(x, dtype=torch.float64) if exact else x.double().abs() / 2**8 + 2.0**-134


def _sparse(codec: Codec, x: Tensor, state: CodecState) -> Tensor:
    return torch.zeros_like(x, dtype=torch.float64)


def channels_last(x: Tensor) -> Tensor:
    """The elements as (others, channels): dimension 1 of four and more, else the last one."""
    return x.movedim(1 if x.dim() > 3 else -1, -1).reshape(-1, x.shape[1 if x.dim() > 3 else -1])


def back(flat: Tensor, like: Tensor) -> Tensor:
    dim = 1 if like.dim() > 3 else like.dim() - 1
    return flat.reshape(like.movedim(dim, -1).shape).movedim(-1, dim)


def _mesa(codec: Codec, x: Tensor, state: CodecState) -> Tensor:
    flat = channels_last(x).double()
    spread, low = (
        torch.from_numpy(state.facts["ranges"])
        .double()
        .repeat_interleave(flat.shape[1] // state.facts["ranges"].shape[1], 1)
    )
    beyond = torch.maximum(low - flat, flat - low - spread).clamp_min(0)
    magnitude = max(float(flat.abs().max()), float((low.abs() + spread).max()))
    return back(beyond + spread / 255 + 2.0**-22 * magnitude, x)


def _channel_mix(codec: Codec, x: Tensor, state: CodecState) -> Tensor:
    flat, widths = channels_last(x).double(), torch.from_numpy(state.facts["widths"]).double()
    each = flat.shape[1] // len(widths)
    rows = flat.view(len(flat), -1, each)
    low, high = rows.amin((0, 2)), rows.amax((0, 2))
    magnitude = torch.maximum(-low, high)
    codes = 2**widths - 1
    if codec.part.positive:  # type: ignore[attr-defined]
        low, codes = torch.zeros_like(low), codes - 1.01
    step = (1 + 2.0**-9) * (high - low + 2.0**-10 * magnitude) / codes + 2.0**-38 * magnitude.max()
    rounding = 2.0**-22 * magnitude.max()  # of 32-bit floats
    return back((step + rounding).repeat_interleave(each).expand(flat.shape), x) + 2 * torch.finfo(x.dtype).tiny


def _division(codec: Codec, x: Tensor, state: CodecState) -> Tensor:
    pool = min(codec.part.block, x.shape[2])  # type: ignore[attr-defined]
    averages = avg_pool2d(x.float(), pool, ceil_mode=True).bfloat16().double()
    spread = averages.repeat_interleave(pool, 2)[:, :, : x.shape[2]].repeat_interleave(pool, 3)[..., : x.shape[3]]
    rest = (x.double() - spread).flatten(2)
    low, high = rest.amin(2), rest.amax(2)
    doubt = 2.0**-7 * averages.abs().amax((2, 3))  # sums in another order may round to another bfloat16
    step = (1 + 2.0**-6) * (high - low + 2.0**-7 * low.abs() + 2 * doubt) / (2**codec.part.bits - 1)  # type: ignore[attr-defined]
    return (step + 2.0**-20 * x.double().abs().max())[:, :, None, None].expand(x.shape)


BOUNDS: dict[str, Bound] = {
    "affine-2": _affine,
    "affine-4": _affine,
    "affine-8": _affine,
    "bf16": _bf16,
    "channel-mix": _channel_mix,
    "division": _division,
    "mesa": _mesa,
    "sparse": _sparse,
}
