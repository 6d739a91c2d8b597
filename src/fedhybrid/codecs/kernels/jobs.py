"""The structures of native/jobs.hpp."""

from __future__ import annotations

import ctypes

import torch

__all__ = ["TYPES", "Bits", "Groups", "Maps", "Rows"]

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_POINTER, _INT64, _INT32, _UINT64, _FLOAT = (
    ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_uint64, ctypes.c_float,
)  # fmt: skip


def _fields(**named: type) -> list[tuple[str, type]]:
    return list(named.items())


class Groups(ctypes.Structure):
    """Elements in groups with a range each."""

    _fields_ = _fields(
        elements=_POINTER, code=_POINTER, numel=_INT64, group=_INT64, type=_INT32, bits=_INT32, stochastic=_INT32,
        gates=_INT32, seed=_UINT64, low=_FLOAT, high=_FLOAT, outside_low=_FLOAT, inside_low=_FLOAT,
        inside_high=_FLOAT, outside_high=_FLOAT,
    )  # fmt: skip


class Rows(ctypes.Structure):
    """Elements [outer, rows, cols] with a width and a range for each row."""

    _fields_ = _fields(
        elements=_POINTER, code=_POINTER, outer=_INT64, rows=_INT64, cols=_INT64, type=_INT32, stochastic=_INT32,
        positive=_INT64, seed=_UINT64, bits=_POINTER, low=_POINTER, high=_POINTER, step=_POINTER, offsets=_POINTER,
    )  # fmt: skip


class Maps(ctypes.Structure):
    """Elements [maps, height, width]."""

    _fields_ = _fields(
        elements=_POINTER, code=_POINTER, maps=_INT64, height=_INT64, width=_INT64, block=_INT64, type=_INT32,
        bits=_INT32, stochastic=_INT32, seed=_UINT64, epsilon=_FLOAT,
    )  # fmt: skip


class Bits(ctypes.Structure):
    """Elements of 0 and one other value."""

    _fields_ = _fields(elements=_POINTER, code=_POINTER, numel=_INT64, element_bytes=_INT32, value=_UINT64)
