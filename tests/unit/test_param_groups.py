"""Parameter groups: the bits of torch.optim with groups, and its layout of saved state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.step_parts import (
    assert_plan_holds,
    assert_same_bits,
    cross_entropy,
    eager_training,
    image_batch,
    planned_training,
    small_model,
)
from torch import nn

import fedhybrid as fh
from fedhybrid.executor import Proximal, TrainStep, prepare_step

HEAD = fh.ParamGroup(match="head.*", lr=3e-3, weight_decay=0.3)


def small() -> nn.Module:
    return small_model("vit", depth=1, dim=12)


def batches(count: int = 5) -> list[Any]:
    return [image_batch(seed=seed) for seed in range(count)]


def adamw_by_hand(model: nn.Module) -> torch.optim.Optimizer:
    """What a user writes for AdamW with `HEAD` and `no_decay()` and an lr of 1e-3."""
    head = [p for n, p in model.named_parameters() if n.startswith("head.")]
    flat = [p for n, p in model.named_parameters() if not n.startswith("head.") and p.dim() <= 1]
    rest = [p for n, p in model.named_parameters() if not n.startswith("head.") and p.dim() > 1]
    groups = [
        {"params": rest},
        {"params": head, "lr": 3e-3, "weight_decay": 0.3},
        {"params": flat, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)


ADAMW = fh.AdamW(lr=1e-3, weight_decay=0.1, groups=(HEAD, fh.no_decay()))


def sgd_by_hand(model: nn.Module) -> torch.optim.Optimizer:
    norms = [p for n, p in model.named_parameters() if n.endswith("bias") or ".norm" in n]
    rest = [p for n, p in model.named_parameters() if not (n.endswith("bias") or ".norm" in n)]
    plain = {"params": norms, "momentum": 0.5, "nesterov": True, "weight_decay": 0.0}
    return torch.optim.SGD([{"params": rest}, plain], lr=0.05, momentum=0.9, weight_decay=1e-2)


SGD = fh.SGD(
    lr=0.05,
    momentum=0.9,
    weight_decay=1e-2,
    groups=(fh.ParamGroup(match=("*bias", "*.norm*"), momentum=0.5, nesterov=True, weight_decay=0.0),),
)


def adam_by_hand(model: nn.Module) -> torch.optim.Optimizer:
    head = [p for n, p in model.named_parameters() if n.startswith("head.")]
    rest = [p for n, p in model.named_parameters() if not n.startswith("head.")]
    return torch.optim.Adam(
        [{"params": rest}, {"params": head, "betas": (0.8, 0.99), "eps": 1e-6}], lr=1e-3, weight_decay=0.01
    )


ADAM = fh.Adam(lr=1e-3, weight_decay=0.01, groups=(fh.ParamGroup(match="head.*", betas=(0.8, 0.99), eps=1e-6),))

CASES: dict[str, tuple[Any, Callable[[nn.Module], torch.optim.Optimizer]]] = {
    "adamw": (ADAMW, adamw_by_hand),
    "adam": (ADAM, adam_by_hand),
    "sgd": (SGD, sgd_by_hand),
}


@pytest.mark.parametrize(("case", "clip_norm"), [("adam", None), ("adamw", 0.5), ("sgd", None)])
def test_groups_train_as_torch_optim_does(case: str, clip_norm: float | None) -> None:
    optimizer, by_hand = CASES[case]
    model = small()
    expected = eager_training(model, cross_entropy, batches(), by_hand, clip_norm=clip_norm)
    prepared = prepare_step(model, cross_entropy, batches()[0], optimizer, clip_norm=clip_norm)
    step = TrainStep(prepared, prepared.smallest(actions=("recompute",)))
    assert_plan_holds(step)
    assert_same_bits(step, planned_training(step, batches()), expected)
    measured = step.measure(repeats=1)
    assert measured.bit_identical
    assert measured.eager_peak_bytes == pytest.approx(prepared.eager_peak_bytes, abs=1024, rel=1e-3)


@pytest.mark.parametrize("case", sorted(CASES))
def test_state_goes_to_torch_and_back(case: str) -> None:
    optimizer, by_hand = CASES[case]
    model = small()
    expected = eager_training(model, cross_entropy, batches(4), by_hand)[0]
    step = fh.compile_step(model, cross_entropy, batches()[0], optimizer=optimizer)
    planned_training(step, batches(2))
    twin = by_hand(model)
    saved = step.state_dict()
    assert [len(g["params"]) for g in saved["param_groups"]] == [len(g["params"]) for g in twin.param_groups]
    for mine, theirs in zip(saved["param_groups"], twin.state_dict()["param_groups"], strict=True):
        assert mine == theirs
    twin.load_state_dict({key: saved[key] for key in ("state", "param_groups")})
    cross_entropy(model(batches(3)[2][0]), batches(3)[2][1]).backward()
    twin.step()
    twin.zero_grad()
    step.load_state_dict(twin.state_dict())
    step(*batches(4)[3])
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)
    again = fh.compile_step(model, cross_entropy, batches()[0], optimizer=optimizer)
    again.load_state_dict(step.state_dict())
    for name, state in step.optimizer_state.items():
        for key, tensor in state.items():
            assert torch.equal(again.optimizer_state[name][key], tensor)


def test_state_of_other_groups_is_refused() -> None:
    model = small()
    step = fh.compile_step(model, cross_entropy, batches()[0], optimizer=ADAMW)
    plain = fh.compile_step(model, cross_entropy, batches()[0], optimizer=fh.AdamW())
    with pytest.raises(fh.ConfigError, match=r"needs as parameter groups, each with its lr: one of \d+ parameters and"):
        step.load_state_dict(plain.state_dict())


def test_learning_rates_follow_by_one_factor_as_with_torchs_schedulers() -> None:
    model = small()
    examples = batches(4)

    def scheduled(model: nn.Module) -> torch.optim.Optimizer:
        twin = adamw_by_hand(model)
        schedule = torch.optim.lr_scheduler.LambdaLR(twin, lambda epoch: 0.5**epoch)
        twin.register_step_post_hook(lambda *_: schedule.step())
        return twin

    expected = eager_training(model, cross_entropy, examples, scheduled)
    step = fh.compile_step(model, cross_entropy, examples[0], optimizer=ADAMW)
    torch.manual_seed(0)
    losses = []
    for epoch, batch in enumerate(examples):
        step.set_lr(1e-3 * 0.5**epoch)
        assert step.state.lrs == [1e-3 * 0.5**epoch, 3e-3 * 0.5**epoch, 1e-3 * 0.5**epoch]
        losses.append(step(*batch))
    assert_same_bits(step, losses, expected)
    step.set_lr([0.1, 0.2, 0.3])
    assert [group["lr"] for group in step.state_dict()["param_groups"]] == [0.1, 0.2, 0.3]
    assert step.lr == 0.1
    with pytest.raises(fh.ConfigError, match="one for each of the 3 groups"):
        step.set_lr([0.1])
    assert step.state.lrs == [0.1, 0.2, 0.3]


def test_the_first_group_that_matches_wins() -> None:
    optimizer = fh.SGD(
        lr=0.1, groups=(fh.ParamGroup(match="a.*", lr=0.2), fh.ParamGroup(match="*.bias", weight_decay=0.5))
    )
    assert optimizer.rule_for("a.bias", (3,)) == fh.SGD(lr=0.2)
    assert optimizer.rule_for("b.bias", (3,)) == fh.SGD(lr=0.1, weight_decay=0.5)
    assert optimizer.rule_for("b.weight", (3, 3)) == fh.SGD(lr=0.1)


def test_no_decay_takes_what_has_one_dimension() -> None:
    optimizer = fh.AdamW(weight_decay=0.1, groups=(fh.no_decay(),))
    assert optimizer.rule_for("norm.weight", (8,)).weight_decay == 0
    assert optimizer.rule_for("temperature", ()).weight_decay == 0
    assert optimizer.rule_for("bias", (8, 8)).weight_decay == 0.1


def test_a_rule_round_another_keeps_its_groups() -> None:
    rule = Proximal(base=ADAMW, mu=0.1)
    model = small()
    step = fh.compile_step(model, cross_entropy, batches()[0], optimizer=rule, budget="80%")
    planned_training(step, batches(2))
    assert len(step.state_dict()["param_groups"]) == 3
    assert step.measure(repeats=1).bit_identical


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ((fh.ParamGroup(match="nothing.*", lr=0.1),), [r"groups\[0\] selects no parameter", "names are like"]),
        (
            (fh.no_decay(), fh.ParamGroup(match="*.bias", lr=0.1)),
            [r"groups\[1\] selects no parameter", "an earlier group has all that it selects"],
        ),
    ],
)
def test_a_group_without_parameters_is_refused_at_compile(groups: Any, words: list[str]) -> None:
    with pytest.raises(fh.ConfigError) as caught:
        fh.compile_step(small(), cross_entropy, batches()[0], optimizer=fh.AdamW(groups=groups))
    for word in words:
        assert caught.match(word)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fh.ParamGroup(weight_decay=0.0), "needs match"),
        (lambda: fh.ParamGroup(match="*.bias"), "changes nothing"),
        (lambda: fh.ParamGroup(match=["*.bias"], lr=1.0), "pattern or a tuple of patterns"),
        (lambda: fh.ParamGroup(max_ndim=-1, lr=1.0), "max_ndim must be"),
        (lambda: fh.SGD(lr=0.1, groups=(fh.ParamGroup(match="*", betas=(0.9, 0.9)),)), "SGD has no option 'betas'"),
        (lambda: fh.SGD(lr=0.1, groups=(fh.ParamGroup(match="*", momentum=0.9),)), "momentum must be 0 in all"),
        (lambda: fh.SGD(lr=0.0, groups=(fh.ParamGroup(match="*", lr=0.9),)), "must then be above 0"),
        (lambda: fh.Adam(groups=(fh.ParamGroup(match="*", weight_decay=-1.0),)), r"groups\[0\]: weight_decay must"),
        (lambda: fh.AdamW(groups=[fh.no_decay()]), "tuple of fh.ParamGroup"),
        (lambda: fh.AdamW(groups=("*.bias",)), "tuple of fh.ParamGroup"),
    ],
)
def test_bad_groups(make: Any, words: str) -> None:
    with pytest.raises(fh.ConfigError, match=words):
        make()
