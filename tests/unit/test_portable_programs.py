"""Programs carried to another process train as the step that they were made from, bit for bit; others are refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from tests.step_parts import OPTIMIZERS, cross_entropy, small_batch, small_model
from torch import Tensor, nn

import fedhybrid as fh
from fedhybrid.engine.runtime import classification_loss
from fedhybrid.errors import ConfigError, PlanMismatchError
from fedhybrid.executor import (
    PortableStep,
    PreparedStep,
    Proximal,
    TrainStep,
    export_program,
    load_program,
    prepare_step,
)
from fedhybrid.executor.texts import checked_code
from fedhybrid.planner import LOSSY, Plan

CASES: dict[str, tuple[str, dict[str, Any], Any, str]] = {
    "keep-all": ("cnn", {}, OPTIMIZERS["sgd"], "keep-all"),
    "batch norm again": ("resnet20", {"norm": "batch"}, OPTIMIZERS["adam"], "60%"),
    "splits": ("resnet20", {"norm": "batch"}, OPTIMIZERS["sgd-nesterov-decay"], "smallest"),
    "dropout": ("char-gpt", {"dropout": 0.1}, OPTIMIZERS["adamw"], "70%"),
    "lossy": ("cnn", {}, OPTIMIZERS["sgd"], "affine-4"),
    "mesa": ("char-gpt", {"dim": 64}, OPTIMIZERS["sgd"], "mesa"),
    "disk": ("cnn", {}, OPTIMIZERS["sgd-plain"], "disk"),
    "proximal": ("cnn1d", {}, Proximal(base=OPTIMIZERS["sgd"], mu=0.1), "70%"),
    "recurrent": ("char-lstm", {}, OPTIMIZERS["sgd"], "90%"),
}


def prepared_step(name: str, optimizer: Any, **options: Any) -> PreparedStep:
    """Not timed, so that solvers decide the same every time."""
    return prepare_step(
        small_model(name, **options), classification_loss, small_batch(name), optimizer, op_seconds=lambda work: 1e-4
    )


def plan_of(prepared: PreparedStep, which: str) -> Plan:
    if which == "keep-all":
        return prepared.keep_all()
    if which == "smallest":
        return prepared.smallest()
    if which == "disk":
        return prepared.plan("80%", actions=("offload",))
    return prepared.packed_whole(which) if which in LOSSY else prepared.plan(which)


def carried(step: TrainStep, plan: Plan) -> PortableStep:
    """The plan's program on a copy of the step's model."""
    model = copy.deepcopy(step.prepared.model)
    return PortableStep(model, step.prepared.optimizer, load_program(export_program(step, plan)))


def trained(step: Any, model: nn.Module, name: str) -> list[Tensor]:
    """Everything that three steps leave behind."""
    torch.manual_seed(3)
    step.set_lr(0.03)
    step.reset_codecs(11)
    step.reset_optimizer()
    found = []
    for seed in range(3):
        found += [step(*small_batch(name, seed=seed)), step.aux]
    return found + [t.clone() for t in model.state_dict().values()] + [*step.state.all_tensors()]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_carried_step_has_the_bits_of_the_step_it_came_from(case: str) -> None:
    name, options, optimizer, which = CASES[case]
    prepared = prepared_step(name, optimizer, **options)
    plan = plan_of(prepared, which)
    whole = TrainStep(prepared, plan)
    slim = carried(whole, plan)
    assert slim.measured_peak_bytes() == whole.measured_peak_bytes() == plan.peak_bytes
    assert slim.plan == plan
    assert_same(trained(slim, slim.bound._model, name), trained(whole, prepared.model, name))
    actions = {d.action for d in plan.decisions}
    assert plan.lossy == (case in ("lossy", "mesa"))
    assert ("encode:offload" in actions) == (case == "disk")
    assert bool(plan.splits) or case != "splits"
    assert "recompute" in actions or case != "batch norm again"


@pytest.mark.parametrize(
    "options", [{"clip_norm": 0.05}, {"micro_batches": 2}, {"micro_batches": 2, "clip_norm": 0.05}]
)
def test_clipping_and_micro_batches_are_carried(options: dict[str, Any]) -> None:
    model, batch = small_model("cnn"), small_batch("cnn")
    whole = fh.compile_step(model, cross_entropy, batch, optimizer=OPTIMIZERS["sgd"], budget="95%", **options)
    slim = carried(whole, whole.plan)
    for _ in range(2):
        assert torch.equal(slim(*batch), whole(*batch))
    assert_same(list(slim.bound.params), list(model.parameters()))


class Strided(nn.Module):
    """Holds a tensor that is neither parameter nor buffer, and lies in memory the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.held = torch.arange(24.0).view(4, 6).t() / 24

    def forward(self, batch: Tensor) -> Tensor:
        result: Tensor = self.layer(batch) + batch @ self.held
        return result.masked_fill(result > 4, float("inf")).clamp(max=4)


