"""A network that reads a memory: without one it is its base head; neighbours are a set; a query never reads itself."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.federation_parts import small_model, small_split
from tests.memory_parts import SIZES, awake, filled, memory_net, whole_of
from torch import nn

from fedhybrid.errors import ConfigError
from fedhybrid.methods.memory_bank import Losses, step_of
from fedhybrid.models import build_model
from fedhybrid.models.memory_transformer import MemoryNet, ReaderSizes, nearest, neighbours_of, voted
from fedhybrid.tree import load_into, tensors_of

X, Y = small_split().batch(torch.arange(200, 216))
STORED = torch.arange(0, 24)


def scores(net: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        given: torch.Tensor = net(X)
    return given


class TestIdentity:
    def test_at_first_the_reader_adds_nothing(self) -> None:
        net = filled(memory_net(), STORED)
        with torch.no_grad():
            base = net.base(net.features(X))
        torch.testing.assert_close(scores(net), base, rtol=0, atol=1e-6)
        assert (scores(awake(net)) - base).abs().max() > 0.1

    def test_without_neighbours_it_is_the_base_head(self) -> None:
        net = filled(awake(memory_net()), STORED)
        read, net.neighbours = scores(net), 0
        with torch.no_grad():
            torch.testing.assert_close(scores(net), net.base(net.features(X)), rtol=0, atol=1e-6)
        assert (scores(net) - read).abs().max() > 0.1

    def test_so_it_is_with_an_empty_memory(self) -> None:
        net = awake(memory_net())
        with torch.no_grad():
            torch.testing.assert_close(scores(net), net.base(net.features(X)), rtol=0, atol=1e-6)

    def test_a_cosine_head_scales_cosines(self) -> None:
        net = memory_net(scale=7.0)
        with torch.no_grad():
            cosine = torch.cosine_similarity(net.encoder(X)[:, None], net.rows.head[None], dim=2)
        torch.testing.assert_close(scores(net), 7 * cosine, rtol=0, atol=1e-5)


class TestNeighbours:
    def test_they_are_the_nearest_by_full_search(self) -> None:
        net = filled(memory_net(), STORED)
        with torch.no_grad():
            query = net.features(X)
        likeness = query @ net.memory.features[:24].float().t()
        expected = likeness.argsort(dim=1, descending=True)[:, :3]
        assert torch.equal(net.chosen(query), expected)

    def test_their_order_means_nothing(self) -> None:
        net = filled(awake(memory_net(neighbours=6)), STORED)
        with torch.no_grad():
            query = net.features(X)
            chosen = net.chosen(query)
            here = net.answer(query, chosen)
            for seed in range(5):
                order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
                torch.testing.assert_close(net.answer(query, chosen[:, order]), here, rtol=0, atol=1e-6)

    def test_other_neighbours_give_other_answers(self) -> None:
        net = filled(awake(memory_net()), STORED)
        with torch.no_grad():
            query = net.features(X)
            near, far = net.answer(query, net.chosen(query)), net.answer(query, net.chosen(-query))
        assert (near - far).abs().max() > 0.01

    def test_labels_are_read_only_where_they_are_tokens(self) -> None:
        for label_tokens in (True, False):
            sizes = ReaderSizes(dim=16, dropout=0.0, label_tokens=label_tokens)
            net = filled(awake(memory_net(sizes=sizes)), STORED)
            before = scores(net)
            net.memory.labels[:24] = (net.memory.labels[:24] + 1) % 10
            assert torch.equal(scores(net), before) is not label_tokens
            assert (net.rows.tokens is not None) is label_tokens

    def test_places_that_hold_nothing_are_as_if_they_were_not_there(self) -> None:
        """More neighbours than there are entries that hold something."""
        net = filled(awake(memory_net(neighbours=10)), STORED[:4])
        few = filled(awake(memory_net(neighbours=4, entries=lambda classes: 4)), STORED[:4])
        torch.testing.assert_close(scores(net), scores(few), rtol=0, atol=1e-6)

    def test_a_query_passes_over_its_own_entry_alone(self) -> None:
        net = filled(memory_net(), STORED)
        features, there = net.memory.features, net.memory.there
        query = features[:8].float()
        own = torch.tensor([0, 1, 2, 3, 4, -1, -1, -1])
        chosen = nearest(query, features, there, 3, own)
        assert all(row not in entries for row, entries in enumerate(chosen[:5].tolist()))
        assert chosen[5:, 0].tolist() == [5, 6, 7]
        every = nearest(query, features, there, len(features), own)
        valid = neighbours_of(every, there, own)
        assert valid.sum(dim=1).tolist() == [23] * 5 + [24] * 3

    @given(count=st.integers(1, 6), entries=st.integers(6, 12), seed=st.integers(0, 50))
    def test_leave_one_out_is_a_memory_without_that_entry(self, count: int, entries: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        features, query = torch.randn(entries, 5, generator=generator), torch.randn(1, 5, generator=generator)
        own = int(torch.randint(entries, (1,), generator=generator))
        there = torch.ones(entries, dtype=torch.bool)
        left = torch.tensor([entry for entry in range(entries) if entry != own])
        chosen = nearest(query, features, there, min(count, entries - 1), torch.tensor([own]))
        without = nearest(query, features[left], there[left], min(count, entries - 1))
        assert torch.equal(chosen, left[without])


class TestVotes:
    def test_the_nearest_decides_where_the_temperature_is_small(self) -> None:
        likeness, labels = torch.tensor([[0.9, 0.8, 0.8]]), torch.tensor([[2, 0, 0]])
        valid = torch.ones(1, 3, dtype=torch.bool)
        assert int(voted(likeness, labels, valid, 3, temperature=0.01).argmax()) == 2
        assert int(voted(likeness, labels, valid, 3, temperature=10.0).argmax()) == 0

    def test_votes_are_shares(self) -> None:
        votes = voted(torch.tensor([[1.0, 0.5]]), torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool), 4,
                      temperature=0.5)  # fmt: skip
        weight = math.exp(2), math.exp(1)
        share = votes.exp()[0]
        assert float(share[1]) == pytest.approx(weight[0] / sum(weight), abs=1e-5)
        assert float(share.sum()) == pytest.approx(1.0, abs=1e-4)

    def test_nobody_to_vote_leaves_it_to_the_head(self) -> None:
        net = memory_net(sizes=None, temperature=0.1)
        with torch.no_grad():
            torch.testing.assert_close(scores(net), net.base(net.features(X)), rtol=0, atol=1e-6)
        voting = scores(filled(net, STORED))
        assert torch.isfinite(voting).all()
        stored = set(small_split().labels[STORED].tolist())
        assert set(voting.argmax(dim=1).tolist()) <= stored


class TestSteps:
    @pytest.mark.parametrize("stop_query", [True, False])
    def test_gradients_stop_at_the_memory_and_by_choice_at_the_query(self, stop_query: bool) -> None:
        net = awake(memory_net())
        made = step_of(whole_of(net), "learn-4-3-16", Losses(distillation=0.0, memory=1.0, stop_query=stop_query))
        own = tensors_of(made.module)
        labels = torch.arange(12) // 3
        with torch.no_grad():
            own["memory.features"].copy_(torch.randn(own["memory.features"].shape).half())
            own["memory.labels"].copy_(labels)
            own["row_of"].copy_(torch.arange(10).clamp_max(3))
        base, read, _, _ = made.module(X)
        assert base is not None
        assert read is not None
        read.sum().backward()
        encoder = [p.grad for name, p in made.module.named_parameters() if name.startswith("encoder.")]
        assert all(grad is None for grad in encoder) is stop_query
        assert not own["memory.features"].requires_grad
        assert made.module.get_parameter("grown.head").grad is not None

    def test_the_loss_is_the_sum_of_the_three(self) -> None:
        net = awake(memory_net())
        losses = Losses(distillation=3.0, memory=0.5)
        made = step_of(whole_of(net), "keep-10-2-16", losses)
        own = tensors_of(made.module)
        with torch.no_grad():
            own["row_of"].copy_(torch.arange(10))
            own["memory.labels"].copy_(torch.arange(20) // 2)
            for name, tensor in own.items():
                if name.startswith("before."):
                    tensor.add_(0.1)
        output = made.module(X)
        total, each = made.loss_fn(output, Y)
        base, read, drift, _ = output
        cross = nn.functional.cross_entropy
        expected = cross(base, Y) + 0.5 * cross(read, Y) + 3.0 * drift.mean()
        torch.testing.assert_close(total, expected)
        torch.testing.assert_close(each, cross(read, Y, reduction="none").detach())
        before = made.module.get_submodule("before")
        assert not any(p.requires_grad for p in before.parameters())
        cosine = torch.cosine_similarity(made.module.get_submodule("encoder")(X), before(X), dim=1)
        torch.testing.assert_close(drift, 1 - cosine)

    def test_tuning_leaves_the_encoder_alone(self) -> None:
        made = step_of(whole_of(memory_net()), "tune-4-3-16", Losses(distillation=5.0, memory=1.0))
        trained = {name.split(".")[0] for name, p in made.module.named_parameters() if p.requires_grad}
        assert trained == {"grown", "reader", "scale"}
        assert not made.module.get_submodule("encoder").training

    def test_looking_gives_features(self) -> None:
        net = memory_net()
        made = step_of(whole_of(net), "look-4-3", Losses(distillation=5.0))
        own = tensors_of(made.module)
        encoder = {n: t for n, t in tensors_of(net).items() if n.startswith("encoder.")}
        load_into({n: own[n] for n in encoder}, encoder)
        assert made.forward_only
        _, features = made.loss_fn(made.module(X), Y)
        with torch.no_grad():
            torch.testing.assert_close(features, net.eval().features(X))

    def test_only_what_travels_is_stored(self) -> None:
        made = step_of(whole_of(memory_net()), "keep-10-2-16", Losses(distillation=3.0, memory=1.0))
        kept_back = set(tensors_of(made.module)) - set(made.module.state_dict())
        assert kept_back == {"memory.features", "memory.inputs", "memory.labels", "own", "row_of"}


@pytest.mark.parametrize("name", ["cnn", "mobilenet_v2", "resnet18", "resnet20", "vit"])
def test_any_model_that_ends_in_a_linear_layer(name: str) -> None:
    options = {"depth": 1, "dim": 16, "heads": 2, "patch": 8} if name == "vit" else {"width": 0.25}
    model = build_model(name, input_shape=(1, 32, 32), classes=10, seed=1, options=options).eval()
    with torch.no_grad():
        plain = model(X)
    net = MemoryNet(model, X, entries=lambda classes: 5, neighbours=2, sizes=ReaderSizes(dim=8, heads=2)).eval()
    assert scores(net).shape == plain.shape
    with torch.no_grad():
        features = net.encoder(X)
        layer = next(module for module in reversed(list(model.modules())) if isinstance(module, nn.Linear))
        torch.testing.assert_close(layer(features), plain)
    again = MemoryNet(model, X, entries=lambda classes: 5, neighbours=2, sizes=ReaderSizes(dim=8, heads=2))
    assert all(torch.equal(t, tensors_of(again)[n]) for n, t in tensors_of(net).items())


def test_a_model_that_ends_otherwise_is_refused() -> None:
    flat, layer = nn.Flatten(), nn.Linear(1024, 10)
    MemoryNet(nn.Sequential(flat, layer), X, entries=lambda classes: 1)
    with pytest.raises(ConfigError, match="must end in a torch"):
        MemoryNet(nn.Flatten(), X, entries=lambda classes: 1)
    for ends_in in (nn.Softmax(dim=1), nn.Unflatten(1, (5, 2))):
        with pytest.raises(ConfigError, match="ends in its last linear layer"):
            MemoryNet(nn.Sequential(flat, layer, ends_in), X, entries=lambda classes: 1)
    with pytest.raises(ConfigError, match="multiple of its 4 heads"):
        MemoryNet(small_model(), X, entries=lambda classes: 1, sizes=ReaderSizes(dim=6, heads=SIZES.heads))
