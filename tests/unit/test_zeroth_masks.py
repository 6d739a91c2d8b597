"""Masks: how many entries stay, by which score, and what clients' saliencies make of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.zeroth_parts import BATCH, client_of, correlation, digits, kept_ratio, network, ranks, task_of, whole_of
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from fedhybrid.engine.runtime import one_thread
from fedhybrid.errors import ConfigError
from fedhybrid.methods.foresight_zo import ForesightZo
from fedhybrid.methods.zeroth import (
    SCALARS,
    SEED,
    client_seed,
    largest,
    mask_name,
    masked_names,
    masks_of,
    pruned,
    pruned_layers,
    rebuilt_saliency,
    redraw,
    saliency_of,
    scheduled,
    shift_name,
    synflow,
    synflow_masks,
)
from fedhybrid.methods.zeroth.noise import direction_seed
from fedhybrid.models.perturbed import draw_names
from fedhybrid.protocols import ServerState
from fedhybrid.records import LocalWork, Update
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import Tensors, detached_copy, tensors_of

X = digits().batch(torch.arange(BATCH))[0]


def saliencies(update: Update, weights: Tensors, seed: int) -> Tensors:
    """A client's saliency by the names of weights, from scalars or gradients."""
    names = [name for name in draw_names(weights) if mask_name(name) in weights]
    if SCALARS not in update.weights:
        return {name: update.weights[shift_name(name)] for name in names}
    seeds = [direction_seed(seed, direction=i) for i in range(update.weights[SCALARS].numel())]
    return rebuilt_saliency(update.weights[SCALARS].flatten(), seeds, names, weights, sigma=0.05)


def asked(
    method: ForesightZo,
    kind: str,
    *,
    repeats: int,
    theta: int | None,
    seed: int = 5,
    model: nn.Module | None = None,
    batch: int = BATCH,
) -> Update:
    """What a client answers to a pruning task."""
    whole = whole_of(method, model)
    client = client_of(method, whole, kind, batch=batch)
    task = task_of(detached_copy(tensors_of(whole.module)), kind, kind="prune-1", batch=batch)
    with one_thread():
        return saliency_of(task, client, draws_weights=theta, seed=seed, repeats=repeats, sigma=0.05)


@pytest.mark.parametrize("kind", ["random", "magnitude", "synflow"])
@pytest.mark.parametrize("density", [0.1, 0.5])
def test_the_share_is_exact_and_the_mask_the_same_each_time(kind: str, density: float) -> None:
    model = network("cnn", width=0.25)
    first, second = (
        detached_copy(tensors_of(ForesightZo(mask=kind, density=density).adapt(model, X))) for _ in range(2)
    )
    assert abs(kept_ratio(first) - density) < 0.001
    assert all(torch.equal(first[name], second[name]) for name in first)
    server = ForesightZo(mask=kind, density=density).init(first)
    for name, mask in masks_of(first).items():
        assert torch.equal(server.weights[name] != 0, mask & (first[name] != 0))
    if kind == "random":
        other = detached_copy(tensors_of(ForesightZo(mask=kind, density=density, mask_seed=1).adapt(model, X)))
        assert any(not torch.equal(other[name], first[name]) for name in first)


def test_the_largest_of_all_layers_stay_and_what_is_gone_stays_gone() -> None:
    scores = {"a": torch.tensor([[5.0, 1.0], [4.0, 9.0]]), "b": torch.tensor([3.0, 2.0, 8.0, 0.0])}
    kept = {"a": torch.tensor([[True, True], [True, False]]), "b": torch.ones(4, dtype=torch.bool)}
    masks = largest(scores, kept, 0.5)
    assert masks["a"].tolist() == [[True, False], [True, False]]
    assert masks["b"].tolist() == [True, False, True, False]
    assert largest(scores, masks, 0.9)["b"].tolist() == masks["b"].tolist()
    assert scheduled(0.1, 20, 20) == pytest.approx(0.1)


def test_synaptic_flow_is_that_of_absolute_weights_and_is_conserved() -> None:
    """What flows into a layer without bias is what flows out of it (the paper's Theorem 1)."""
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(1024, 6, bias=False), torch.nn.ReLU(), torch.nn.Linear(6, 3, bias=False)
    )
    masks = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters()}
    flow = synflow(model, X, masks)
    assert torch.allclose(flow["1.weight"].sum(1), flow["3.weight"].sum(0))
    assert all(bool((values >= 0).all()) for values in flow.values())


def test_the_largest_are_those_of_a_full_sort_also_where_many_are_equal() -> None:
    scores = {"a": torch.randint(0, 5, (40, 30), generator=torch.Generator().manual_seed(2)).to(torch.float32)}
    kept = {"a": torch.rand(40, 30, generator=torch.Generator().manual_seed(3)) < 0.8}
    flat = scores["a"].flatten().masked_fill(~kept["a"].flatten(), -1.0)
    for count in (0, 1, 200, 700, int(kept["a"].sum()), 1200):
        left = min(count, int(kept["a"].sum()))
        expected = torch.zeros(1200, dtype=torch.bool)
        expected[flat.argsort(descending=True, stable=True)[:left]] = True
        assert torch.equal(largest(scores, kept, count / 1200)["a"].flatten(), expected)
    with pytest.raises(ConfigError, match="finite"):
        largest({"a": torch.full((40, 30), float("nan"))}, kept, 0.5)