def test_constants_keep_their_strides_and_batches_may_be_dictionaries() -> None:
    model = Strided()
    batch = {"x": torch.randn(5, 6, generator=torch.Generator().manual_seed(1)), "y": torch.ones(5, 4)}

    def loss_fn(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
        return (model(given["x"]) - given["y"]).square().mean()

    whole = fh.compile_step(model, loss_fn, batch, optimizer=OPTIMIZERS["sgd"])
    slim = carried(whole, whole.plan)
    assert torch.equal(slim(batch), whole(batch))
    assert_same(list(slim.bound.params), list(model.parameters()))


def test_a_step_switches_between_programs_of_one_graph_only() -> None:
    prepared = prepared_step("cnn", OPTIMIZERS["sgd"])
    keep_all, small = prepared.keep_all(), prepared.smallest()
    whole = TrainStep(prepared, keep_all)
    slim = carried(whole, keep_all)
    with pytest.raises(ConfigError, match="no program here yet"):
        slim.use_plan(small)
    slim.add(load_program(export_program(whole, small)))
    slim.use_plan(small)
    assert slim.measured_peak_bytes() == small.peak_bytes < keep_all.peak_bytes
    assert whole.plan == keep_all, "exporting must not switch the step"
    other = prepared_step("cnn1d", OPTIMIZERS["sgd"])
    stranger = load_program(export_program(TrainStep(other, other.keep_all()), other.keep_all()))
    with pytest.raises(PlanMismatchError):
        slim.add(stranger)
    with pytest.raises(PlanMismatchError):
        slim.use_plan(other.keep_all())


def packed_cnn() -> tuple[bytes, PreparedStep]:
    prepared = prepared_step("cnn", OPTIMIZERS["sgd"])
    return export_program(TrainStep(prepared, prepared.keep_all()), prepared.keep_all()), prepared


def with_header(packed: bytes, **changes: Any) -> bytes:
    length_bytes = int.from_bytes(packed[:8], "little")
    header = json.loads(json.loads(packed[8 : 8 + length_bytes])["__metadata__"]["fedhybrid-program"])
    return save(load(packed), metadata={"fedhybrid-program": json.dumps(header | changes)})


def test_programs_of_another_form_torch_or_optimizer_are_refused() -> None:
    packed, prepared = packed_cnn()
    with pytest.raises(ConfigError, match=r"made by torch 1\.0"):
        load_program(with_header(packed, torch="1.0"))
    with pytest.raises(ConfigError, match="this program has version 99"):
        load_program(with_header(packed, version=99))
    for damaged in (b"", packed[:40], packed[:-7], with_header(packed, table={}), with_header(packed, plan="{}")):
        with pytest.raises(ConfigError, match=r"compile|missing|version"):
            load_program(damaged)
    program = load_program(packed)
    with pytest.raises(ConfigError, match="was made for the optimizer"):
        PortableStep(prepared.model, fh.SGD(lr=0.5), program)
    with pytest.raises(ConfigError, match="compile the step again"):
        PortableStep(small_model("cnn", width=1.0), OPTIMIZERS["sgd"], program)


def test_an_eager_step_has_nothing_to_carry() -> None:
    batch = small_batch("cnn")
    step = fh.compile_step(small_model("cnn"), cross_entropy, batch, optimizer=OPTIMIZERS["sgd"], mode="eager")
    with pytest.raises(ConfigError, match="eager mode has no program"):
        export_program(step, step.plan)


HEAD = "def step(params, buffers, batch, update, clip):\n    "


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "return open('x'), None",
        HEAD + "import os",
        HEAD + "v = f0(params[0]).data",
        HEAD + "f0 = f0(params[0])",
        HEAD + "v = f0.__globals__",
        HEAD + "v = f0(params[0].grad)",
        HEAD + "v = codec1.state(batch[0])",
        HEAD + "v = f0(*params)",
        HEAD + "v = f0(**params)",
        HEAD + "v = f0(lambda: 1)",
        HEAD + "v = f0([x for x in params])",
        HEAD + "v = __import__('os')",
        HEAD + "v = f0(unknown)",
        HEAD + "while True:\n        f0(1)",
        "import os\n" + HEAD + "return f0, None",
        "@f0\n" + HEAD + "return params[0], None",
        "def step(params, buffers, batch, update, clip=f0(1)):\n    return params[0], None",
        "def other(params, buffers, batch, update, clip):\n    return params[0], None",
    ],
)
def test_text_of_any_other_form_is_refused_before_it_runs(text: str) -> None:
    with pytest.raises(ConfigError, match="compile the plan again"):
        checked_code(text, ["f0", "codec1"])
    packed, _ = packed_cnn_once()
    with pytest.raises(ConfigError, match="compile the plan again"):
        load_program(with_header(packed, source=text))


_MADE: list[tuple[bytes, PreparedStep]] = []


def packed_cnn_once() -> tuple[bytes, PreparedStep]:
    if not _MADE:
        _MADE.append(packed_cnn())
    return _MADE[0]
