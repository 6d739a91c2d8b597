"""Training under 256 KB: update schemes, what they need in memory, the search for good ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from tests.tiny_parts import batch, prepared, quantised, step_of, submodel

from fedhybrid.errors import ConfigError
from fedhybrid.methods.tiny import (
    FLOAT,
    INTEGER,
    Contributions,
    Evolution,
    Scheme,
    Task,
    find_scheme,
    flash_bytes,
    last_layers,
    measured_contributions,
    parse_scheme,
    sram_bytes,
    trained_accuracy,
    update_memory,
)
from fedhybrid.models import build_model
from fedhybrid.models.quantised import QuantisedNet, quantise

SRAM, FLASH = 256 * 1024, 1024 * 1024


def updates_of(net: QuantisedNet, scheme: Scheme | str):  # type: ignore[no-untyped-def]
    convs = net.graph.convs
    found = parse_scheme(scheme, len(convs)) if isinstance(scheme, str) else scheme
    return found.updates([conv.channels_in for conv in convs])


class TestSchemes:
    @pytest.mark.parametrize("name", ["k0", "k5", "k16_w3_w4-8", "k19_w0-4_w18"])
    def test_names_are_read_back(self, name: str) -> None:
        assert parse_scheme(name, 19).name == name

    def test_short_names(self) -> None:
        assert parse_scheme("full", 3) == parse_scheme("last-3", 3)
        assert parse_scheme("head", 3) == Scheme(biases=0)
        assert parse_scheme("biases-2", 3) == Scheme(biases=2)
        kept = Scheme(biases=2, weights={1: 8, 2: 2}).updates([3, 4, 4])
        assert [(u.bias, u.channels) for u in kept] == [(False, 0), (True, 1), (True, 2)]

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("middle", "must be full"),
            ("last-9", "fewer than 9"),
            ("k9", "fewer than k = 9"),
            ("k1_w0", "need its bias"),
            ("k2_w2_w2-4", "twice"),
            ("k2_w2-0", "divided by 0"),
        ],
    )
    def test_what_is_no_scheme(self, name: str, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            parse_scheme(name, 3)


class TestMemory:
    def test_256_kib_of_sram_and_a_mebibyte_of_flash(self) -> None:
        """A small network trains whole within both limits; a larger one does not, and the head of it does."""
        net = quantised("cnn")
        everything = updates_of(net, "full")
        for latent in (FLOAT, INTEGER):
            assert sram_bytes(net.graph, everything, latent=latent) <= SRAM
        assert flash_bytes(net.graph, everything) <= FLASH
        step = step_of(submodel(net, "full", integer=True, lr=0.1))
        losses = [float(step(*batch(8))) for _ in range(10)]
        assert losses[-1] < 0.7 * losses[0]
        large = build_model("cnn", input_shape=(3, 32, 32), classes=10, seed=1, options={"width": 1.0})
        graph = quantise(large, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))).graph
        assert sram_bytes(graph, graph.everything()) > SRAM

    def test_counts_of_one_layer_by_hand(self) -> None:
        """Conv 1 x 4 x 4 -> 2 x 4 x 4, flattened, 3 classes: every tensor of its training step."""
        model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(32, 3))
        net = quantise(model, torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
        memory = update_memory(net.graph, net.updates)
        assert (memory.masks_bytes, memory.inputs_bytes, memory.weights_bytes, memory.biases_bytes) == (4, 16, 18, 8)
        head = 4 * 3 * 33
        resident = head + 18 + 8
        # The classifier's update: features as int8 and their gradient, what the convolution keeps, its own gradient.
        assert sram_bytes(net.graph, net.updates, latent=INTEGER) == resident + (16 + 4) + 32 + 4 * 32 + head

    def test_the_gradients_of_one_layer_coexist(self) -> None:
        """Of weights and input: the second convolution's, whose many weights are the peak."""
        convs = [torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.Conv2d(16, 16, 3, padding=1)]
        model = torch.nn.Sequential(*convs, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 2))
        net = quantise(model, torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0)))
        resident = 4 * 2 * 17 + (144 + 2304) + 4 * (16 + 16)
        inputs, masks = 4 + 64, 8 + 8
        gradients = 4 * 64 + 4 * 64 + 4 * (2304 + 16)  # of its output, its input, its weights and biases
        assert sram_bytes(net.graph, net.updates, latent=INTEGER) == resident + inputs + masks + gradients

    def test_ladder_of_bytes(self) -> None:
        net = quantised("resnet20")
        names = ["full", "last-9", "k9_w18-4", "head"]
        sram = [sram_bytes(net.graph, updates_of(net, name)) for name in names]
        flash = [flash_bytes(net.graph, updates_of(net, name)) for name in names]
        assert sram == sorted(sram, reverse=True)
        assert flash == sorted(flash, reverse=True)
        assert len(set(sram)) == len(names)

    @pytest.mark.parametrize("scheme", ["full", "last-9"])
    def test_the_captured_step_against_the_analytic_peak(self, scheme: str) -> None:
        """For one sample: the engine computes a layer in float32, so it needs more by one layer's float tensors, and by
        its input unfolded, as torch's convolution has it. Half of the analytic figure would be outside this bound.
        """
        net = quantised("resnet20")
        made = submodel(net, scheme)
        measured = step_of(made, samples=1).measured_peak_bytes()
        analytic = sram_bytes(net.graph, updates_of(net, scheme), latent=FLOAT)
        frozen = sum(b.nbytes for b in made.module.buffers())  # in flash on a microcontroller
        of_a_layer = 0
        for conv in net.graph.convs:
            unfolded = math.prod(conv.weight_shape[1:]) * math.prod(conv.shape[1:])
            tensors = net.graph.operations[conv.sources[0]].elements + conv.elements + math.prod(conv.weight_shape)
            of_a_layer = max(of_a_layer, 4 * (unfolded + tensors))
        assert analytic < measured - frozen < analytic + of_a_layer < measured - frozen + analytic / 2

    def test_a_step_saves_what_its_scheme_says(self) -> None:
        """Where the captured forward pass ends: what waits for the backward pass, of a whole batch."""
        net = quantised("resnet20")
        made = submodel(net, "k9_w10_w13-2_w18")
        captured = prepared(made, samples=8)
        graph = captured.graph
        first: dict[int, int] = {}  # the operation that makes each storage
        for index, op in enumerate(graph.ops):
            for value in op.outputs:
                if value is not None:
                    first.setdefault(graph.storage_of(value), index)
        later = {graph.storage_of(v) for op in graph.ops[graph.backward_at :] for v in op.inputs}
        small = [s for s in later if first.get(s, graph.backward_at) < graph.backward_at]
        dtypes = {graph.storage_of(v.index): v.dtype for v in graph.values if v.base is None}
        integers = sum(graph.storages[s].nbytes for s in small if dtypes[s] in (torch.int8, torch.uint8))
        assert isinstance(made.module, QuantisedNet)
        assert integers == 8 * update_memory(net.graph, made.module.updates).saved_bytes


