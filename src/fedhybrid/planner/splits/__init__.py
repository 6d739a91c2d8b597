"""Operators that can run in chunks, or in the memory of an argument: less memory at once for the same results.

Not here, because nothing would be gained: element-wise operators (they have in-place forms) and pooling (it needs no
memory beside results, whose shape no argument has).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fedhybrid.planner.splits.base import Split, cut
from fedhybrid.planner.splits.norm import batch_norm

__all__ = ["SPLITS", "Split"]


def _along_last(position: int) -> Callable[[Sequence[Any], tuple[int, ...]], bool]:
    """Softmax along the last dimension (the argument at `position`); along others threads share a row's sum."""
    return lambda args, shape: len(shape) > 1 and args[position] % len(shape) == len(shape) - 1


def _rolls_rows(args: Sequence[Any], shape: tuple[int, ...]) -> bool:
    """Roll within the rows of the first dimension."""
    return len(args) > 2 and bool(args[2]) and all(dim % len(shape) for dim in args[2])


def _normalises_rows(args: Sequence[Any], shape: tuple[int, ...]) -> bool:
    """Layer norm whose normalised shape leaves the first dimension out."""
    normalised = args[1] if isinstance(args[1], (list, tuple)) else args[2]
    return len(normalised) < len(shape)


# Rows of a batch are independent unless the docstring of `Split.exact` applies; parameter gradients are sums over them.
SPLITS: dict[str, Split] = {
    "aten._log_softmax.default": cut(
        "aten._log_softmax.default", along={0: 0}, joined=(0,), overwrites=(0,), exact=True, can=_along_last(1)
    ),
    "aten._log_softmax_backward_data.default": cut(
        "aten._log_softmax_backward_data.default",
        along={0: 0, 1: 0},
        joined=(0,),
        overwrites=(0, 1),
        exact=True,
        can=_along_last(2),
    ),
    "aten._safe_softmax.default": cut(
        "aten._safe_softmax.default", along={0: 0}, joined=(0,), overwrites=(0,), exact=True, can=_along_last(1)
    ),
    "aten._scaled_dot_product_flash_attention_for_cpu.default": cut(
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        along={0: 0, 1: 0, 2: 0, "attn_mask": 0},
        joined=(0, 0),
        shared=("attn_mask",),
        like=0,
        overwrites=(0, 1, 2),
    ),
    "aten._scaled_dot_product_flash_attention_for_cpu_backward.default": cut(
        "aten._scaled_dot_product_flash_attention_for_cpu_backward.default",
        along={0: 0, 1: 0, 2: 0, 3: 0, 4: 0, 5: 0, "attn_mask": 0},
        joined=(0, 0, 0),
        shared=("attn_mask",),
        overwrites=(0, 1, 2, 3, 4),
    ),
    "aten._softmax.default": cut(
        "aten._softmax.default", along={0: 0}, joined=(0,), overwrites=(0,), exact=True, can=_along_last(1)
    ),
    "aten._softmax_backward_data.default": cut(
        "aten._softmax_backward_data.default",
        along={0: 0, 1: 0},
        joined=(0,),
        overwrites=(0, 1),
        exact=True,
        can=_along_last(2),
    ),
    "aten.addmm.default": cut("aten.addmm.default", along={1: 0, 0: 0}, joined=(0,), shared=(0,), overwrites=(1,)),
    "aten.convolution.default": cut("aten.convolution.default", along={0: 0}, joined=(0,), overwrites=(0,)),
    "aten.convolution_backward.default": cut(
        "aten.convolution_backward.default", along={0: 0, 1: 0}, joined=(0, None, None), overwrites=(0, 1)
    ),
    "aten.mm.default": cut("aten.mm.default", along={0: 0}, joined=(0,), overwrites=(0,)),
    "aten.native_batch_norm.default": batch_norm,
    "aten.native_batch_norm_backward.default": cut(
        "aten.native_batch_norm_backward.default",
        along={0: 1, 1: 1, 2: 0, 3: 0, 4: 0, 5: 0, 6: 0},
        joined=(1, 0, 0),
        dense=True,
        overwrites=(0, 1),
        exact=True,
    ),
    "aten.native_group_norm.default": cut(
        "aten.native_group_norm.default", along={0: 0}, joined=(0, 0, 0), counted=(3,), overwrites=(0,), exact=True
    ),
    "aten.native_group_norm_backward.default": cut(
        "aten.native_group_norm_backward.default",
        along={0: 0, 1: 0, 2: 0, 3: 0},
        joined=(0, None, None),
        counted=(5,),
        overwrites=(0, 1),
    ),
    "aten.native_layer_norm.default": cut(
        "aten.native_layer_norm.default",
        along={0: 0},
        joined=(0, 0, 0),
        overwrites=(0,),
        exact=True,
        can=_normalises_rows,
    ),
    "aten.native_layer_norm_backward.default": cut(
        "aten.native_layer_norm_backward.default",
        along={0: 0, 1: 0, 3: 0, 4: 0},
        joined=(0, None, None),
        overwrites=(0, 1),
        can=_normalises_rows,
    ),
    "aten.roll.default": cut("aten.roll.default", along={0: 0}, joined=(0,), exact=True, can=_rolls_rows),
    "aten.upsample_bilinear2d.default": cut("aten.upsample_bilinear2d.default", along={0: 0}, joined=(0,), exact=True),
    "aten.upsample_bilinear2d_backward.default": cut(
        "aten.upsample_bilinear2d_backward.default", along={0: 0}, joined=(0,), counted=(2,), exact=True
    ),
    "aten.upsample_nearest2d.default": cut("aten.upsample_nearest2d.default", along={0: 0}, joined=(0,), exact=True),
    "aten.upsample_nearest2d_backward.default": cut(
        "aten.upsample_nearest2d_backward.default", along={0: 0}, joined=(0,), counted=(2,), exact=True
    ),
}
