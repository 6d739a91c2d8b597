"""Which argument's memory an operator's output may take over."""

from __future__ import annotations

from fedhybrid.graph import Op, Ref, Role, StepGraph
from fedhybrid.planner.splits import SPLITS

__all__ = ["IN_PLACE_FORMS", "in_place_arguments", "split_targets"]

# Functional operators with a form that overwrites one argument: the form's name, the arguments it may overwrite, and
# the keyword that receives the output (None: the method form, first argument). All are element-wise, same bits. A form
# of the operator's own name takes the keyword itself.
IN_PLACE_FORMS: dict[str, tuple[str, tuple[int, ...], str | None]] = {
    "aten.relu.default": ("aten.relu_.default", (0,), None),
    "aten.hardtanh.default": ("aten.hardtanh_.default", (0,), None),
    "aten.leaky_relu.default": ("aten.leaky_relu_.default", (0,), None),
    "aten.silu.default": ("aten.silu_.default", (0,), None),
    "aten.gelu.default": ("aten.gelu_.default", (0,), None),
    "aten.sigmoid.default": ("aten.sigmoid_.default", (0,), None),
    "aten.tanh.default": ("aten.tanh_.default", (0,), None),
    "aten.add.Tensor": ("aten.add_.Tensor", (0, 1), None),
    "aten.sub.Tensor": ("aten.sub_.Tensor", (0,), None),
    "aten.mul.Tensor": ("aten.mul_.Tensor", (0, 1), None),
    "aten.div.Tensor": ("aten.div_.Tensor", (0,), None),
    "aten.mul.Scalar": ("aten.mul_.Scalar", (0,), None),
    "aten.div.Scalar": ("aten.div_.Scalar", (0,), None),
    "aten.threshold_backward.default": ("aten.threshold_backward.grad_input", (0,), "grad_input"),
    "aten.hardtanh_backward.default": ("aten.hardtanh_backward.grad_input", (0,), "grad_input"),
    "aten.leaky_relu_backward.default": ("aten.leaky_relu_backward.grad_input", (0,), "grad_input"),
    "aten.gelu_backward.default": ("aten.gelu_backward.grad_input", (0,), "grad_input"),
    "aten.silu_backward.default": ("aten.silu_backward.grad_input", (0,), "grad_input"),
    "aten.sigmoid_backward.default": ("aten.sigmoid_backward.grad_input", (0,), "grad_input"),
    "fedhybrid.normalise_again": ("fedhybrid.normalise_again", (0,), "into"),
    "aten.tanh_backward.default": ("aten.tanh_backward.grad_input", (0,), "grad_input"),
}


def in_place_arguments(graph: StepGraph, op: Op) -> list[tuple[int, int]]:
    """Arguments that the whole op may overwrite if it is their last reader: (position, storage)."""
    form = IN_PLACE_FORMS.get(op.target)
    if form is None and op.target in SPLITS and SPLITS[op.target].whole_takes_over:
        return split_targets(graph, op)
    if form is None or op.writes or op.outputs[0] is None:
        return []
    out = graph.values[op.outputs[0]]
    found = []
    for position in form[1]:
        ref = op.args[position] if position < len(op.args) else None
        if not isinstance(ref, Ref) or (position == 1 and op.kwargs.get("alpha", 1) != 1):
            continue
        value = graph.values[ref.value]
        others = (v for v in op.inputs if v != ref.value)
        if any(graph.storage_of(v) == value.storage for v in others):
            continue  # another argument views the same memory: it would be read after it is overwritten
        same = (value.shape, value.stride, value.dtype) == (out.shape, out.stride, out.dtype)
        if same and graph.covers_storage(ref.value) and graph.storages[value.storage].role is Role.TEMP:
            found.append((position, value.storage))
    return found


def split_targets(graph: StepGraph, op: Op) -> list[tuple[int, int]]:
    """As `in_place_arguments`, for the op in the form of `SPLITS`."""
    split = SPLITS.get(op.target)
    if split is None or op.outputs[0] is None:
        return []
    found = []
    for position in split.may_take_over(op.args, graph.values, graph.values[op.outputs[0]]):
        value = graph.values[op.args[position].value]
        others = (v for v in op.inputs if v != value.index)
        alone = all(graph.storage_of(v) != value.storage for v in others)
        if alone and graph.covers_storage(value.index) and graph.storages[value.storage].role is Role.TEMP:
            found.append((position, value.storage))
    return found