def bounded(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(1024, 20), activation, nn.Linear(20, 20), activation, nn.Linear(20, 10)
    )


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.Hardtanh(), nn.Tanh(), nn.Sigmoid()])
def test_synaptic_flow_gets_through_bounded_activations(activation: nn.Module) -> None:
    """The masks are those of the same network with ReLU, through which positive numbers pass as they are."""
    models = []
    for between in (activation, nn.ReLU()):
        torch.manual_seed(4)
        models.append(bounded(between))
    masks = {f"{path}.weight": torch.ones_like(models[0].get_submodule(path).weight, dtype=torch.bool)  # type: ignore[arg-type]
             for path in pruned_layers(models[0])}  # fmt: skip
    one, other = (synflow_masks(model, X, masks, 0.2, rounds=5) for model in models)
    assert all(torch.equal(one[name], other[name]) for name in masks)
    assert all(bool(mask.any()) for mask in one.values())


def test_synaptic_flow_that_does_not_arrive_is_told() -> None:
    model = bounded(nn.ReLU())
    with torch.no_grad():
        model[3].weight.zero_()  # type: ignore[operator,union-attr]
    with pytest.raises(ConfigError, match=r"none reaches 1\.weight, 3\.weight:"):
        ForesightZo(mask="synflow").adapt(model, X)


@pytest.mark.parametrize("kind", ["random", "magnitude", "synflow"])
def test_a_layer_without_any_weight_is_refused(kind: str) -> None:
    model = bounded(nn.ReLU())
    with torch.no_grad():
        model[5].weight.mul_(1e-6)  # type: ignore[operator,union-attr]
    with pytest.raises(ConfigError, match=r"layers?.*[135]\.weight.*raise density"):
        ForesightZo(mask=kind, density=2 / 21000).adapt(model, X)
    adapted = ForesightZo(mask=kind, density=2 / 21000, allow_empty_layers=True).adapt(model, X)
    kept = [bool(mask.any()) for mask in masks_of(detached_copy(tensors_of(adapted))).values()]
    assert any(kept)
    assert not all(kept)


def test_a_pruning_round_that_empties_a_layer_is_refused() -> None:
    method = ForesightZo(mask="snip", density=0.5)
    weights = detached_copy(tensors_of(whole_of(method).module))
    names, generator = masked_names(weights), torch.Generator().manual_seed(6)
    gradients = {shift_name(n): 1 + torch.rand(weights[n].shape, generator=generator) for n in names}
    gradients[shift_name(names[1])].zero_()
    with pytest.raises(ConfigError, match=f"none in 1 of 4 layers: {names[1]}"):
        method.aggregate(ServerState(weights=weights, extra={SEED: torch.tensor(1)}), [_update(0, gradients)])
    allowing = replace(method, allow_empty_layers=True)
    after = allowing.aggregate(ServerState(weights=weights, extra={SEED: torch.tensor(1)}), [_update(0, gradients)])
    assert not bool(masks_of(after.weights)[names[1]].any())


def test_gradients_of_masks_are_those_of_the_kernel_s_trace() -> None:
    """ "ntk-bp" against autograd in plain PyTorch, with normalisations that take the statistics of the first copy."""
    method = ForesightZo(mask="foresight", prune_eps=0.05)
    update = asked(method, "ntk-bp-1", repeats=1, theta=9)
    whole = whole_of(method)
    weights = detached_copy(tensors_of(whole.module))
    redraw(weights, masked_names(weights), 9)
    module = method.submodel(whole, "ntk-bp-1").module
    shifts = {shift_name(n): torch.zeros_like(weights[n], requires_grad=True) for n in masked_names(weights)}
    x = torch.randn(X.shape, generator=torch.Generator().manual_seed(derive_seed(11, purpose="inputs", round_index=0)))
    torch.manual_seed(direction_seed(5, direction=0))
    scores, _, _ = functional_call(module, {**weights, **shifts}, (x,))
    base, other = scores.chunk(2)
    gradient = torch.autograd.grad((other - base).square().sum() / BATCH, list(shifts.values()))
    for (name, _), expected in zip(shifts.items(), gradient, strict=True):
        assert torch.allclose(update.weights[name], expected, rtol=1e-4, atol=1e-6), name
    plain = functional_call(whole.module, {n: weights[n] for n in weights}, (x,))
    assert torch.allclose(base, plain, atol=1e-5)  # the first copy is the network itself
    assert update.steps == 1
    assert update.kind == "prune-1"


