"""Coded rows: what a device makes of its samples, and that their gradient and the mix have no bias."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.coded_parts import coded_server, devices, full_gradient, update, weights_of
from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.executor import SGD, Adam
from fedhybrid.methods import METHODS, CodedFedL, Scfl
from fedhybrid.methods.coded import (
    CodedSet,
    Measured,
    ServerStep,
    best_load,
    check_head,
    coded_gradient,
    coded_names,
    drawn_bytes,
    encoding_step,
    head_step,
    joined,
    lifted,
    mixed,
    row_variance,
    split,
    squared_loss,
)
from fedhybrid.models import build_model
from fedhybrid.protocols import ServerState, Submodel

DRAWS = 4000


@pytest.mark.parametrize("sigma", [1.5, 3.0, 6.0])
def test_the_gradient_of_noisy_rows_is_unbiased_with_the_make_up_term_alone(sigma: float) -> None:
    held, weight, rows = devices(), weights_of(), 30
    generator = torch.Generator().manual_seed(3)
    noise = len(held) * sigma**2
    raw = torch.zeros_like(weight)
    for _ in range(DRAWS):
        x = sigma * math.sqrt(len(held)) * torch.randn(rows, 8, generator=generator, dtype=torch.float64)
        y = torch.zeros(rows, 3, dtype=torch.float64)
        for own_x, own_y in held:
            drawn = torch.randn(rows, len(own_x), generator=generator, dtype=torch.float64)
            x, y = x + drawn @ own_x, y + drawn @ own_y
        raw += coded_gradient(x, y, weight) / DRAWS
    true = full_gradient(held, weight)
    predicted = noise * weight.norm() / true.norm()
    assert (raw - noise * weight - true).norm() / true.norm() < 0.02
    assert abs((raw - true).norm() / true.norm() - predicted) < 0.02
    assert predicted > 0.04, "else there is nothing to make up for"


def test_the_mix_is_unbiased_over_all_arrivals_and_dropping_is_not() -> None:
    """Every one of the 2^5 cases with its probability, so nothing is left to chance."""
    held, weight, lr = devices(), weights_of(), 0.01
    arrival = [0.3, 0.5, 0.9, 1.0, 0.4]
    total = sum(len(x) for x, _ in held)
    changes = [-lr * x.mT @ (x @ weight - y) / len(x) for x, y in held]
    share = [len(x) / total for x, _ in held]
    alone = -lr * full_gradient(held, weight) / total  # what the coded gradient is on average
    kept, dropped = torch.zeros_like(weight), torch.zeros_like(weight)
    for case in itertools.product((False, True), repeat=len(held)):
        chance = math.prod(p if came else 1 - p for p, came in zip(arrival, case, strict=True))
        there = [number for number, came in enumerate(case) if came]
        factors = [share[number] / arrival[number] for number in there]
        kept += chance * mixed(weight, [changes[number] for number in there], factors, alone, 0.5)
        if there:
            parts = sum(share[number] for number in there)
            means = [share[number] / parts for number in there]
            dropped += chance * mixed(weight, [changes[number] for number in there], means, None, 1.0)
    wanted = weight + alone
    torch.testing.assert_close(kept, wanted)
    assert (dropped - wanted).norm() > 0.05 * alone.norm()


def test_one_local_step_is_the_unbiased_gradient_mix() -> None:
    """W - (eta / l) (lambda * sum of g_i / p_i + (1 - lambda) g_s) - eta * ridge * W."""
    data, weight, lr, ridge = devices(), weights_of(), 0.1, 0.01
    server, held = coded_server(weight)
    arrival = {0: 0.3, 2: 0.9}
    came = []
    for client, chance in arrival.items():
        x, y = data[client][0][:8], data[client][1][:8]
        moved = -lr * (x.mT @ (x @ weight - y) / len(x) + ridge * weight)
        came.append(update(client, split(moved, ["head.weight"]), share=40 / 200, arrival=chance))
    after = Scfl(mix=0.3, ridge=ridge).aggregate(server, came)
    each = {c: 40 / 8 * data[c][0][:8].mT @ (data[c][0][:8] @ weight - data[c][1][:8]) for c in arrival}
    from_devices = sum(0.3 * (each[c] + 40 * ridge * weight) / p for c, p in arrival.items())
    own = held.x.mT @ (held.x @ weight - held.y) / 20 - 5 * 0.5**2 * weight + 200 * ridge * weight
    wanted = weight - lr / 200 * (from_devices + 0.7 * own)
    torch.testing.assert_close(joined(after.weights, ["head.weight"]), wanted)
    assert after.weights["body.weight"].equal(server.weights["body.weight"])


def test_without_arrivals_the_server_makes_its_own_steps() -> None:
    weight = weights_of()
    server, held = coded_server(weight, steps=3)
    now = weight
    for _ in range(3):
        now = now - 0.1 / 200 * coded_gradient(held.x, held.y, now, noise=held.noise)
    after = Scfl(mix=0.5).aggregate(server, [])
    torch.testing.assert_close(joined(after.weights, ["head.weight"]), weight + 0.5 * (now - weight))
    assert Scfl().acts_alone
    assert not Scfl(mix=1.0).acts_alone
    assert Scfl(mix=1.0).preparations == ()
    nothing_known = replace(server, extra={})
    assert Scfl().aggregate(nothing_known, []) is nothing_known


def test_updates_that_lack_something_count_for_nothing() -> None:
    server, _ = coded_server(weights_of())
    alone = Scfl().aggregate(server, [])
    for odd in (update(0, {}, share=0.2, arrival=0.5), update(1, split(weights_of(), ["head.weight"]), share=math.nan)):
        after = Scfl().aggregate(server, [odd])
        assert after.weights["head.weight"].equal(alone.weights["head.weight"])


@pytest.mark.parametrize("measured", [False, True])
def test_who_was_said_never_to_come_and_came_counts_once(measured: bool) -> None:
    """No division by the probability 0, and no weight of a hundred."""
    server, _ = coded_server(weights_of())
    moved = split(0.1 * torch.ones(8, 3, dtype=torch.float64), ["head.weight"])
    after = {p: Scfl(measured=measured).aggregate(server, [update(0, moved, share=0.2, arrival=p)]) for p in (0.0, 1.0)}
    assert after[0.0].weights["head.weight"].equal(after[1.0].weights["head.weight"])
    rare = Scfl(measured=measured).aggregate(server, [update(0, moved, share=0.2, arrival=1e-4)])
    alone = Scfl().aggregate(server, []).weights["head.weight"]
    far = rare.weights["head.weight"] - alone
    torch.testing.assert_close(far, torch.full_like(far, 0.5 * 0.2 / 0.01 * 0.1))


def test_rows_are_summed_and_kept() -> None:
    rows = {"head.coded_x": torch.ones(4, 8), "head.coded_y": torch.ones(4, 3)}
    figures = {"sigma": 0.5, "largest": 2.0, "lr": 0.1, "steps": 2.0, "seed": 2.0**53 - 1}
    sent = [replace(update(client, rows, **figures), kind="encode") for client in (1, 4)]
    broken = replace(update(5, {"head.coded_x": rows["head.coded_x"]}, **figures), kind="encode")
    after = Scfl().aggregate(ServerState(weights={}), [*sent, broken])
    held = CodedSet.of_extra(after.extra)
    assert held is not None
    assert held.clients.tolist() == [1, 4]
    assert held.x.equal(2 * torch.ones(4, 8))
    assert held.noise == pytest.approx(2 * 0.25)
    assert (held.total_samples, held.usual_steps, held.head) == (80, 2, "head")
    assert int(held.seed) == 2**53 - 1
    assert after.extra["coded/holders"].tolist() == [1, 4, 5], "who sent something odd has received the model, too"


def whole_of(name: str, **options: Any) -> Submodel:
    model = build_model(name, input_shape=(1, 16, 16), classes=5, seed=0, options=options)
    return Submodel(module=model, loss_fn=squared_loss, optimizer=SGD(lr=0.1))


@pytest.mark.parametrize(
    ("name", "options"), [("fourier", {"features": 20}), ("cnn", {"width": 0.25}), ("resnet20", {"width": 0.25})]
)
def test_a_coding_step_adds_a_random_projection_of_its_features(name: str, options: dict[str, Any]) -> None:
    whole = whole_of(name, **options)
    made = encoding_step(whole, 6)
    assert made.forward_only
    x, y = torch.randn(4, 1, 16, 16), torch.tensor([3, 1, 4, -1])
    rows_x, rows_y = (dict(made.module.named_buffers())[each] for each in coded_names(whole.module)[:2])
    torch.manual_seed(9)
    before = made.module.state_dict()
    before = {key: tensor.clone() for key, tensor in before.items()}
    _, figures = made.loss_fn(made.module(x), y)
    torch.manual_seed(9)
    drawn = torch.empty(6, 4).normal_()
    features = features_of(whole, x)
    torch.testing.assert_close(rows_x, drawn[:, :3] @ features[:3])
    torch.testing.assert_close(rows_y, drawn[:, :3] @ torch.eye(5)[y[:3]])
    torch.testing.assert_close(figures[:, 1], features.abs().amax(dim=1))
    changed = {key for key, tensor in made.module.state_dict().items() if not tensor.equal(before[key])}
    assert changed == {"head.rows_x", "head.rows_y"}, "no statistics move"


def features_of(whole: Submodel, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    model = whole.module.eval()
    head = model.get_submodule("head")
    assert isinstance(head, nn.Linear)
    hook = head.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    model(x)
    hook.remove()
    model.train()
    return seen[0] if head.bias is None else torch.cat([seen[0], torch.ones(len(x), 1)], dim=1)


def test_samples_outside_a_load_are_not_scaled() -> None:
    whole = whole_of("fourier", features=20)
    made = encoding_step(whole, 6)
    tensors = dict(made.module.named_buffers())
    tensors["head.scale"].fill_(0.5)
    x = torch.randn(4, 1, 16, 16)
    torch.manual_seed(9)
    made.loss_fn(made.module(x), torch.tensor([3, 1 + 5, 4 + 5, 0]))
    torch.manual_seed(9)
    drawn = torch.empty(6, 4).normal_() * torch.tensor([0.5, 1.0, 1.0, 0.5])
    torch.testing.assert_close(tensors["head.rows_x"], drawn @ features_of(whole, x))
    torch.testing.assert_close(tensors["head.rows_y"], drawn @ torch.eye(5)[[3, 1, 4, 0]])


def test_only_the_last_layer_trains_by_squared_loss() -> None:
    step = head_step(whole_of("resnet20", width=0.25))
    assert [n for n, p in step.module.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    scores, labels = torch.randn(3, 5), torch.tensor([1, 4, -1])
    loss, each = step.loss_fn(scores, labels)
    wanted = 0.5 * (scores[:2] - torch.eye(5)[labels[:2]]).square().sum(dim=1)
    torch.testing.assert_close(each, torch.cat([wanted, torch.zeros(1)]))
    torch.testing.assert_close(loss, wanted.sum() / 3)
    statistics = {name: tensor.clone() for name, tensor in step.module.named_buffers()}
    step.module(torch.randn(4, 1, 16, 16))
    assert all(tensor.equal(statistics[name]) for name, tensor in step.module.named_buffers())


def test_random_maps_are_counted() -> None:
    assert drawn_bytes(whole_of("fourier", features=20).module) == 4 * (256 * 20 + 20)
    assert drawn_bytes(whole_of("cnn", width=0.25).module) == 0


@pytest.mark.parametrize("name", ["cnn", "resnet20"])
def test_a_lifted_model_reads_random_features_of_the_frozen_ones(name: str) -> None:
    model = whole_of(name, width=0.25).module
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    sample = torch.randn(32, 1, 16, 16)
    made, again = (lifted(model, sample, 400, 1.0) for _ in range(2))
    assert all(tensor.equal(before[key]) for key, tensor in model.state_dict().items())
    assert all(a.equal(b) for a, b in zip(made.state_dict().values(), again.state_dict().values(), strict=True))
    assert made.training
    check_head(made, sample)
    step = head_step(Submodel(module=made, loss_fn=squared_loss, optimizer=SGD(lr=0.1)))
    assert [n for n, p in step.module.named_parameters() if p.requires_grad] == ["head.2.weight"]
    below = features_of(Submodel(module=model, loss_fn=squared_loss, optimizer=SGD(lr=0.1)), sample)[:, :-1]
    standard = (below - below.mean(dim=0)) / (below - below.mean(dim=0)).square().mean().sqrt()
    wanted = torch.exp(-torch.cdist(standard, standard).square() / below.shape[1])
    seen: list[Tensor] = []
    made.get_submodule("head.2").register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    made.eval()(sample)
    assert (seen[0] @ seen[0].mT - wanted).abs().mean() < 0.1


def test_models_that_do_not_end_in_a_linear_layer_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x).softmax(dim=1).sum(dim=1)

    with pytest.raises(ConfigError, match="coded training needs a model that ends in one linear layer"):
        check_head(Odd(), torch.randn(2, 4))
    check_head(nn.Sequential(nn.Flatten(), nn.Linear(8, 3)), torch.randn(2, 2, 4))


def test_measured_mix_has_the_least_variance() -> None:
    for clients, server in ((3.0, 1.0), (0.1, 2.0), (5.0, 5.0)):
        best = Measured(clients=clients, server=server).mix
        spread = [mix**2 * clients + (1 - mix) ** 2 * server for mix in (best, best - 0.01, best + 0.01)]
        assert spread[0] < min(spread[1:])
    assert Measured(clients=0.0, server=0.0).mix == 1.0
    assert Measured(clients=1.0, server=math.inf).mix == 1.0, "nothing is known of the server's"


def test_the_variance_of_rows_is_that_of_their_gradient() -> None:
    (x, y), weight, rows = devices()[0], weights_of(), 40
    generator = torch.Generator().manual_seed(5)
    found, said = [], []
    for _ in range(600):
        drawn = torch.randn(rows, len(x), generator=generator, dtype=torch.float64)
        found.append(coded_gradient(drawn @ x, drawn @ y, weight))
        said.append(row_variance(drawn @ x, drawn @ y, weight, rows))
    variance = float(torch.stack(found).var(dim=0).sum())
    assert abs(sum(said) / len(said) / variance - 1) < 0.15


def test_mini_batches_of_rows_are_drawn_by_seed_and_version() -> None:
    weight = weights_of()
    _, held = coded_server(weight)
    step = ServerStep(x=held.x, y=held.y, noise=held.noise, samples=200, lr=0.1, steps=2, batch=5)
    assert step.change(weight, 1).equal(step.change(weight, 1))
    assert not step.change(weight, 1).equal(step.change(weight, 2))
    assert not step.change(weight, 1).equal(replace(step, seed=1).change(weight, 1))
    mean = sum(replace(step, steps=1).change(weight, version) for version in range(3000)) / 3000
    whole = replace(step, steps=1, batch=0).change(weight, 0)
    assert (mean - whole).norm() < 0.05 * whole.norm()


def test_a_load_is_the_one_of_which_most_comes_back() -> None:
    load = best_load(100, 8, lambda steps: max(0.0, 1.0 - steps / 10))
    assert (load.steps, load.samples) == (5, 40)
    assert load.expected == pytest.approx(20)
    assert best_load(100, 8, lambda steps: 1.0).samples == 100
    assert best_load(3, 8, lambda steps: 0.0).steps == 1


@pytest.mark.parametrize("name", ["scfl", "codedfedl"])
def test_options_and_optimizers_that_do_not_go(name: str) -> None:
    method = METHODS[name]()
    for base in (SGD(lr=0.1, momentum=0.9), SGD(lr=0.1, weight_decay=0.1), Adam(lr=0.1)):
        with pytest.raises(ConfigError, match="plain SGD"):
            method.optimizer(base)
    assert method.optimizer(SGD(lr=0.1)) == SGD(lr=0.1)
    with pytest.raises(ConfigError, match="coded_rows must be at least 1"):
        (Scfl if name == "scfl" else CodedFedL)(coded_rows=0)


def test_all_options_that_are_none_are_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Scfl(sigma=-1.0, mix=0.0, sigmas="0.1 low", batch_rows=-1, ridge=math.inf, lift=-1, lift_gamma=0.0)
    assert len(caught.value.problems) == 7


def test_measured_needs_rows_and_sums_without_bias() -> None:
    with pytest.raises(ConfigError) as caught:
        Scfl(measured=True, mix=1.0, inverse=False)
    assert len(caught.value.problems) == 2
