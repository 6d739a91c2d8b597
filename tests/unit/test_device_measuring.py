"""Measuring a machine: the samples are the work that the planner counts, and rates are found again from times."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedhybrid.devices import DeviceProfile, load_profile
from fedhybrid.devices.measuring import Measured, Unmeasured, fit_rates, machine, measure_machine, profile_text, samples
from fedhybrid.executor import SGD, TrainStep, prepare_step
from fedhybrid.models import build_model
from fedhybrid.opwork import OP_KINDS, OpWork


@pytest.fixture(scope="module")
def measured() -> Measured:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "SAMPLE_S", 0.0)  # three runs a sample suffice here
        return measure_machine()


@pytest.fixture(scope="module")
def profile(measured: Measured, tmp_path_factory: pytest.TempPathFactory) -> DeviceProfile:
    path = tmp_path_factory.mktemp("profile") / "here.toml"
    path.write_text(text_of(measured, Unmeasured(watts_compute=3.0)))
    return load_profile(path)


def text_of(measured: Measured, unmeasured: Unmeasured) -> str:
    return profile_text(
        measured,
        name="here",
        title="This machine",
        processor="a processor",
        memory_bytes=2**30,
        torch_version="2",
        date="2026-01-31",
        unmeasured=unmeasured,
    )


def test_rates_are_found_again_from_the_times_that_they_give() -> None:
    flops_per_s, bytes_per_s, overhead_s = 3e10, 5e9, 2e-6
    works = [OpWork("conv", 10.0**a, int(10.0**b)) for a in (5, 7, 9) for b in (4, 6, 8)]
    timed = [(w, overhead_s + max(w.flops / flops_per_s, w.moved_bytes / bytes_per_s)) for w in works]
    rate = fit_rates(timed, overhead_s=overhead_s)
    assert rate.flops_per_s == pytest.approx(flops_per_s, rel=0.2)
    assert rate.bytes_per_s == pytest.approx(bytes_per_s, rel=0.2)


def test_samples_cover_all_kinds_and_both_directions_of_a_convolution() -> None:
    names = {sample.name for sample in samples()}
    assert {sample.kind for sample in samples()} == set(OP_KINDS)
    assert len(names) == len(list(samples()))
    assert any(name.startswith("convolution backward") for name in names)


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(16, 16, 3, padding=1, bias=False), (32, 16, 32, 32), "convolution (32, 16, 16, 32, 3)"),
        (nn.Conv2d(96, 96, 3, padding=1, groups=96, bias=False), (32, 96, 16, 16), "depthwise (32, 96, 96, 16, 3)"),
        (nn.MaxPool2d(2), (32, 16, 32, 32), "max pool (32, 16, 32, 32)"),
    ],
)
def test_a_sample_is_the_work_that_the_planner_counts(layer: nn.Module, shape: tuple[int, ...], expected: str) -> None:
    first = nn.Conv2d(shape[1], shape[1], 1, bias=False)
    model = nn.Sequential(first, layer)
    batch = (torch.randn(shape), torch.zeros(1))
    step = prepare_step(model, lambda out, _: out.square().mean(), batch, SGD(lr=0.1), op_seconds=lambda _: 1.0)
    (work,) = [sample.make()[1] for sample in samples() if sample.name == expected]
    assert work in step.costs.works.values()


def test_the_machine_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SAMPLE_S", 0.0)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    seen: list[str] = []
    measure_machine(on_kind=seen.append)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert set(seen) == {"op overhead", "bandwidth", *OP_KINDS}


def test_a_measured_profile_is_read_back(measured: Measured, profile: DeviceProfile) -> None:
    assert set(profile.kinds) == set(OP_KINDS)
    for kind, rate in measured.kinds.items():
        assert profile.kinds[kind].flops_per_s == pytest.approx(rate.flops_per_s, rel=1e-3)
        assert profile.kinds[kind].bytes_per_s == pytest.approx(rate.bytes_per_s, rel=1e-3)
    assert 1e-8 < profile.op_overhead_s < 1e-3
    assert profile.watts_compute == 3.0
    words = {source.split(":")[0]: source for source in profile.sources}
    assert "given to fedhybrid doctor" in words["watts_compute"]
    assert "assumption of this project" in words["uplink_bytes_per_s"]
    assert "2026-01-31, torch 2, a processor, 1 thread(s)" in words["kinds"]
    assert not any("/" in source.replace("FLOP/s", "") for source in profile.sources), "no paths"


def test_each_kind_is_predicted_within_a_factor_of_four_on_geometric_mean(measured: Measured) -> None:
    """The fit's own points; one pair of rates cannot suit all operators of a kind, but must not miss the kind."""
    for kind in OP_KINDS:
        rate = measured.kinds[kind]
        ratio, count = 1.0, 0
        for work, seconds in measured.points.values():
            if work.kind == kind:
                model_s = measured.op_overhead_s + max(
                    work.flops / rate.flops_per_s, work.moved_bytes / rate.bytes_per_s
                )
                ratio, count = ratio * model_s / seconds, count + 1
        assert 0.25 < ratio ** (1 / count) < 4.0, kind


def one_ratio(profile: DeviceProfile, name: str, batch: int) -> float:
    """Predicted over measured seconds of one step without decisions."""
    model = build_model(name, input_shape=(3, 32, 32), classes=10, seed=0, options={})
    example = (torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,)))
    prepared = prepare_step(
        model, nn.functional.cross_entropy, example, SGD(lr=0.05, momentum=0.9), op_seconds=profile.op_time_s
    )
    step = TrainStep(prepared, prepared.plan(2**40))
    return step.plan.step_time_s / step.measure(repeats=7).step_time_s


@pytest.mark.slow
@pytest.mark.parametrize(("model", "batch"), [("resnet20", 32), ("vit", 8)])
def test_steps_take_what_the_profile_says_within_a_factor_of_two(model: str, batch: int) -> None:
    """Measured anew, and up to three times: on a shared machine the two may see different company."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ratios = []
        for _ in range(3):
            seen = measure_machine()
            kinds = dict(seen.kinds)
            here = DeviceProfile(
                name="here", title="here", sources=(), memory_bytes=1, kinds=kinds, op_overhead_s=seen.op_overhead_s,
                uplink_bytes_per_s=1.0, downlink_bytes_per_s=1.0,
            )  # fmt: skip
            ratios.append(one_ratio(here, model, batch))
            if 0.5 <= ratios[-1] <= 2.0:
                return
        pytest.fail(f"predicted over measured: {ratios}")
    finally:
        torch.set_num_threads(threads)
