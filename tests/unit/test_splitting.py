"""The parts of split training: cuts and their names, what they cost, which is taken, and the server's half."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.step_parts import small_batch, small_model
from torch import nn

from fedhybrid.devices import DEVICES, load_profile
from fedhybrid.engine.runtime import classification_loss
from fedhybrid.errors import ConfigError
from fedhybrid.executor import SGD, Adam, TrainStep, prepare_step
from fedhybrid.graph import asked_loss
from fedhybrid.methods import SmartSplit
from fedhybrid.methods.splitting import (
    Cut,
    Layer,
    Segment,
    ServerHalf,
    best_segments,
    cheap_segments,
    device_half,
    earlier_cut,
    fastest_cut,
    first_watch,
    importance_of,
    known_layers,
    layers_of,
    memory_bytes,
    possible_cuts,
    quiet_parts,
    refined_cut,
    server_s,
    tensors_by_part,
    watched,
)
from fedhybrid.models import MODELS
from fedhybrid.models.ordered import in_order, parts_of
from fedhybrid.protocols import Submodel
from fedhybrid.records import ClientTask, LocalWork
from fedhybrid.tree import Tensors, detached_copy, tensors_of


def whole_of(model: nn.Module) -> Submodel:
    return Submodel(module=model, loss_fn=classification_loss, optimizer=SGD(lr=0.1, momentum=0.9))


def task_of(model: nn.Module, submodel: str) -> ClientTask:
    work = LocalWork(epochs=1, batch_size=4, lr=0.05)
    weights = detached_copy(tensors_of(model))
    return ClientTask(round_index=0, client=0, weights=weights, work=work, plan=None, seed=9, submodel=submodel)


class TestCuts:
    def test_names_stand_for_cuts_and_back(self) -> None:
        for parts, frozen in itertools.product(range(1, 7), range(6)):
            if frozen < parts:
                cut = Cut(parts=parts, frozen=frozen)
                assert Cut.named(cut.name(of=6), of=6) == cut

    @pytest.mark.parametrize("name", ["cut-0", "cut-7", "cut-2.f2", "cut-2.f0", "cut", "cut-2.", "7"])
    def test_other_names_are_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match="must be called cut-C"):
            Cut.named(name, of=6)

    @pytest.mark.parametrize("name", sorted(n for n, factory in MODELS.items() if hasattr(factory, "ordered")))
    def test_every_model_that_has_parts_can_be_cut_anywhere(self, name: str) -> None:
        model = small_model(name)
        x, y = small_batch(name)
        whole, names = whole_of(model), tensors_by_part(model)
        assert sorted(itertools.chain(*names)) == sorted(tensors_of(model))
        for cut in possible_cuts(model):
            half = device_half(whole, Cut(parts=cut))
            assert set(tensors_of(half.module)) == set(itertools.chain(*names[:cut]))
            assert any(p.requires_grad for p in half.module.parameters())
            loss, losses = half.loss_fn(half.module(x), y)
            assert (loss.dim(), losses.shape) == (0, y.shape)
            assert (half.loss_fn is asked_loss) is (cut < len(names))

    def test_frozen_parts_are_neither_trained_nor_kept(self) -> None:
        model, whole = small_model("resnet20", norm="group"), whole_of(small_model("resnet20", norm="group"))
        batch = small_batch("resnet20")
        peaks = []
        for frozen in (0, 2, 4):
            half = device_half(whole, Cut(parts=5, frozen=frozen))
            step = prepare_step(half.module, half.loss_fn, batch, half.optimizer, op_seconds=lambda work: 1e-4)
            first = set(itertools.chain(*tensors_by_part(model)[:frozen]))
            assert not first.intersection(step.trained)
            peaks.append(TrainStep(step, step.keep_all()).measured_peak_bytes())
        assert peaks[0] > peaks[1] > peaks[2]
        assert all(p.requires_grad for p in whole.module.parameters())

    def test_a_cut_needs_something_to_train(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
        assert possible_cuts(model) == [2, 3, 4]
        assert SmartSplit().menu(model) == ("", "cut-3", "cut-2")
        assert SmartSplit(cut_every=2).menu(model) == ("", "cut-2")
        assert SmartSplit(fixed_cut=4).menu(model) == ("",)
        with pytest.raises(ConfigError, match="fixed_cut must be 2 to 4"):
            SmartSplit(fixed_cut=1).menu(model)
        with pytest.raises(ConfigError, match="cut into parts"):
            SmartSplit().menu(nn.Linear(3, 2))


class TestCosts:
    def test_a_linear_layer_by_hand(self) -> None:
        model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
        first, relu, last = layers_of(model, torch.ones(5, 6))
        assert (first.parameter_bytes, first.output_bytes) == (4 * (24 + 4), 4 * 5 * 4)
        assert first.stored_bytes == 4 * 5 * 6  # its input
        assert first.flops == {"matmul": 2.0 * 5 * 6 * 4}
        assert (relu.parameter_bytes, relu.stored_bytes, relu.flops) == (0, 4 * 5 * 4, {})
        assert last.stored_bytes == 0  # the same tensor that the rectifier keeps
        layers = [first, relu, last]
        assert memory_bytes(layers, 1) == 2 * 112 + 120 + 80
        assert memory_bytes(layers, 3, state_tensors=2) == 4 * (112 + 60) + 200 + 60

    def test_looking_leaves_the_model_and_the_generator_alone(self) -> None:
        model = small_model("resnet20", norm="batch")
        before, state = detached_copy(tensors_of(model)), torch.get_rng_state()
        x, _ = small_batch("resnet20")
        layers = layers_of(model, x)
        assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(model).items())
        assert torch.equal(torch.get_rng_state(), state)
        assert known_layers(model, x) == layers
        inner = x
        for part in parts_of(model)[:4]:
            inner = part.run(inner)
        inner_layers = known_layers(model, inner, first=4)
        assert [layer.flops for layer in inner_layers] == [layer.flops for layer in layers[4:]]
        assert [layer.output_bytes for layer in inner_layers] == [layer.output_bytes for layer in layers[4:]]

    @pytest.mark.parametrize(("optimizer", "states"), [(SGD(lr=0.1), 0), (SGD(lr=0.1, momentum=0.9), 1), (Adam(), 2)])
    def test_the_formula_is_near_what_eager_takes(self, optimizer: SGD | Adam, states: int) -> None:
        """It knows neither the buffers of the backward pass nor the batch; it is never used for a decision."""
        model = small_model("resnet20", norm="group")
        x, y = small_batch("resnet20", batch=16)
        layers = layers_of(model, x)
        for cut in (1, 4, 8):
            half = device_half(whole_of(model), Cut(parts=cut))
            step = prepare_step(half.module, asked_loss, (x, y), optimizer, op_seconds=lambda work: 1e-4)
            assert 0.6 < memory_bytes(layers, cut, state_tensors=states) / step.eager_peak_bytes < 1.1

    def test_servers_are_priced_by_their_rates(self) -> None:
        device = load_profile("desktop")
        layer = Layer(parameter_bytes=0, stored_bytes=0, output_bytes=0, flops={"conv": 1e9, "matmul": 2e9})
        expected = 3 * (1e9 / device.kinds["conv"].flops_per_s + 2e9 / device.kinds["matmul"].flops_per_s)
        assert server_s([layer], device) == pytest.approx(expected)
        assert server_s([layer, layer], device) == pytest.approx(2 * expected)
        assert server_s([], device) == 0.0


LATENCY = st.one_of(st.floats(0.1, 100.0), st.just(math.inf))


class TestChoice:
    @given(latencies=st.lists(st.floats(0.1, 9.0), min_size=1, max_size=9), needs=st.data())
    @settings(max_examples=100)
    def test_less_memory_moves_a_cut_towards_the_input(self, latencies: list[float], needs: st.DataObject) -> None:
        """Where deeper cuts need more."""
        steps = needs.draw(st.lists(st.integers(1, 100), min_size=len(latencies), max_size=len(latencies)))
        need = list(itertools.accumulate(steps))
        before = len(latencies)
        for budget in range(need[-1], need[0] - 1, -1):
            fits = {c: s if need[c - 1] <= budget else math.inf for c, s in enumerate(latencies, start=1)}
            cut = fastest_cut(fits)
            assert cut is not None
            assert cut <= before
            assert need[cut - 1] <= budget
            before = cut
        assert fastest_cut(dict.fromkeys(range(1, 4), math.inf)) is None

    @given(st.dictionaries(st.integers(1, 9), LATENCY, min_size=1), st.integers(1, 9))
    def test_what_does_not_fit_is_never_taken(self, latencies_s: dict[int, float], held: int) -> None:
        importance = [1.0] * 9
        for cut in (
            fastest_cut(latencies_s),
            earlier_cut(held, latencies_s),
            refined_cut(latencies_s, importance, weight=0.5),
        ):
            assert (cut is None) is all(math.isinf(s) for s in latencies_s.values())
            assert cut is None or math.isfinite(latencies_s[cut])

    def test_an_earlier_cut_comes_before_a_later_one(self) -> None:
        assert earlier_cut(3, {1: 9.0, 2: math.inf, 4: 1.0, 5: 0.5}) == 1
        assert earlier_cut(3, {4: 1.0, 5: 0.5}) == 4

    def test_importance_draws_the_cut_and_latency_holds_it(self) -> None:
        latencies_s = {2: 1.0, 3: 1.2, 4: 2.0}
        importance = [0.1, 0.1, 0.5, 0.3]
        assert refined_cut(latencies_s, importance, weight=0.0) == 4
        assert refined_cut(latencies_s, importance, weight=0.9) == 3
        assert refined_cut(latencies_s, importance, weight=50.0) == 2


SEGMENTS = st.lists(
    st.builds(Segment, saved_bytes=st.integers(0, 60), flops=st.integers(0, 60).map(float)), min_size=1, max_size=9
)


class TestCheckpoints:
    @given(segments=SEGMENTS, share=st.floats(0.01, 1.0))
    @settings(max_examples=300)
    def test_the_cheap_choice_is_enough_and_at_most_half_dearer_than_the_best(
        self, segments: list[Segment], share: float
    ) -> None:
        needed_bytes = math.ceil(share * sum(segment.saved_bytes for segment in segments))
        assume(needed_bytes > 0)
        cheap, best = cheap_segments(segments, needed_bytes), best_segments(segments, needed_bytes)
        assert cheap is not None
        assert best is not None
        assert sum(segments[n].saved_bytes for n in cheap) >= needed_bytes
        assert sum(segments[n].flops for n in cheap) <= 1.5 * sum(segments[n].flops for n in best) + 1e-9

    def test_nothing_is_made_again_in_vain(self) -> None:
        segments = [Segment(saved_bytes=9, flops=1.0), Segment(saved_bytes=10, flops=1.2)]
        assert cheap_segments(segments, 0) == best_segments(segments, 0) == ()
        assert cheap_segments(segments, 10) == (1,)  # by ratio alone it would be both
        assert cheap_segments(segments, 20) is best_segments(segments, 20) is None

    def test_segments_of_a_real_model(self) -> None:
        model = small_model("resnet20", norm="group")
        layers = layers_of(model, small_batch("resnet20")[0])[:10]
        segments = [Segment(saved_bytes=layer.stored_bytes, flops=sum(layer.flops.values())) for layer in layers]
        total = sum(segment.saved_bytes for segment in segments)
        for tenths in range(1, 10):
            cheap, best = (f(segments, tenths * total // 10) for f in (cheap_segments, best_segments))
            assert cheap is not None
            assert best is not None
            assert sum(segments[n].flops for n in cheap) <= 1.5 * sum(segments[n].flops for n in best)


class TestImportance:
    NAMES = ("a", "b", "c")
    PARTS = (("a",), ("b", "c"))

    def weights(self, *values: float) -> Tensors:
        return {name: torch.full((4,), value) for name, value in zip(self.NAMES, values, strict=True)}

    def checked(self, extra: Tensors, *moved_to: float) -> Tensors:
        """After a check in which the tensors went from 1 to these values."""
        return watched(extra, self.weights(1, 1, 1), self.weights(*moved_to), memory=0.0, quiet_below=0.1, checks=3)

    def test_it_is_the_share_by_which_a_part_moves(self) -> None:
        extra = first_watch(self.weights(1, 1, 1))
        assert importance_of(extra, self.NAMES, self.PARTS) == [0.0, 0.0]
        extra = watched(extra, self.weights(2, 3, 4), self.weights(3, 3, 4), memory=0.9, quiet_below=None, checks=3)
        assert importance_of(extra, self.NAMES, self.PARTS) == pytest.approx([0.5, 0.0])
        extra = watched(extra, self.weights(2, 3, 4), self.weights(2, 6, 8), memory=0.9, quiet_below=None, checks=3)
        expected = [(0.9 * 0.25) ** 0.5, (0.1 * 25 / 25) ** 0.5]
        assert importance_of(extra, self.NAMES, self.PARTS) == pytest.approx(expected)

    def test_parts_are_quiet_after_enough_checks_and_from_the_first_on(self) -> None:
        extra = first_watch(self.weights(1, 1, 1))
        for rounds in range(1, 4):
            extra = self.checked(extra, 1.01, 1, 1.5)
            assert quiet_parts(extra, self.NAMES, self.PARTS, checks=3) == (1 if rounds == 3 else 0)
        assert quiet_parts(extra, self.NAMES, self.PARTS, checks=4) == 0
        assert quiet_parts(extra, self.NAMES, (("b",), ("a",), ("c",)), checks=3) == 2
        extra = watched(
            extra, self.weights(1, 1, 1), self.weights(1.01, 1, 1.5), memory=0.0, quiet_below=None, checks=3
        )
        assert quiet_parts(extra, self.NAMES, self.PARTS, checks=3) == 1

    def test_who_moves_in_between_begins_anew_and_who_has_been_quiet_long_enough_stays_so(self) -> None:
        extra = first_watch(self.weights(1, 1, 1))
        for moved, quiet in ((1, 0), (1, 0), (2, 0), (1, 0), (1, 0), (1, 1), (2, 1), (2, 1)):
            extra = self.checked(extra, moved, 1, 1.5)
            assert quiet_parts(extra, self.NAMES, self.PARTS, checks=3) == quiet

    def test_large_numbers_stay_finite(self) -> None:
        huge = self.weights(1e25, 1, 1)
        extra = watched(first_watch(huge), huge, self.weights(2e25, 1, 1), memory=0.9, quiet_below=None, checks=3)
        assert importance_of(extra, self.NAMES, self.PARTS) == pytest.approx([1.0, 0.0])


def test_counting_what_parts_cost_leaves_the_batch_alone() -> None:
    x = torch.linspace(-1, 1, 8).view(2, 4)
    before = x.clone()
    layers_of(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)), x)
    assert torch.equal(x, before)


class TestServerHalf:
    def test_it_draws_from_its_own_generator_and_repeats_itself(self) -> None:
        model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        question = {"activations": torch.ones(4, 8), "labels": torch.tensor([0, 1, 2, 0])}
        answers = []
        for _ in range(2):
            half = ServerHalf(task_of(model, "cut-1"), whole_of(model), cut=1, device=load_profile("desktop"))
            before = torch.get_rng_state()
            answers.append([half.answer(question)["gradient"] for _ in range(3)])
            assert torch.equal(torch.get_rng_state(), before)
            torch.rand(3)
        assert all(torch.equal(one, other) for one, other in zip(*answers, strict=True))
        masks = [answer.ne(0).any(0) for answer in answers[0]]
        assert not torch.equal(masks[0], masks[1])

    def test_it_trains_with_the_same_rule_and_counts_its_seconds(self) -> None:
        model = small_model("cnn")
        x, y = small_batch("cnn")
        device = load_profile("desktop")
        half = ServerHalf(task_of(model, "cut-1"), whole_of(model), cut=1, device=device)
        assert half.compute_s == 0.0
        first, *others = parts_of(model)
        activations = first.run(x).detach().requires_grad_()
        loss, losses = classification_loss(in_order(others, activations), y)
        loss.backward()
        answer = half.answer({"activations": activations.detach(), "labels": y})
        assert torch.equal(answer["losses"], losses)
        assert torch.equal(answer["gradient"], activations.grad)
        for name, tensor in half.result().items():
            param = model.get_parameter(name)
            torch.testing.assert_close(tensor, param.detach() - 0.05 * param.grad)
        assert half.compute_s == pytest.approx(server_s(layers_of(model, x)[1:], device))
        half.answer({"activations": activations.detach(), "labels": y})
        assert half.compute_s == pytest.approx(2 * server_s(layers_of(model, x)[1:], device))

    def test_a_part_that_writes_over_its_input_may_come_first(self) -> None:
        layers = [nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)]
        model, plain = nn.Sequential(*layers), nn.Sequential(layers[0], nn.ReLU(), layers[2])
        question = {"activations": torch.linspace(-1, 1, 32).view(4, 8), "labels": torch.tensor([0, 1, 2, 0])}
        given = question["activations"].clone()
        answers = [
            ServerHalf(task_of(each, "cut-1"), whole_of(each), cut=1, device=load_profile("desktop")).answer(question)
            for each in (model, plain)
        ]
        assert torch.equal(question["activations"], given)
        assert all(torch.equal(answers[0][name], answers[1][name]) for name in ("gradient", "losses"))

    @pytest.mark.parametrize("work", [{"steps": 2}, {"samples": 7}])
    def test_who_asks_about_more_than_the_task_has_is_refused(self, work: dict[str, int]) -> None:
        model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
        task = task_of(model, "cut-1")
        task = dataclasses.replace(task, work=dataclasses.replace(task.work, **work))
        half = ServerHalf(task, whole_of(model), cut=1, device=load_profile("desktop"))
        for rows in (4, 2, 2):  # the second step in two parts
            half.answer({"activations": torch.ones(rows, 8), "labels": torch.zeros(rows, dtype=torch.int64)})
        served = half.result()
        with pytest.raises(ConfigError, match="a task of 8 samples may ask about no more, got 9"):
            half.answer({"activations": torch.ones(1, 8), "labels": torch.zeros(1, dtype=torch.int64)})
        assert all(torch.equal(tensor, served[name]) for name, tensor in half.result().items())

    def test_a_question_of_another_form_is_refused(self) -> None:
        model = small_model("cnn")
        half = ServerHalf(task_of(model, "cut-1"), whole_of(model), cut=1, device=load_profile("desktop"))
        with pytest.raises(ConfigError, match="a question must hold activations and labels"):
            half.answer({"activations": torch.ones(1)})


def test_options_are_checked_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        SmartSplit(server_device="destop", adjust_every=0, cut_every=0, importance_memory=1.0, freeze_below=-1.0)
    assert len(caught.value.problems) == 5
    assert "desktop" in str(caught.value)
    assert dataclasses.replace(SmartSplit(), latency_weight=0.0).plans


def test_a_profile_that_only_the_server_has_is_asked_for_only_there(tmp_path: Path) -> None:
    method = SmartSplit(server_device=str(tmp_path / "edge.toml"))  # as a device makes it, which has no such file
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    half = method.submodel(whole_of(model), "cut-1")
    assert list(tensors_of(half.module)) == ["0.weight", "0.bias"]
    with pytest.raises(ConfigError, match=r"server_device: .*edge\.toml"):
        method.init(tensors_of(model))
    (tmp_path / "edge.toml").write_bytes(DEVICES["laptop"].read_bytes())
    assert method.init(tensors_of(model)).extra
    assert method.attend(task_of(model, "cut-1"), whole_of(model)) is not None