class TestSearch:
    LAYERS = 12

    @functools.cached_property
    def contributions(self) -> Contributions:
        """Made up: late biases pay, and of the weights a few layers in the middle."""
        biases = tuple(0.05 * (1 - 0.8**k) for k in range(self.LAYERS + 1))
        pays = {3: 0.05, 5: 0.04, 8: 0.06}
        weights = {
            (layer, d): pays.get(layer, 0.005) * (1 - 0.1 * torch.log2(torch.tensor(float(d))).item())
            for layer in range(self.LAYERS)
            for d in (8, 4, 2, 1)
        }
        return Contributions(biases=biases, weights=weights)

    def fits(self, limit: int) -> Callable[[Scheme], bool]:
        net = quantised("resnet20")

        def within(scheme: Scheme) -> bool:
            late = Scheme(biases=scheme.biases, weights={n + 7: d for n, d in scheme.weights.items()})
            return update_memory(net.graph, updates_of(net, late)).total_bytes <= limit

        return within

    @pytest.mark.parametrize("limit", [2_000, 6_000, 12_000])
    def test_within_the_budget_and_better_than_last_layers(self, limit: int) -> None:
        fits = self.fits(limit)
        found = find_scheme(self.contributions, fits, options=Evolution(seed=3))
        other = last_layers(self.LAYERS, fits)
        assert fits(found)
        assert self.contributions.predicted(found) > 1.1 * self.contributions.predicted(other)

    def test_same_seed_same_scheme(self) -> None:
        fits = self.fits(6_000)
        quick = Evolution(seed=1, generations=5, population=16)
        assert find_scheme(self.contributions, fits, options=quick) == find_scheme(
            self.contributions, fits, options=quick
        )

    def test_nothing_fits(self) -> None:
        with pytest.raises(ConfigError, match="classifier alone"):
            find_scheme(self.contributions, lambda scheme: False)

    def test_contributions_as_text(self) -> None:
        assert Contributions.from_json(self.contributions.to_json()) == self.contributions

    def test_contributions_are_differences_of_accuracy(self) -> None:
        net = quantised("cnn")
        x, y = batch(160)
        task = Task(train=(x[:96], y[:96]), test=(x[96:], y[96:]), epochs=1, batch_size=16, lr=0.05)
        found = measured_contributions(net, task, layers=[1], divisors=[1])
        base = trained_accuracy(net, "head", task)
        biases = trained_accuracy(net, "biases-2", task)
        assert found.biases == (0.0, trained_accuracy(net, "biases-1", task) - base, biases - base)
        assert found.weights == {(1, 1): trained_accuracy(net, "k2_w1", task) - biases}
