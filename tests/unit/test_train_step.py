"""The life of a `TrainStep`: plans as files, switching, learning rates, optimizer state."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from tests.step_parts import (
    OPTIMIZERS,
    assert_plan_holds,
    cross_entropy,
    eager_training,
    image_batch,
    planned_training,
    small_model,
)
from torch import nn

import fedhybrid as fh
from fedhybrid.executor import PreparedStep, TrainStep, prepare_step
from fedhybrid.executor.optimizer import torch_twin

ADAM = OPTIMIZERS["adam"]


@pytest.fixture
def model() -> nn.Module:
    return small_model("resnet20")


@pytest.fixture
def prepared(model: nn.Module) -> PreparedStep:
    return prepare_step(model, cross_entropy, image_batch(), ADAM)


def test_a_plan_survives_json(prepared: PreparedStep) -> None:
    plan = prepared.plan("50%")
    assert fh.Plan.from_json(plan.to_json()) == plan
    assert plan.peak_bytes == max(plan.timelines["planned"]) <= (plan.budget_bytes or 0)
    assert plan.eager_peak_bytes == max(plan.timelines["eager"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw.pop("peak_bytes"), ["'peak_bytes' is missing"]),
        (lambda raw: raw.update(extra=1, peak_bytes="many"), ["unknown key 'extra'", "'peak_bytes' must be int"]),
        (lambda raw: raw.update(version=99), ["version 99"]),
        (lambda raw: raw["decisions"][0].update(action="explode"), ["unknown action 'explode'"]),
        (lambda raw: raw["decisions"].append({"storage": 1}), ["must have exactly the keys"]),
        (lambda raw: raw["decisions"][0].update(storage="0"), ["'storage' must be int, got '0'"]),
        (lambda raw: raw["splits"].append(3), ["splits", "must have exactly the keys"]),
    ],
)
def test_a_broken_plan_file_is_refused_with_every_fault(prepared: PreparedStep, change: Any, words: list[str]) -> None:
    raw = json.loads(prepared.plan("50%").to_json())
    change(raw)
    with pytest.raises(fh.ConfigError) as caught:
        fh.Plan.from_json(json.dumps(raw))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '"plan"', "null"])
def test_what_is_no_plan_at_all(text: str) -> None:
    with pytest.raises(fh.ConfigError, match="a plan must be"):
        fh.Plan.from_json(text)


def test_a_plan_that_names_what_cannot_be_made_again(prepared: PreparedStep) -> None:
    raw = json.loads(prepared.plan("50%").to_json())
    raw["decisions"][0]["storage"] = 10**6
    with pytest.raises(fh.ConfigError, match="cannot do"):
        TrainStep(prepared, fh.Plan.from_json(json.dumps(raw)))


def test_the_fingerprint_ignores_names_and_weights_but_not_shapes(prepared: PreparedStep) -> None:
    renamed = nn.ModuleDict({"inner": small_model("resnet20")})
    renamed.forward = renamed["inner"].forward  # type: ignore[method-assign]
    same = prepare_step(renamed, cross_entropy, image_batch(seed=5), ADAM)
    assert same.fingerprint == prepared.fingerprint
    others = [
        prepare_step(small_model("resnet20"), cross_entropy, image_batch(3), ADAM),
        prepare_step(small_model("resnet20", width=0.25), cross_entropy, image_batch(), ADAM),
        prepare_step(small_model("resnet20"), cross_entropy, image_batch(), OPTIMIZERS["sgd"]),
    ]
    for other in others:
        with pytest.raises(fh.PlanMismatchError, match="plan again"):
            TrainStep(other, prepared.keep_all())
    assert TrainStep(same, prepared.plan("50%")).measured_peak_bytes() == prepared.plan("50%").peak_bytes


def test_switching_plans_in_mid_training_changes_no_bit(model: nn.Module) -> None:
    batches = [image_batch(seed=seed) for seed in range(6)]
    expected, _, _ = eager_training(model, cross_entropy, batches, ADAM)
    step = fh.compile_step(model, cross_entropy, batches[0], optimizer=ADAM, budget="100%")
    first = step.plan
    planned_training(step, batches[:2])
    step.set_budget("50%")
    assert step.plan != first
    for batch in batches[2:4]:
        step(*batch)
    step.use_plan(first)
    for batch in batches[4:]:
        step(*batch)
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_ladder_is_switched_without_planning(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    step = fh.compile_step(model, cross_entropy, image_batch(), optimizer=ADAM, ladder=("100%", "60%", "45%"))
    with monkeypatch.context() as patch:
        patch.setattr(PreparedStep, "plan", lambda *_, **__: pytest.fail("planned again"))
        peaks = []
        for budget in ("120%", "60%", "50%"):
            step.set_budget(budget)
            assert_plan_holds(step)
            peaks.append(step.plan.peak_bytes)
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == 3
    step.set_budget("43%")  # below the lowest rung: planned now
    assert step.plan.peak_bytes < peaks[-1]


def test_an_impossible_budget_leaves_the_plan_and_names_the_smallest(prepared: PreparedStep) -> None:
    step = TrainStep(prepared, prepared.keep_all())
    with pytest.raises(fh.InfeasibleBudgetError) as caught:
        step.set_budget("1%")
    assert step.plan == prepared.keep_all()
    assert caught.value.needed_bytes == prepared.smallest().peak_bytes
    assert caught.value.blocker in str(caught.value)
    exactly = prepared.plan(caught.value.needed_bytes)
    assert exactly.peak_bytes <= caught.value.needed_bytes


def test_the_learning_rate_changes_without_a_new_capture(model: nn.Module) -> None:
    twin_model = copy.deepcopy(model)
    twin = torch_twin(ADAM, twin_model.parameters())
    assert twin is not None
    step = fh.compile_step(model, cross_entropy, image_batch(), optimizer=ADAM, budget="50%")
    for lr in (1e-3, 5e-4, 0.0, 1e-2):
        step.set_lr(lr)
        twin.param_groups[0]["lr"] = lr
        twin.zero_grad()
        cross_entropy(twin_model(image_batch()[0]), image_batch()[1]).backward()
        twin.step()
        step(*image_batch())
    for a, b in zip(model.parameters(), twin_model.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(fh.ConfigError, match="lr must not be negative"):
        step.set_lr(-1)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_optimizer_state_goes_to_torch_and_back(name: str) -> None:
    optimizer, batches = OPTIMIZERS[name], [image_batch(seed=seed) for seed in range(4)]
    expected, _, _ = eager_training(small_model("cnn"), cross_entropy, batches, optimizer)
    # two steps here, one in torch with our state, the last here with torch's state
    model = small_model("cnn")
    step = fh.compile_step(model, cross_entropy, batches[0], optimizer=optimizer)
    for batch in batches[:2]:
        step(*batch)
    twin = torch_twin(optimizer, model.parameters())
    assert twin is not None
    saved = step.state_dict()
    twin.load_state_dict({key: saved[key] for key in ("state", "param_groups")})
    cross_entropy(model(batches[2][0]), batches[2][1]).backward()
    twin.step()
    twin.zero_grad()
    step.load_state_dict(twin.state_dict())
    step(*batches[3])
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_of_another_optimizer_is_refused(model: nn.Module) -> None:
    step = fh.compile_step(model, cross_entropy, image_batch(), optimizer=ADAM)
    other = fh.compile_step(small_model("cnn"), cross_entropy, image_batch(), optimizer=OPTIMIZERS["sgd"])
    other(*image_batch())
    with pytest.raises(fh.ConfigError, match=r"optimizer state of .* needs 'exp_avg'"):
        step.load_state_dict(other.state_dict())


def test_resetting_the_optimizer_starts_afresh(model: nn.Module) -> None:
    start = copy.deepcopy(model.state_dict())
    step = fh.compile_step(model, cross_entropy, image_batch(), optimizer=ADAM)
    first = step(*image_batch())
    step(*image_batch())
    model.load_state_dict(start)
    step.reset_optimizer()
    assert torch.equal(step(*image_batch()), first)
    assert step.steps_done == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"actions": ("encod",)}, "unknown action 'encod'"),
        ({"actions": ("encode",)}, "needs a max_gradient_error above 0"),
        ({"solver": "gready"}, "Did you mean 'greedy'"),
        ({"max_gradient_error": -0.1}, "max_gradient_error"),
        ({"max_gradient_error": None}, "must be a number"),
        ({"time_limit_s": "5"}, "time_limit_s must be positive"),
        ({"solver": None}, "solver must be a name"),
        ({"ladder": "60%"}, "ladder must be a sequence"),
        ({"budget": "-5 MiB"}, "byte budget"),
        ({"budget": 0}, "must be positive"),
    ],
)
def test_bad_options(model: nn.Module, options: dict[str, Any], words: str) -> None:
    with pytest.raises(fh.ConfigError, match=words):
        fh.compile_step(model, cross_entropy, image_batch(), optimizer=ADAM, **{"budget": "60%", **options})


def test_the_program_can_be_read(prepared: PreparedStep) -> None:
    source = TrainStep(prepared, prepared.plan("50%")).source
    assert source.startswith("def step(params, buffers, batch, update, clip):")
    assert "update(0, " in source
    assert "del " in source
