"""Compact layers compute what dense layers with masked weights compute, in the memory that their values need."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from tests.sparse_parts import compact_twin, layouts, prepared, small_net
from torch import nn

from fedhybrid.engine.runtime import classification_loss, one_thread
from fedhybrid.executor import SGD, PlanOptions, PreparedStep, TrainStep
from fedhybrid.methods.sparse import initial_mask, random_mask
from fedhybrid.models import build_model
from fedhybrid.models.sparse import (
    MARK,
    PATTERNS,
    SCHEMES,
    Layout,
    SparseConv2d,
    SparseLinear,
    compact_model,
    marked,
    marked_paths,
    sparse_paths,
)
from fedhybrid.tree import total_bytes

SPARSITY = {"irregular": 0.9, "block": 0.9, "pattern": 0.8, "channel": 0.75}
SLOW = pytest.mark.slow
RESNET: dict[str, Any] = {"input_shape": (3, 32, 32), "classes": 10, "seed": 0}


def digits_like(seed: int = 0, batch: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 1, 32, 32, generator=generator), torch.randint(10, (batch,), generator=generator)


def gradients(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    scores = model(batch[0])
    loss = classification_loss(scores, batch[1])[0]
    loss.backward()
    return scores.detach(), loss.detach()


class TestLayouts:
    @pytest.mark.parametrize("scheme", SCHEMES)
    @pytest.mark.parametrize("shape", [(16, 8, 3, 3), (6, 5, 3, 3), (128, 64, 3, 3)])
    def test_every_element_has_one_address(self, scheme: str, shape: tuple[int, ...]) -> None:
        layout = Layout(scheme=scheme, shape=shape)
        every = torch.arange(layout.units).to(layout.place_dtype)
        patterns = torch.zeros(layout.units, dtype=torch.uint8) if layout.has_patterns else None
        addresses = layout.addresses(every, patterns)
        assert addresses.shape == (layout.units, layout.unit_elements)
        assert addresses.dtype == torch.int32
        assert len(addresses.unique()) == addresses.numel()
        if not layout.has_patterns:
            assert sorted(addresses.flatten().tolist()) == list(range(layout.numel))

    def test_patterns_are_what_they_say(self) -> None:
        assert len(set(PATTERNS)) == len(PATTERNS) == 8
        assert all(4 in pattern and len(set(pattern)) == 4 for pattern in PATTERNS)
        layout = Layout(scheme="pattern", shape=(4, 4, 3, 3))
        ids = torch.arange(8, dtype=torch.uint8)
        addresses = layout.addresses(torch.arange(8, dtype=torch.int16), ids)
        for kernel, pattern in enumerate(PATTERNS):
            assert sorted(addresses[kernel].tolist()) == [9 * kernel + element for element in pattern]

    def test_blocks_are_columns_of_four_consecutive_filters(self) -> None:
        layout = Layout(scheme="block", shape=(8, 2, 3, 3))
        weight = torch.arange(8 * 18.0).reshape(8, 18)
        for place, filters, column in ((0, slice(0, 4), 0), (17, slice(0, 4), 17), (18, slice(4, 8), 0)):
            held = layout.gathered(weight, torch.tensor([place]))
            assert torch.equal(held.flatten(), weight[filters, column])

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_scattering_undoes_gathering(self, scheme: str) -> None:
        layout = Layout(scheme=scheme, shape=(8, 6, 3, 3))
        mask = random_mask(layout, 0.7, 1)
        weight = torch.randn(layout.shape)
        values = layout.gathered(weight, *mask)
        assert values.shape == layout.values_shape(len(mask.places))
        dense = layout.scattered(values, *mask)
        assert torch.equal(layout.gathered(dense, *mask), values)
        assert int(dense.count_nonzero()) == values.numel() == layout.kept(0.7) * layout.unit_elements
        assert bool(((dense == 0) | (dense == weight)).all())

    @pytest.mark.parametrize(
        ("scheme", "sparsity", "units"),
        [
            ("irregular", 0.9, 922),  # of 9216: 921.6
            ("irregular", 0.875, 1152),
            ("block", 0.9, 230),  # of 2304: 230.4
            ("pattern", 0.9, 7 * 32),  # 0.225 of 32 kernels a filter: 7.2
            ("channel", 0.9, 3),  # of 32: 3.2
            ("irregular", 0.0, 9216),
        ],
    )
    def test_counts(self, scheme: str, sparsity: float, units: int) -> None:
        assert Layout(scheme=scheme, shape=(32, 32, 3, 3)).kept(sparsity) == units

    def test_small_numbers_take_two_bytes(self) -> None:
        assert Layout(scheme="irregular", shape=(32, 32, 3, 3)).place_dtype == torch.int16
        assert Layout(scheme="irregular", shape=(128, 64, 3, 3)).place_dtype == torch.int32
        layout = Layout(scheme="irregular", shape=(64, 64, 3, 3))
        places = torch.arange(layout.units).to(layout.place_dtype)
        assert places.dtype == torch.int16
        assert torch.equal(layout.numbers(places), torch.arange(36_864, dtype=torch.int32))


class TestWhichLayers:
    def test_first_classifier_and_shortcuts_stay_dense(self) -> None:
        model = build_model("resnet18", **RESNET, options={"width": 0.25})
        paths = sparse_paths(model, "irregular", ("*shortcut*",))
        assert len(paths) == 16
        assert not {"stem.0", "head"} & set(paths)
        assert not any("shortcut" in path for path in paths)
        assert len(sparse_paths(model, "irregular")) == 19

    def test_schemes_take_what_suits_them(self) -> None:
        model = small_net()
        assert sparse_paths(model, "irregular") == ("features.3", "features.7", "hidden")
        assert sparse_paths(model, "pattern") == sparse_paths(model, "channel") == ("features.3", "features.7")

    def test_unusual_layers_stay_dense(self) -> None:
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 8, 3, groups=2),
            nn.Conv2d(8, 8, 3, padding="same"),
            nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
            nn.Conv2d(8, 8, 3),
            nn.Flatten(),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
        )
        model[7].weight = model[6].weight
        assert sparse_paths(model, "irregular") == ("4",)

    def test_marks_are_copies_and_one_byte_each(self) -> None:
        model = small_net()
        other = marked(model, ("features.3",))
        names = [name for name, _ in (*other.named_parameters(), *other.named_buffers())]
        assert marked_paths(names) == ("features.3",)
        assert total_bytes(dict(other.named_buffers())) == total_bytes(dict(model.named_buffers())) + 1
        assert not any(name.endswith(MARK) for name, _ in model.named_buffers())


class TestArithmetic:
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_like_the_dense_model_with_masked_weights(self, scheme: str) -> None:
        """Bit for bit, but for "channel", whose smaller convolutions sum in another order."""
        dense, batch = small_net(), digits_like()
        model = compact_twin(dense, scheme, SPARSITY[scheme], lambda lay, w: initial_mask(lay, w, SPARSITY[scheme]))
        with one_thread():
            (scores, loss), (dense_scores, dense_loss) = gradients(model, batch), gradients(dense, batch)
        tolerance = {"rtol": 1e-4, "atol": 1e-6} if scheme == "channel" else {"rtol": 0.0, "atol": 0.0}
        torch.testing.assert_close(scores, dense_scores, **tolerance)
        torch.testing.assert_close(loss, dense_loss, **tolerance)
        own = dict(model.named_parameters())
        for path, layout in layouts(dense, scheme).items():
            layer, twin = model.get_submodule(path), dense.get_submodule(path)
            assert isinstance(layer, SparseConv2d | SparseLinear)
            assert own[f"{path}.values"].grad is not None
            expected = layout.gathered(twin.weight.grad, layer.places, layer.patterns)
            torch.testing.assert_close(own[f"{path}.values"].grad, expected, **tolerance)
        for name, parameter in dense.named_parameters():
            if name in own:
                torch.testing.assert_close(own[name].grad, parameter.grad, **tolerance)

    def test_transformers_too(self) -> None:
        dense = build_model("vit", input_shape=(1, 32, 32), classes=10, seed=0, options={"dim": 24, "depth": 1})
        batch = digits_like(batch=4)
        model = compact_twin(dense, "irregular", 0.8, lambda layout, weight: initial_mask(layout, weight, 0.8))
        assert sum(isinstance(module, SparseLinear) for module in model.modules()) >= 3
        with one_thread():
            (scores, _), (dense_scores, _) = gradients(model, batch), gradients(dense, batch)
        assert torch.equal(scores, dense_scores)
        for path, layout in layouts(dense, "irregular").items():
            layer = model.get_submodule(path)
            assert isinstance(layer, SparseLinear)
            expected = layout.gathered(dense.get_submodule(path).weight.grad, layer.places)
            assert torch.equal(layer.values.grad, expected)

    @pytest.mark.parametrize("scheme", ["irregular", pytest.param("block", marks=pytest.mark.slow)])
    def test_all_weights_kept_trains_like_dense_bit_for_bit(self, scheme: str) -> None:
        dense, optimizer = small_net(), SGD(lr=0.1, momentum=0.9, weight_decay=1e-4)
        model = compact_twin(dense, scheme, 0.0, lambda layout, weight: initial_mask(layout, weight, 0.0))
        with one_thread():
            steps = [prepared(m, digits_like(), optimizer) for m in (dense, model)]
            for seed in range(4):
                losses = [TrainStep(p, p.keep_all())(*digits_like(seed)) for p in steps]
                assert torch.equal(*losses)
        for path in layouts(dense, scheme):
            layer = model.get_submodule(path)
            assert isinstance(layer, SparseConv2d | SparseLinear)
            assert torch.equal(layer.dense_weight(), dense.get_submodule(path).weight)

    def test_groups_by_dimensions_treat_values_like_weights(self) -> None:
        model = compact_twin(small_net(), "irregular", 0.9, lambda layout, weight: initial_mask(layout, weight, 0.9))
        dimensions = {name: p.dim() for name, p in model.named_parameters()}
        assert dimensions["features.3.values"] == 4
        assert dimensions["hidden.values"] == 2


def held_bytes(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[int, int]:
    """Bytes of weights, gradients and momentum after two real steps of torch.optim, and those of places among them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        classification_loss(model(batch[0]), batch[1])[0].backward()
        optimizer.step()
    named = dict(model.named_buffers())
    index = {name: b for name, b in named.items() if name.rpartition(".")[2] in ("places", "patterns")}
    tensors = [*model.parameters(), *index.values()]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    tensors += [state["momentum_buffer"] for state in optimizer.state.values()]
    assert all(tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes() for tensor in tensors)
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors), total_bytes(index)


