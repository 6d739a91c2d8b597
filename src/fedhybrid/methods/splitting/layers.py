"""What each part of a model costs, and what a cut therefore needs and takes.

The formulas are RECONSTRUCTED: the paper's text is not public, and its outline names the quantities alone. The
formula of memory stands here for comparison: in runs the device's half is captured and planned, and what it needs is
that plan's peak.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedhybrid.devices import DeviceProfile
from fedhybrid.models.ordered import parts_of, span_of, tensor_names

__all__ = ["Layer", "known_layers", "latency_s", "layers_of", "memory_bytes", "server_s"]

_BACKWARD = 2.0  # times the forward pass: gradients of inputs and of weights
_STATIC_COPIES = 2  # a parameter and its gradient

# What has been found out about models that are still there, by first part and shape of its input.
_known: WeakKeyDictionary[nn.Module, dict[tuple[int, tuple[int, ...]], list[Layer]]] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One part of a model, for a batch of a certain size.

    Attributes:
        parameter_bytes: p.
        stored_bytes: a, what its backward pass needs of its forward pass, for the whole batch.
        output_bytes: o, for the whole batch.
        flops: F of the forward pass for the whole batch, by the kind of operator (`opwork.OP_KINDS`); only
            convolutions and products are counted.
    """

    parameter_bytes: int
    stored_bytes: int
    output_bytes: int
    flops: Mapping[str, float] = field(default_factory=dict)


def layers_of(model: nn.Module, x: Tensor) -> list[Layer]:
    """Runs the forward pass of a copy once, part by part, and notes what each costs.

    Model, buffers and torch's generator stay as they are.

    Args:
        model: All of it, or a span of its parts.
        x: A batch that its first part takes.

    Raises:
        ConfigError: The model does not say what its parts are.
    """
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 - servers count, devices need not load it

    model = copy.deepcopy(model)
    first, last = getattr(model, "span_parts", (0, None))
    held = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes = dict(model.named_parameters())
    found = []
    x = x.detach().clone()  # a part may write over its input
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        for part in parts_of(model)[first:last]:
            with FlopCounterMode(display=False) as counter, _stored(held) as stored:
                x = part.run(x)
            own = [sizes[name] for name in tensor_names(model, part) if name in sizes]
            found.append(
                Layer(
                    parameter_bytes=sum(p.nbytes for p in own),
                    stored_bytes=sum(stored.values()),
                    output_bytes=x.nbytes,
                    flops=_by_kind(counter.get_flop_counts().get("Global", {})),
                )
            )
    return found


def known_layers(model: nn.Module, x: Tensor, *, first: int = 0) -> list[Layer]:
    """As `layers_of`, of the parts from `first` on, whose input `x` is; run once for each model and shape."""
    found = _known.setdefault(model, {})
    key = first, tuple(x.shape)
    if key not in found:
        found[key] = layers_of(span_of(model, first, len(parts_of(model))), x)
    return found[key]


@contextmanager
def _stored(held: set[int]) -> Iterator[dict[int, int]]:
    """Blocks of memory that autograd keeps inside, by address, with their bytes; each once, and not those in `held`."""
    found: dict[int, int] = {}
    alive = []  # while they are, no other block gets their address

    def note(tensor: Tensor) -> Tensor:
        block = tensor.untyped_storage()
        if block.data_ptr() not in held:
            found[block.data_ptr()] = block.nbytes()
            held.add(block.data_ptr())
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield found


def _by_kind(counts: Mapping[object, int]) -> dict[str, float]:
    kinds: dict[str, float] = {}
    for operator, flops in counts.items():
        kind = "conv" if "conv" in str(operator) else "matmul"
        kinds[kind] = kinds.get(kind, 0.0) + float(flops)
    return kinds


def memory_bytes(layers: Sequence[Layer], cut: int, *, state_tensors: int = 0) -> int:
    """M(c) = (2 + s) sum p + B sum a + B o_c over the device's layers. RECONSTRUCTED; for comparison, runs do without.

    Args:
        layers: Of the whole model, measured with a batch of size B.
        cut: c, how many of them the device holds.
        state_tensors: s, the optimizer's for each parameter: 0 for plain SGD, 1 with momentum, 2 for Adam.

    >>> layers = [Layer(parameter_bytes=10, stored_bytes=100, output_bytes=50) for _ in range(3)]
    >>> memory_bytes(layers, 2, state_tensors=1)
    310
    """
    device = layers[:cut]
    static_bytes = (_STATIC_COPIES + state_tensors) * sum(layer.parameter_bytes for layer in device)
    return static_bytes + sum(layer.stored_bytes for layer in device) + device[-1].output_bytes


def server_s(layers: Sequence[Layer], device: DeviceProfile) -> float:
    """The server's term of a latency, 3 F B / P: seconds of a training step of these layers there. RECONSTRUCTED.

    P is the profile's rate of each kind of operator.
    """
    forward_s = sum(flops / device.kinds[kind].flops_per_s for layer in layers for kind, flops in layer.flops.items())
    return (1.0 + _BACKWARD) * forward_s


def latency_s(*, steps: int, device_step_s: float, exchange_s: float, server_step_s: float, model_s: float) -> float:
    """Of a task: steps x (device + exchange + server), RECONSTRUCTED; and, ours, the device's half down and up again.

    Args:
        steps: Of the task.
        device_step_s: Of the device's half; infinity where it does not fit.
        exchange_s: Activations and labels up, their gradient and the losses down.
        server_step_s: Of the server's half.
        model_s: The device's half down and up.

    >>> latency_s(steps=10, device_step_s=1.0, exchange_s=0.5, server_step_s=0.1, model_s=2.0)
    18.0
    """
    return steps * (device_step_s + exchange_s + server_step_s) + model_s
