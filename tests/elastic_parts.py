"""What the tests of methods that choose tensors share: a network in parts, devices of different speeds, recipes."""

from __future__ import annotations

import dataclasses
import json
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from fedhybrid.devices import DeviceProfile, load_profile
from fedhybrid.devices.profile import profile_table
from fedhybrid.engine.runtime import classification_loss, steps_of
from fedhybrid.executor import SGD, PreparedStep, prepare_step
from fedhybrid.executor.tensor_times import tensor_times
from fedhybrid.models import build_model
from fedhybrid.protocols import Method, Quote, Submodel
from fedhybrid.records import LocalWork, TensorTimes

SLOWNESS = (1, 2, 3, 4)  # the speeds 1, 1/2, 1/3, 1/4 of the paper's simulated clients


def small_convs(input_shape: tuple[int, ...], classes: int, width: int = 8) -> nn.Sequential:
    """Six convolutions and a linear layer: seven parts; images of a multiple of 8 pixels a side."""
    channels = [input_shape[0], width, width, 2 * width, 2 * width, 4 * width, 4 * width]
    parts: list[nn.Module] = []
    for number in range(6):
        after = channels[number + 1]
        layers: list[nn.Module] = [nn.Conv2d(channels[number], after, 3, padding=1), nn.GroupNorm(4, after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if number % 2 else []
        parts.append(nn.Sequential(*layers))
    pixels = (input_shape[1] // 8) * (input_shape[2] // 8)
    return nn.Sequential(*parts, nn.Sequential(nn.Flatten(), nn.Linear(channels[-1] * pixels, classes)))


def slowed(profile: DeviceProfile, factor: int) -> DeviceProfile:
    """The same device so many times slower, with a link that takes no time to speak of."""
    kinds = {
        kind: dataclasses.replace(rate, flops_per_s=rate.flops_per_s / factor, bytes_per_s=rate.bytes_per_s / factor)
        for kind, rate in profile.kinds.items()
    }
    return dataclasses.replace(
        profile,
        name=f"{profile.name}-{factor}",
        kinds=kinds,
        op_overhead_s=profile.op_overhead_s * factor,
        uplink_bytes_per_s=1e12,
        downlink_bytes_per_s=1e12,
    )


def slow_devices(folder: Path, device: str = "raspberry-pi-4") -> list[str]:
    """Files of profiles at the speeds 1, 1/2, 1/3 and 1/4."""
    paths = []
    for factor in SLOWNESS:
        table = profile_table(slowed(load_profile(device), factor))
        kinds = table.pop("kinds")
        lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        for kind, rates in kinds.items():
            lines += [f"[kinds.{kind}]", *(f"{key} = {value}" for key, value in rates.items())]
        paths.append(folder / f"{device}-{factor}.toml")
        paths[-1].write_text("\n".join(lines) + "\n")
    return [str(path) for path in paths]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class StepCosts:
    """What clients' steps cost, without an engine: client n is the device n + 1 times slower, each with its budget.

    Attributes:
        method: Knows the submodels.
        budgets: In bytes, of each client.
    """

    method: Method
    budgets: tuple[int, ...] = (2**40,) * len(SLOWNESS)
    prepared: dict[str, PreparedStep] = dataclasses.field(default_factory=dict)

    @cached_property
    def whole(self) -> Submodel:
        """The network on batches of 16 images of the digits' form."""
        shape = (1, 32, 32)
        model = build_model("tests.elastic_parts:small_convs", input_shape=shape, classes=10, seed=0)
        module = self.method.adapt(model, torch.zeros(16, *shape))
        optimizer = self.method.optimizer(SGD(lr=0.05, momentum=0.5))
        return Submodel(module=module, loss_fn=classification_loss, optimizer=optimizer)

    @property
    def example(self) -> tuple[Tensor, Tensor]:
        """Noise and labels."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(16, 1, 32, 32, generator=generator), torch.arange(16) % 10

    def step(self, client: int, submodel: str) -> PreparedStep:
        """A submodel's step on a client's device."""
        if submodel not in self.prepared:
            made = self.method.submodel(self.whole, submodel)
            self.prepared[submodel] = prepare_step(
                made.module, made.loss_fn, self.example, made.optimizer, op_seconds=device(0).op_time_s
            )
        key = f"{submodel} {client}"
        if key not in self.prepared:
            self.prepared[key] = self.prepared[submodel].priced(device(client).op_time_s)
        return self.prepared[key]

    def quote(self, client: int, submodel: str = "") -> Quote:
        """The unplanned step, where its budget holds that."""
        step = self.step(client, submodel)
        fits = self.budgets[client] >= step.keep_all_peak_bytes
        step_s = step.keep_all().step_time_s if fits else float("inf")
        return Quote(plan=None, peak_bytes=step.keep_all_peak_bytes, step_s=step_s)

    def budget_bytes(self, client: int) -> int:
        """As it was given."""
        return self.budgets[client]

    def num_samples(self, client: int) -> int:
        """The same for all."""
        return 160

    def steps(self, client: int, work: LocalWork) -> int:
        """As in a run."""
        return steps_of(work, self.num_samples(client))

    def link_s(self, client: int, *, bytes_up: int = 0, bytes_down: int = 0) -> float:
        """As the device's profile says."""
        return bytes_up / device(client).uplink_bytes_per_s + bytes_down / device(client).downlink_bytes_per_s

    def step_seconds(self, submodel: str = "") -> tuple[float, ...]:
        """Of each speed."""
        return tuple(self.step(client, submodel).keep_all().step_time_s for client in range(len(SLOWNESS)))

    def tensor_times(self, client: int, submodel: str = "") -> TensorTimes:
        """Of the unplanned step."""
        return tensor_times(self.step(client, submodel))


def device(client: int) -> DeviceProfile:
    """The device of a client of `StepCosts`."""
    return slowed(load_profile("raspberry-pi-4"), SLOWNESS[client])


def recipe(folder: Path, method: str, **changes: Any) -> dict[str, Any]:
    """Eight clients on the embedded digits, two at each speed, each with ten batches a round."""
    made: dict[str, Any] = {
        "method": method,
        "policy": "uniform",
        "model": "tests.elastic_parts:small_convs",
        "dataset": "digits",
        "rounds": 2,
        "seed": 3,
        "data": {"clients": 8, "alpha": 0.1},
        "fleet": {
            "clients_per_round": 8,
            "tiers": [
                {"name": f"1/{factor}", "budget": "100%", "share": 1, "device": device}
                for factor, device in zip(SLOWNESS, slow_devices(folder), strict=True)
            ],
        },
        "train": {"batch_size": 16, "lr": 0.05, "momentum": 0.5, "steps": 10},
    }
    return made | changes