class TestMemory:
    """Bytes of real tensors and by the allocator, beside the ideal ones: 12 a weight that is kept, and places."""

    @pytest.mark.parametrize(
        "scheme", [pytest.param(s, marks=SLOW if s in ("block", "pattern") else ()) for s in SCHEMES]
    )
    def test_planned_is_measured(self, scheme: str) -> None:
        sparsity = SPARSITY[scheme]
        model = compact_twin(
            small_net(), scheme, sparsity, lambda layout, weight: initial_mask(layout, weight, sparsity)
        )
        with one_thread():
            made = prepared(model, digits_like())
            step = TrainStep(made, made.keep_all())
            assert step.measured_peak_bytes() == made.keep_all_peak_bytes
            measured = step.measure(repeats=1)
        assert measured.bit_identical
        assert measured.peak_bytes <= measured.eager_peak_bytes == made.eager_peak_bytes

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_weights_gradients_and_state_are_a_fifth_of_the_dense_ones(self, scheme: str) -> None:
        """Real tensors of a real step of ResNet-20 in plain PyTorch: every weight, all gradients, momentum, places."""
        dense = build_model("resnet20", **RESNET)
        batch = torch.randn(4, 3, 32, 32), torch.arange(4)
        model = compact_twin(dense, scheme, 0.9, lambda layout, weight: initial_mask(layout, weight, 0.9))
        (held, index), (dense_held, none) = held_bytes(model, batch), held_bytes(dense, batch)
        numel = sum(p.numel() for p in dense.parameters())
        assert (none, dense_held) == (0, 12 * numel)
        ideal = numel * (1 - 0.9) * 12 + index
        # 0.125 irregular (ideal 0.117), 0.112 block (0.104), 0.112 pattern (0.106), 0.104 channel (0.100)
        assert held <= 0.2 * dense_held
        assert held >= 0.9 * ideal, "layers that stay dense come on top"

    def test_what_the_step_itself_holds(self) -> None:
        """In the engine's step a gradient lives until its update alone. Counted with weights, places and momentum are
        the largest tensors that one layer has for a moment: a dense gradient, or a dense weight or gradient and values.
        """
        dense, sparse = resnet_steps()
        largest = max(p.numel() for p in dense.model.parameters()) * 4
        values = max(p.numel() for name, p in sparse.model.named_parameters() if name.endswith("values")) * 4
        dense_bytes, sparse_bytes = own_bytes(dense), own_bytes(sparse)
        # 2 157 776 + 147 456 bytes dense, 286 904 + 162 200 sparse: ratios 0.133, and 0.195 with both sums
        assert sparse_bytes <= 0.15 * dense_bytes
        assert sparse_bytes + largest + values <= 0.2 * (dense_bytes + largest)

    def test_planned_activations_on_top(self) -> None:
        """Sparse weights and planned activations take away different bytes."""
        dense, sparse = resnet_steps()
        activations = dense.eager_peak_bytes - dense.resident_bytes
        budget = dense.resident_bytes + activations * 6 // 10  # "60%" of the dense step
        options = PlanOptions(actions=("recompute",))
        with one_thread():
            plan, dense_plan = sparse.planned(budget, options), dense.planned(budget, options)
            peak = TrainStep(sparse, plan).measured_peak_bytes()
        assert peak == plan.peak_bytes <= budget
        assert sparse.keep_all_peak_bytes < dense.keep_all_peak_bytes - 1_800_000
        # What weights leave free need not be recomputed.
        assert plan.extra_time_s <= dense_plan.extra_time_s


@cache
def resnet_steps() -> tuple[PreparedStep, PreparedStep]:
    """The step of ResNet-20 on 16 images with all weights, and with a tenth of them."""
    dense = build_model("resnet20", **RESNET)
    batch = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    model = compact_twin(dense, "irregular", 0.9, lambda layout, weight: initial_mask(layout, weight, 0.9))
    with one_thread():
        return prepared(dense, batch), prepared(model, batch)


def own_bytes(step: PreparedStep) -> int:
    """Parameters, places and momentum: what the step keeps, without batch and statistics of norms."""
    buffers = {n: b for n, b in step.model.named_buffers() if n.rpartition(".")[2] not in ("places", "patterns")}
    batch_bytes = sum(tensor.numel() * tensor.element_size() for tensor in step.example)
    return step.resident_bytes - batch_bytes - total_bytes(buffers)


def test_an_idle_layer_says_what_it_is() -> None:
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 8))
    layout = Layout(scheme="irregular", shape=(8, 8, 3, 3))
    model = compact_model(dense, {"1": (layout, layout.kept(0.5))})
    assert "irregular, 288 of 576 units of (8, 8, 3, 3)" in repr(model)
    assert model[1].bias is not dense[1].bias
