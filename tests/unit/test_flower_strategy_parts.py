"""What FedHybrid's strategy and its clients go by: models that are alike, and what is trusted of a node."""

import json

import pytest

pytest.importorskip("flwr")

import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from torch import nn

import fedhybrid as fh
from fedhybrid.devices import load_profile
from fedhybrid.errors import ConfigError
from fedhybrid.integrations.flower.strategy.alike import alike_but_lr, alike_models
from fedhybrid.integrations.flower.strategy.capabilities import read_capabilities, record_of_capabilities
from fedhybrid.integrations.flower.strategy.members import Member
from fedhybrid.integrations.flower.strategy.planned import _squared_loss


class Scaled(nn.Module):
    def __init__(self, factor: object = 2.0, *, tied: bool = False, features: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, features), nn.Linear(features, 4)
        self.factor = factor
        if tied:
            self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)) * self.factor


def test_models_of_the_same_making_are_alike_whatever_their_weights():
    one, other = Scaled(), Scaled()
    with torch.no_grad():
        other.first.weight.zero_()
    assert alike_models(one, other)
    assert alike_models(Scaled((1, [2.0])), Scaled((1, [2.0])))


@pytest.mark.parametrize(
    "other",
    [
        Scaled(3.0),
        Scaled(2),  # another type may compute in another type
        Scaled(torch.tensor(2.0)),  # what cannot be compared counts as different
        Scaled(tied=True),
        Scaled(features=5),
        Scaled().eval(),
        Scaled().double(),
        nn.Sequential(nn.Linear(4, 4)),
    ],
)
def test_any_other_difference_counts(other):
    assert not alike_models(Scaled(), other)


def test_a_frozen_parameter_and_a_hook_count():
    frozen, hooked = Scaled(), Scaled()
    frozen.first.bias.requires_grad_(False)
    hooked.first.register_forward_hook(lambda module, inputs, output: output * 2)
    assert not alike_models(Scaled(), frozen)
    assert not alike_models(Scaled(), hooked)


def test_optimizers_may_differ_in_their_learning_rate_alone():
    assert alike_but_lr(fh.SGD(lr=0.1, momentum=0.9), fh.SGD(lr=0.2, momentum=0.9))
    assert not alike_but_lr(fh.SGD(lr=0.1, momentum=0.9), fh.SGD(lr=0.1))
    assert not alike_but_lr(fh.SGD(lr=0.1), fh.Adam(lr=0.1))


def member(trusted_bytes: int) -> Member:
    return Member(
        node_id=1,
        number=0,
        device=None,
        reported_bytes=trusted_bytes,
        trusted_bytes=trusted_bytes,
        num_examples=None,
        planned=True,
    )


def test_what_a_lost_task_needed_bounds_what_is_trusted():
    roomy = member(8_000_000)
    roomy.failed(needed_bytes=1_000_000, least_bytes=400_000)
    assert roomy.trusted_bytes == 750_000
    roomy.failed(needed_bytes=500_000, least_bytes=400_000)
    assert roomy.trusted_bytes == 400_000  # the smallest plan is tried before anything below it
    roomy.failed(needed_bytes=400_000, least_bytes=400_000)
    assert roomy.trusted_bytes == 300_000


def test_five_quiet_rounds_take_a_fall_back_and_a_new_failure_starts_the_count_again():
    node = member(1_000_000)
    node.failed(needed_bytes=1_000_000, least_bytes=100_000)
    for _ in range(4):
        node.rested()
    node.failed(needed_bytes=700_000, least_bytes=100_000)
    assert node.trusted_bytes == 525_000
    seen = []
    for _ in range(11):
        node.rested()
        seen.append(node.trusted_bytes)
    assert seen == [525_000] * 4 + [750_000] * 5 + [1_000_000] * 2


@pytest.mark.parametrize(
    ("told", "loss", "square"),
    [
        (2.5, 3.0, 2.5),
        (None, 3.0, 9.0),
        (None, -3, 9.0),
        (float("nan"), 3.0, 9.0),
        (float("inf"), 3.0, 9.0),
        (-1.0, 3.0, 9.0),
        ("2.5", 3.0, 9.0),
        (None, 1e200, None),
        (None, float("-inf"), None),
        (None, float("nan"), None),
        (None, 10**400, None),
    ],
)
def test_a_loss_without_a_square_is_none(told, loss, square):
    content = RecordDict({"metrics": MetricRecord({"train_loss": loss})})
    assert _squared_loss(told, content, "train_loss") == square


def own_rates(**changes):
    profile = load_profile("raspberry-pi-4")
    told = dict(record_of_capabilities(budget="40%", device=profile, num_examples=5)["fedhybrid"])
    return told | {"rates": json.dumps(json.loads(told["rates"]) | changes)}


def test_a_device_of_ones_own_is_priced_by_its_rates():
    profile, device = load_profile("raspberry-pi-4"), read_capabilities(RecordDict({"fedhybrid": _record({})})).device
    assert device.name.startswith("measured-")
    assert (device.kinds, device.memory_bytes) == (profile.kinds, profile.memory_bytes)
    assert device.uplink_bytes_per_s == profile.uplink_bytes_per_s


def _record(changes):
    return ConfigRecord({**own_rates(**changes.pop("rates_of", {})), **changes})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"num-examples": -1}, "needs a whole number"),
        ({"num-examples": 2**53}, "needs a whole number"),
        ({"num-examples": float("inf")}, "needs a whole number"),
        ({"num-examples": True}, "needs a whole number"),
        ({"budget": "9" * 400 + "%"}, "must look like"),
        ({"device": "/dev/zero"}, "unknown device"),
        ({"device": "profile.toml"}, "unknown device"),
        ({"rates": "[" * 100_000}, "RecursionError"),
        ({"rates": "7"}, "TypeError"),
        ({"versions": "[" * 100_000}, "RecursionError"),
        ({"rates_of": {"op_overhead_s": 1e308}}, "op_overhead_s"),
        ({"rates_of": {"uplink_bytes_per_s": 1e-320}}, "uplink_bytes_per_s"),
        ({"rates_of": {"memory_bytes": float("inf")}}, "memory_bytes"),
        ({"rates_of": {"memory_bytes": 10**400}}, "memory_bytes"),
        ({"rates_of": {"kinds": {}}}, "needs \\[kinds"),
    ],
)
def test_capabilities_that_no_device_has_are_refused(wrong, says):
    with pytest.raises(ConfigError, match=says):
        read_capabilities(RecordDict({"fedhybrid": _record(dict(wrong))}))
