"""Where the seconds of a step go, against the prices of steps that really leave gradients out."""

from __future__ import annotations

import pytest
import torch
from tests.step_parts import SMALL, small_batch, small_model
from torch import nn

from fedhybrid.devices import load_profile
from fedhybrid.engine.runtime import classification_loss
from fedhybrid.executor import SGD, PreparedStep, prepare_step
from fedhybrid.executor.tensor_times import tensor_times
from fedhybrid.records import TensorTimes

DEVICE = load_profile("raspberry-pi-4")
QUICK = ("bert", "char-gpt", "char-lstm", "cnn", "cnn1d", "resnet20", "vit")


def step_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> PreparedStep:
    return prepare_step(model, classification_loss, batch, SGD(lr=0.1, momentum=0.9), op_seconds=DEVICE.op_time_s)


def total_s(times: TensorTimes) -> float:
    return times.forward_s + sum(times.pass_s.values()) + sum(times.weight_s.values())


@pytest.mark.parametrize("name", QUICK)
def test_every_second_of_the_step_is_counted_once(name: str) -> None:
    assert set(QUICK) < set(SMALL)
    prepared = step_of(small_model(name), small_batch(name))
    times = tensor_times(prepared)
    assert total_s(times) == pytest.approx(prepared.keep_all().step_time_s, rel=1e-9)
    assert sorted(times.names) == sorted(prepared.trained) == sorted(times.pass_s) == sorted(times.weight_s)
    assert min([*times.pass_s.values(), *times.weight_s.values()]) >= 0
    assert times.forward_s > 0


def test_names_follow_the_forward_pass() -> None:
    class Backwards(nn.Module):
        """Registers its layers from the last to the first."""

        def __init__(self) -> None:
            super().__init__()
            self.third, self.second, self.first = nn.Linear(8, 3), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.third(self.second(self.first(x).relu()).relu())  # type: ignore[no-any-return]

    prepared = step_of(Backwards(), (torch.randn(4, 8), torch.tensor([0, 1, 2, 0])))
    layers = [name.split(".")[0] for name in tensor_times(prepared).names]
    assert layers == ["first", "first", "second", "second", "third", "third"]


@pytest.mark.parametrize("name", ["cnn", "resnet20", "vit"])
def test_who_trains_from_a_tensor_on_pays_what_is_behind_it(name: str) -> None:
    """The seconds of a step from number k on are the forward pass, `weight_s` from k and `pass_s` above k.

    The first tensor's kernel does without the input's gradient there and pays its overhead alone: hence the tolerance.
    """
    batch = small_batch(name)
    times = tensor_times(step_of(small_model(name), batch))
    for k in range(0, len(times.names), max(1, len(times.names) // 4)):
        model = small_model(name)
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter_name in times.names[k:])
        expected_s = times.forward_s
        expected_s += sum(times.weight_s[n] for n in times.names[k:]) + sum(
            times.pass_s[n] for n in times.names[k + 1 :]
        )
        found_s = step_of(model, batch).keep_all().step_time_s
        assert found_s == pytest.approx(expected_s, rel=0.02, abs=3 * DEVICE.op_overhead_s)


def test_a_frozen_layer_still_passes_the_gradient_on() -> None:
    """Without the weight gradient of a convolution in the middle exactly its `weight_s` is saved."""
    batch = small_batch("cnn")
    model = small_model("cnn")
    times = tensor_times(step_of(model, batch))
    middle = "features.4.weight"
    assert times.pass_s[middle] > 0
    model.get_parameter(middle).requires_grad_(False)
    model.get_parameter("features.4.bias").requires_grad_(False)
    saved_s = times.weight_s[middle] + times.weight_s["features.4.bias"]
    assert step_of(model, batch).keep_all().step_time_s == pytest.approx(total_s(times) - saved_s, rel=1e-6)


def test_seconds_that_were_timed_here_add_up_too() -> None:
    prepared = prepare_step(small_model("cnn"), classification_loss, small_batch("cnn"), SGD(lr=0.1))
    assert total_s(tensor_times(prepared)) == pytest.approx(prepared.keep_all().step_time_s, rel=1e-9)