def test_snip_is_the_gradient_of_the_loss_with_respect_to_masks() -> None:
    """Against autograd in plain PyTorch, the mean over two batches of the client's own data."""
    method = ForesightZo(mask="snip")
    whole = whole_of(method)
    update, weights = asked(method, "snip-1", repeats=2, theta=None), detached_copy(tensors_of(whole.module))
    names, model = masked_names(weights), network()
    work = LocalWork(epochs=1, batch_size=BATCH, lr=1.0, steps=2)
    masks = {name: torch.ones_like(weights[name], requires_grad=True) for name in names}
    params = {name: weights[name] * masks.get(name, 1.0) for name, _ in model.named_parameters()}
    batches = client_of(method, whole, "snip-1").batches(work, 11)
    loss = sum((F.cross_entropy(functional_call(model, params, (x,)), y) for x, y in batches), torch.zeros(())) / 2
    for name, expected in zip(names, torch.autograd.grad(loss, [masks[n] for n in names]), strict=True):
        assert float(expected.abs().max()) > 1e-3
        assert torch.allclose(update.weights[shift_name(name)], expected, rtol=1e-4, atol=1e-6), name


def test_parts_of_a_batch_give_the_same_saliency() -> None:
    method = ForesightZo(mask="foresight")
    for kind in ("ntk", "ntk-bp", "snip"):
        theta = None if kind == "snip" else 9
        whole, parts = (asked(method, f"{kind}-{number}", repeats=2, theta=theta) for number in (1, 4))
        assert parts.steps == 4 * whole.steps
        for name, tensor in whole.weights.items():
            scale = float(tensor.abs().max())
            assert float((parts.weights[name] - tensor).abs().max()) < 2e-4 * scale, (kind, name)


@pytest.mark.slow
def test_saliency_needs_no_gradient() -> None:
    """With many directions scalars rank mask entries as gradients do, on a network of less than 500 weights."""
    method, model, batch = ForesightZo(mask="foresight", prune_eps=0.05), network("tests.zeroth_parts:pooled_mlp"), 32
    weights = detached_copy(tensors_of(whole_of(method, model).module))
    assert 400 < sum(mask.numel() for mask in masks_of(weights).values()) < 500
    zo, bp = (
        saliencies(asked(method, kind, repeats=repeats, theta=9, model=model, batch=batch), weights, 5)
        for kind, repeats in (("ntk-1", 6000), ("ntk-bp-1", 1000))
    )
    flat_zo, flat_bp = (torch.cat([s[n].abs().flatten() for n in sorted(s)]) for s in (zo, bp))
    assert correlation(ranks(flat_zo), ranks(flat_bp)) > 0.5


def test_the_server_averages_signed_saliencies_of_both_forms() -> None:
    """Two clients that disagree cancel out; scalars count as the gradient that they make up."""
    method = ForesightZo(mask="foresight")
    weights = detached_copy(tensors_of(whole_of(method).module))
    server = ServerState(weights=weights, extra={SEED: torch.tensor(77)})
    names = masked_names(weights)
    up = {shift_name(n): torch.full_like(weights[n], 3.0) for n in names}
    up[shift_name(names[0])] = torch.full_like(weights[names[0]], 1.0)
    down = {name: -tensor for name, tensor in up.items()} | {shift_name(names[0]): up[shift_name(names[0])]}
    updates = [_update(0, up), _update(1, down)]
    density = weights[names[0]].numel() / sum(weights[n].numel() for n in names)
    after = masks_of(pruned(server, updates, density=density, sigma=0.05).weights)
    assert bool(after[names[0]].all())
    assert not any(bool(after[n].any()) for n in names[1:])
    scalars = torch.tensor([[0.5, -0.2, 0.1]])
    from_scalars = pruned(server, [_update(3, {SCALARS: scalars})], density=0.3, sigma=0.05)
    seeds = [direction_seed(client_seed(77, 1, 3), direction=i) for i in range(3)]
    order = [n for n in draw_names(weights) if n in names]
    found = rebuilt_saliency(scalars[0], seeds, order, weights, sigma=0.05)
    as_gradient = {shift_name(n): found[n] for n in names}
    from_gradient = pruned(server, [_update(3, as_gradient)], density=0.3, sigma=0.05)
    for name in weights:
        assert torch.equal(from_scalars.weights[name], from_gradient.weights[name])
    assert abs(kept_ratio(from_scalars.weights) - 0.3) <= 0.5 / 412
    for name, mask in masks_of(from_scalars.weights).items():
        assert not bool(from_scalars.weights[name][~mask].any())


def _update(client: int, tensors: Tensors) -> Update:
    return Update(
        client=client, round_index=0, weights=tensors, num_samples=1 + client, samples_seen=1, steps=1, loss_mean=0.0,
        squared_loss_sum=0.0, measured_peak_bytes=0, kind="prune-1",
    )  # fmt: skip


def test_all_problems_of_options_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        ForesightZo(mask="best", density=0.0, directions=0, sigma=-1.0, clip=-1.0, ema=1.0, variant="both")
    assert len(caught.value.problems) == 7
    with pytest.raises(ConfigError, match="ema belongs to"):
        ForesightZo(ema=0.9, variant="fedavg")
