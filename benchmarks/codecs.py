"""Codecs: how fast, how small, how far off; and whether ranges and widths of their own help channels.

    .venv/bin/python benchmarks/codecs.py                     # one row for each codec and width
    .venv/bin/python benchmarks/codecs.py --activations       # one width a tensor, a group, a channel, mixed widths

The first is about one tensor of 8 MiB (32 x 64 x 32 x 32), on one thread. Times are medians over that of `x.clone()`,
run in turn, all on memory that was used before (on fresh pages a clone takes ten times as long, and codecs win by
that). Relative errors are of the whole tensor, L2. The second encodes the real activations of three models, on
patches of the photographs that come with scikit-learn, in the same number of bytes each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from showing import activations_table, codecs_table, machine, note_name, write_note
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

from fedhybrid.codecs import CODECS, Codec, CodecState, kernels
from fedhybrid.models import build_model

Row = dict[str, Any]
SHAPE = (32, 64, 32, 32)
RELU = {"gates": (0.0, float("inf")), "clamped": True}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("identity", "bf16", "affine-8", "affine-4", "affine-2")},
    **{f"affine-{bits}, random": (f"affine-{bits}", {"rounding": "stochastic"}) for bits in (8, 4, 2)},
    **{f"affine-{bits}, gates": (f"affine-{bits}", RELU) for bits in (8, 4, 2)},
    "channel-mix": ("channel-mix", {}),
    "channel-mix, gates": ("channel-mix", RELU),
    "division": ("division", {}),
    "mesa": ("mesa", {}),
    "sparse": ("sparse", {}),
    "bits": ("bits", {}),
    "narrow": ("narrow", {"limit": 1024}),
}


def main() -> int:
    given = _arguments()
    torch.set_num_threads(1)
    rows = activations(given) if given.activations else speeds(given)
    table = activations_table(rows) if given.activations else codecs_table(rows)
    facts = machine() | {"kernels": "compiled" if kernels.available() else "torch's own operators"}
    print(json.dumps({"machine": facts, "rows": rows}, indent=1) if given.json else table)
    if given.note:
        write_note(
            note_name("activations" if given.activations else "codecs", given.hardware),
            title="Ranges and widths of real activations" if given.activations else "Codecs",
            command=f".venv/bin/python benchmarks/codecs.py {' '.join(sys.argv[1:])}",
            settings={"kernels": facts["kernels"], "repeats": given.repeats},
            body=table,
        )
    return 0


def speeds(given: argparse.Namespace) -> list[Row]:
    """One row for each codec; each has its own turns with the clone."""
    return [_speed(kind, CODECS[name](**options), given.repeats) for kind, (name, options) in KINDS.items()]


def _speed(kind: str, codec: Codec, repeats: int) -> Row:
    x, state = _sample(kind), CodecState()
    code = codec.encode(x, state)
    runs: dict[str, Callable[[], Tensor]] = {
        "clone": x.clone,
        "encode": lambda: codec.encode(x, state),
        "decode": lambda: codec.decode(code, x.shape, x.stride(), x.dtype),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 2):
        for name, run in runs.items():
            start_s = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start_s)
    median = {name: statistics.median(found[2:]) for name, found in seconds.items()}
    back = codec.decode(code, x.shape, x.stride(), x.dtype)
    return {
        "name": kind,
        "bits": 8 * code.numel() / x.numel(),
        "encode_over_clone": median["encode"] / median["clone"],
        "decode_over_clone": median["decode"] / median["clone"],
        "bytes_ratio": code.numel() / x.nbytes,
        "relative_error": _relative(back, x),
    }


def _sample(kind: str) -> Tensor:
    torch.manual_seed(0)
    if kind == "narrow":
        return torch.randint(0, 1024, SHAPE)
    x = torch.randn(SHAPE)
    if kind == "bits":
        return (x > 0).float()
    return x.relu_() if "gates" in kind or kind == "sparse" else x


def activations(given: argparse.Namespace) -> list[Row]:
    """One row for each model and kind of tensor: relative squared errors at 4 bits a value, rounded at random."""
    rows = []
    for name in ("resnet18", "mobilenet_v2", "vit"):
        for kind, tensors in _activations_of(name).items():
            errors = [_errors(tensor) for tensor in tensors]
            rows.append(
                {"model": name, "kind": kind, "tensors": len(tensors)}
                | {how: statistics.fmean(found[how] for found in errors) for how in errors[0]}
            )
    return rows


def _errors(x: Tensor) -> dict[str, float]:
    channels = x.shape[1] if x.dim() == 4 else x.shape[-1]
    fixed = CodecState(facts={"widths": np.full(channels, 4, np.uint8), "age": 0})
    low, high = x.aminmax()
    step = (high - low) / 15
    mix = CODECS["channel-mix"](refresh_steps=10**9)
    return {
        "tensor": _relative(((x - low) / step + torch.rand_like(x)).floor().clamp_(0, 15) * step + low, x) ** 2,
        "group": _relative(_back(CODECS["affine-4"](rounding="stochastic"), x), x) ** 2,
        "channel": _relative(_back(mix, x, fixed), x) ** 2,
        "mixed": _relative(_back(mix, x), x) ** 2,
    }


def _back(codec: Codec, x: Tensor, state: CodecState | None = None) -> Tensor:
    return codec.decode(codec.encode(x, state), x.shape, x.stride(), x.dtype)


def _activations_of(name: str) -> dict[str, list[Tensor]]:
    """What convolutions, norms and linear layers of a model read, after ten steps of training."""
    x, y = _patches(32)
    model = build_model(name, input_shape=(3, 32, 32), classes=10, seed=0, options={})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    found: dict[str, list[Tensor]] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kind = type(module).__name__.removesuffix("2d").lower()
        if inputs[0].dim() >= 3:
            found.setdefault(f"inputs of {kind}", []).append(inputs[0].detach().clone())

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.LayerNorm)):
            module.register_forward_pre_hook(keep)
    with torch.no_grad():
        model(x)
    return found


def _patches(count: int) -> tuple[Tensor, Tensor]:
    """Patches of photographs, mean 0 and deviation 1 in each channel, and random labels."""
    draw = np.random.default_rng(0)
    photos = [np.asarray(image, np.float32) / 255 for image in load_sample_images().images]
    patches = []
    for number in range(count):
        photo = photos[number % len(photos)]
        top, left = (int(draw.integers(0, size - 32)) for size in photo.shape[:2])
        patches.append(photo[top : top + 32, left : left + 32].transpose(2, 0, 1))
    x = torch.from_numpy(np.stack(patches))
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    return x, torch.from_numpy(draw.integers(0, 10, count))


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--activations", action="store_true", help="errors on real activations at equal bytes")
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--note", action="store_true", help="write a note into benchmarks/results/")
    parser.add_argument("--hardware", help="name of the machine in the note's file name")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
