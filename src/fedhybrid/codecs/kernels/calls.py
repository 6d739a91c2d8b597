# ruff: noqa: PLR0917 - layouts are handed over as (outer, rows, cols), like a shape
"""The kernels as functions of tensors. All are for the CPU; `available` says whether they may be called.

Elements are always handed over as contiguous tensors (views of memory order where a codec's tensor is permuted), codes
as contiguous bytes. `seed=None` rounds to nearest; with a seed rounding is stochastic: up with the probability that
makes the decoded value right on average. Equal seeds give equal bytes, on any number of threads and any processor.
"""

from __future__ import annotations

from torch import Tensor

from fedhybrid.codecs.kernels.jobs import TYPES, Bits, Groups, Maps, Rows
from fedhybrid.codecs.kernels.library import call

__all__ = [
    "bits_decode",
    "bits_encode",
    "groups_decode",
    "groups_encode",
    "maps_decode",
    "maps_encode",
    "rows_decode",
    "rows_encode",
    "rows_range",
]


def groups_encode(x: Tensor, job: Groups, out: Tensor, *, seed: int | None) -> bool:
    """Encodes the elements of `x`; False if something is not finite.

    Args:
        x: Elements in memory order.
        job: The codec's options, see `groups_job` of the affine codec.
        out: The whole code.
        seed: Of stochastic rounding.
    """
    job.elements, job.code = _address(x), _address(out)
    job.stochastic, job.seed = seed is not None, seed or 0
    return call("groups_encode", job)


def groups_decode(code: Tensor, job: Groups, out: Tensor) -> None:
    """Fills `out` with what `groups_encode` stored with an equal job."""
    job.elements, job.code = _address(out), _address(code)
    call("groups_decode", job)


def bits_encode(x: Tensor, value: int, out: Tensor) -> bool:
    """Packs one bit an element; False if an element is neither 0 nor `value`.

    Args:
        x: Integers in memory order, 1, 2, 4 or 8 bytes each.
        value: The other value's bits.
        out: ceil(numel / 8) bytes.
    """
    return call("bits_encode", _bits(x, value, out))


def bits_decode(code: Tensor, value: int, out: Tensor) -> None:
    """Fills the integers `out` with 0 and `value`."""
    call("bits_decode", _bits(out, value, code))


def _bits(elements: Tensor, value: int, code: Tensor) -> Bits:
    return Bits(
        elements=_address(elements), code=_address(code), numel=elements.numel(),
        element_bytes=elements.element_size(), value=value % 2**64,
    )  # fmt: skip


def rows_range(x: Tensor, outer: int, rows: int, cols: int, low: Tensor, high: Tensor) -> bool:
    """Smallest and largest value of each row; False if something is not finite.

    Args:
        x: Elements of [outer, rows, cols], contiguous.
        outer: Runs of a row's elements.
        rows: For example channels.
        cols: Elements of one run.
        low: float32, shape (rows,), filled.
        high: Likewise.
    """
    return call("rows_range", _rows(x, outer, rows, cols, low=_address(low), high=_address(high)))


def rows_encode(
    x: Tensor, outer: int, rows: int, cols: int, bits: Tensor, low: Tensor, step: Tensor, offsets: Tensor,
    seed: int | None, out: Tensor, *, positive: bool = False,
) -> None:  # fmt: skip
    """Writes each row's numbers: clip(floor((x - low) / step + u), 0, 2^bits - 1); 0 where step is 0.

    Args:
        x: Elements of [outer, rows, cols], contiguous.
        outer: Runs of a row's elements.
        rows: For example channels.
        cols: Elements of one run.
        bits: uint8, shape (rows,), each 1, 2, 4 or 8.
        low: float32, shape (rows,).
        step: float32, shape (rows,), not negative.
        offsets: int64, shape (rows,): where in `out` each row's ceil(outer * cols * bits / 8) bytes begin.
        seed: u is 1/2 without one, else uniform in [0, 1).
        out: Bytes.
        positive: What is not above 0 gets the number 0.
    """
    told = {"bits": _address(bits), "low": _address(low), "step": _address(step), "offsets": _address(offsets)}
    told |= {"stochastic": seed is not None, "seed": seed or 0, "positive": positive}
    job = _rows(x, outer, rows, cols, code=_address(out), **told)
    done = call("rows_encode", job)
    assert done, "bits are 1, 2, 4 or 8"


def rows_decode(
    code: Tensor, outer: int, rows: int, cols: int, bits: Tensor, low: Tensor, step: Tensor, offsets: Tensor,
    out: Tensor,
) -> None:  # fmt: skip
    """Fills `out` with low + number * step; arguments as in `rows_encode`."""
    told = {"bits": _address(bits), "low": _address(low), "step": _address(step), "offsets": _address(offsets)}
    done = call("rows_decode", _rows(out, outer, rows, cols, code=_address(code), **told))
    assert done, "bits are 1, 2, 4 or 8"


def _rows(elements: Tensor, outer: int, rows: int, cols: int, **told: int) -> Rows:
    return Rows(elements=_address(elements), outer=outer, rows=rows, cols=cols, type=TYPES[elements.dtype], **told)


def maps_encode(
    x: Tensor, maps: int, height: int, width: int, block: int, bits: int, epsilon: float, seed: int | None, out: Tensor
) -> bool:
    """Each map as averages of blocks and the rest in few bits; False if something is not finite.

    With L the averages in bfloat16 and R = x - L spread over its block again, of each map: low is the smallest R
    rounded down, scale = (2^bits - 1) / (largest R - low + epsilon) rounded down, both to bfloat16, and the numbers are
    clip(floor((R - low) * scale + u), 0, 2^bits - 1).

    Args:
        x: Elements of [maps, height, width], contiguous.
        maps: For example batch times channels.
        height: Rows of a map.
        width: Columns of a map.
        block: Side of a block; at the border the average is of what is there.
        bits: 1, 2, 4 or 8.
        epsilon: Keeps the scale finite in flat maps.
        seed: u is 1/2 without one, else uniform in [0, 1).
        out: maps * ceil(height / block) * ceil(width / block) averages of 2 bytes, then ceil(height * width * bits / 8)
            bytes of numbers a map, then 2 bytes of scale a map, then 2 bytes of low a map.
    """
    job = _maps(x, maps, height, width, block, bits, out)
    job.epsilon, job.stochastic, job.seed = epsilon, seed is not None, seed or 0
    return call("maps_encode", job)


def maps_decode(code: Tensor, maps: int, height: int, width: int, block: int, bits: int, out: Tensor) -> None:
    """Fills `out` with L + low + number / scale; arguments as in `maps_encode`."""
    done = call("maps_decode", _maps(out, maps, height, width, block, bits, code))
    assert done, "bits are 1, 2, 4 or 8"


def _maps(elements: Tensor, maps: int, height: int, width: int, block: int, bits: int, code: Tensor) -> Maps:
    return Maps(
        elements=_address(elements), code=_address(code), maps=maps, height=height, width=width, block=block,
        bits=bits, type=TYPES[elements.dtype],
    )  # fmt: skip


def _address(tensor: Tensor) -> int:
    assert tensor.is_cpu, "kernels work in the CPU's memory"
    assert tensor.is_contiguous(), "kernels walk over memory in its order"
    return tensor.data_ptr()
