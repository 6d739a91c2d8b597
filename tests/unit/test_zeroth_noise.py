"""Noise that client and server draw alike, what a program does with it, and the gradient that scalars make of it."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tests.zeroth_parts import BATCH, client_of, digits, masks_at, network, prepared, task_of, whole_of
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedhybrid.engine.runtime import one_thread
from fedhybrid.errors import ConfigError
from fedhybrid.graph import allocator_events, peak_of
from fedhybrid.methods.foresight_zo import ForesightZo
from fedhybrid.methods.zeroth import (
    SCALARS,
    Passes,
    descend,
    differences,
    direction_seed,
    drawn,
    estimated_gradient,
    masks_of,
    own_room_bytes,
    trained_locally,
    uploaded_scalars,
)
from fedhybrid.models.perturbed import draw_names
from fedhybrid.tree import Tensors, detached_copy, load_into, tensors_of

SIGMA = 1e-2
METHOD = ForesightZo(mask="random", density=0.5, directions=4, sigma=SIGMA, difference="central")


def perturbed_losses(weights: Tensors, seed: int, scale: float, x: Tensor, y: Tensor) -> Tensor:
    """Each sample's loss in plain PyTorch, the whole model perturbed at once, as a server would do it."""
    names, masks = draw_names(weights), masks_of(weights)
    moved = {n: weights[n] + scale * z * masks.get(n, 1.0) for n, z in drawn(seed, names, weights)}
    with torch.no_grad():
        return F.cross_entropy(functional_call(network(), {n: moved[n] for n in names}, (x,)), y, reduction="none")


@pytest.fixture(scope="module")
def weights() -> Tensors:
    return detached_copy(tensors_of(whole_of(METHOD).module))


@pytest.mark.parametrize("name", ["one-1", "one-2", "one-4", "pair-1"])
def test_a_program_sees_the_noise_that_the_server_draws(name: str, weights: Tensors) -> None:
    """Each pass is the loss at w + sigma z m, whichever submodel runs, also where parts are not equally long."""
    client, (x, y) = client_of(METHOD, whole_of(METHOD), name), digits().batch(torch.arange(BATCH))
    passes = Passes(client, name)
    with one_thread():
        for seed in (0, 2**62 + 5):
            both = passes.both(x, y, seed=seed, scale=SIGMA, lanes=2 if name == "pair-1" else 1)
            for losses, scale in zip(both, (SIGMA, -SIGMA), strict=True):
                expected = perturbed_losses(weights, seed, scale, x, y)
                assert float((losses - expected).abs().max()) < 2e-6
                assert float((expected - perturbed_losses(weights, seed, 0.0, x, y)).abs().max()) > 1e-4
    assert passes.count == 2 * {"one-1": 2, "one-2": 4, "one-4": 8, "pair-1": 1}[name]


def test_a_base_pass_is_the_model_itself(weights: Tensors) -> None:
    client, (x, y) = client_of(METHOD, whole_of(METHOD), "one-1"), digits().batch(torch.arange(BATCH))
    with one_thread():
        losses = Passes(client, "one-1").losses(x, y, seed=3, scales=(0.0,))[0]
        expected = F.cross_entropy(
            functional_call(network(), {n: weights[n] for n in draw_names(weights)}, (x,)), y, reduction="none"
        )
    assert torch.equal(losses.to(torch.float32), expected.detach())


_IN_ANOTHER_PROCESS = """
import hashlib, torch
from fedhybrid.methods.zeroth import direction_seed, drawn
names = ("a.weight", "a.bias", "b.weight")
weights = dict(zip(names, (torch.zeros(5, 7, 3, 3), torch.zeros(5), torch.zeros(33, 5, dtype=torch.bfloat16))))
digest = hashlib.sha256()
for _, z in drawn(direction_seed(9, batch=2, direction=1), names, weights):
    digest.update(z.to(torch.float32).numpy().tobytes())
print(digest.hexdigest())
"""


def test_another_process_draws_the_same_noise() -> None:
    told = subprocess.run(
        [sys.executable, "-c", _IN_ANOTHER_PROCESS], capture_output=True, text=True, check=True, timeout=120
    )
    torch.manual_seed(direction_seed(9, batch=2, direction=1))  # and torch's own generator does, too
    digest = hashlib.sha256()
    for shape, dtype in (((5, 7, 3, 3), torch.float32), ((5,), torch.float32), ((33, 5), torch.bfloat16)):
        digest.update(torch.randn(shape, dtype=dtype).to(torch.float32).numpy().tobytes())
    assert told.stdout.strip() == digest.hexdigest()


def client_gradient(scalars: Tensor, seeds: list[int], submodel: nn.Module) -> Tensors:
    """What the client would make of its scalars: the noise is read off its own layers while it runs them in eager mode.

    With weights of zero and a perturbation of length 1 a layer's own parameters are the noise under its mask.
    """
    found: Tensors = {}
    tensors = tensors_of(submodel)
    kept = detached_copy(tensors)
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.zero_()
    tensors["lane_scales"].fill_(1.0)
    paths = {id(module): path for path, module in submodel.named_modules()}
    own_rules = {id(m): m.rule for m in submodel.modules() if hasattr(m, "rule")}
    factor = 0.0

    def watch(layer: nn.Module, held: Tensors) -> list[Tensors]:
        made = list(own_rules[id(layer)](layer, held))  # type: ignore[operator]
        for name, tensor in made[0].items():
            full = f"{paths[id(layer)]}.{name}"
            found[full] = found.get(full, torch.zeros_like(tensor)) + factor * tensor
        return made

    try:
        for module in submodel.modules():
            if id(module) in own_rules:
                vars(module)["rule"] = watch
        for scalar, seed in zip(scalars.tolist(), seeds, strict=True):
            torch.manual_seed(seed)
            factor = scalar / SIGMA / len(seeds)
            with torch.no_grad():
                submodel(digits().batch(torch.arange(BATCH))[0])
    finally:
        for module in submodel.modules():
            if id(module) in own_rules:
                vars(module)["rule"] = own_rules[id(module)]
        load_into(tensors, kept)
    return found


@pytest.mark.parametrize("central", [False, True])
def test_the_server_rebuilds_the_client_s_gradient(central: bool, weights: Tensors) -> None:
    whole = whole_of(METHOD)
    client = client_of(METHOD, whole, "one-1")
    task = task_of({**weights, SCALARS: torch.zeros(2, 4)}, "one-1")
    with one_thread():
        update = uploaded_scalars(task, client, seed=5, batches=2, directions=4, sigma=SIGMA, central=central)
    scalars = update.weights[SCALARS]
    assert scalars.numel() * scalars.element_size() == 4 * 4 * 2  # 4 K bytes a batch
    seeds = [direction_seed(5, batch=b, direction=i) for b in range(2) for i in range(4)]
    names, masks = draw_names(weights), masks_of(weights)
    rebuilt = dict(estimated_gradient(scalars.flatten() / 8, seeds, names, weights, masks, sigma=SIGMA))
    own = client_gradient(scalars.flatten(), seeds, METHOD.submodel(whole, "one-1").module)
    assert own.keys() == rebuilt.keys() == set(names)
    assert max(float((own[n] - rebuilt[n]).abs().max()) for n in names) < 1e-6
    assert max(float(g.abs().max()) for g in rebuilt.values()) > 0.1
    assert all(not bool(rebuilt[n][~masks[n]].any()) for n in masks)


@pytest.mark.parametrize("central", [False, True])
def test_scalars_are_the_same_whatever_runs(central: bool, weights: Tensors) -> None:
    """And those of the losses of plain PyTorch."""
    x, y = digits().batch(torch.arange(BATCH))
    found = []
    means = {
        (seed, scale): perturbed_losses(weights, seed, scale, x, y).mean()
        for seed in (1, 2)
        for scale in (-SIGMA, 0.0, SIGMA)
    }
    back, share = (-SIGMA, 2) if central else (0.0, 1)
    expected = torch.stack([(means[seed, SIGMA] - means[seed, back]) / share for seed in (1, 2)])
    assert float(expected.abs().min()) > 1e-4
    for name in ("one-1", "one-4", "pair-1") if central else ("one-1", "one-4"):
        passes = Passes(client_of(METHOD, whole_of(METHOD), name), name)
        with one_thread():
            found.append(
                differences(
                    passes, x, y, seeds=[1, 2], sigma=SIGMA, central=central, lanes=2 if name == "pair-1" else 1
                )
            )
    assert float((found[0][0] - expected).abs().max()) < 2e-6
    for scalars, losses in found[1:]:
        assert float((scalars - found[0][0]).abs().max()) < 1e-6
        assert float((losses - found[0][1]).abs().max()) < 2e-6


@pytest.mark.parametrize("inputs", [9, 99])
@pytest.mark.parametrize("count", [10, 100, 500])
def test_the_estimate_is_as_good_as_expected(inputs: int, count: int) -> None:
    """The cosine of a true and an estimated gradient is about 1 / sqrt(1 + (d + 1) / K)."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(32, inputs, generator=generator), torch.randint(0, 10, (32,), generator=generator)
    model = nn.Linear(inputs, 10).double()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    true = torch.autograd.grad(F.cross_entropy(model(x.double()), y), list(model.parameters()))
    cosines = [
        _cosine(dict(zip(weights, true, strict=True)), _estimate(weights, {}, (x, y), count=count, repeat=repeat))
        for repeat in range(max(3, 1000 // count // 4))
    ]
    expected = 1 / math.sqrt(1 + (10 * (inputs + 1) + 1) / count)
    assert sum(cosines) / len(cosines) == pytest.approx(expected, abs=0.05)


def test_a_gradient_in_runs_is_the_same_to_the_last_bit(weights: Tensors) -> None:
    names, masks, seeds = draw_names(weights), masks_of(weights), [5, 6, 7]
    whole, runs = (
        dict(estimated_gradient(torch.tensor([0.1, -0.2, 0.3]), seeds, names, weights, masks, sigma=SIGMA, **room))
        for room in ({}, {"room_bytes": 1.0})
    )
    assert list(whole) == list(runs) == list(names)
    assert all(torch.equal(whole[name], runs[name]) for name in names)


CASES = {
    "tiny_convs": (METHOD, {}, BATCH),
    "cnn": (replace(METHOD, directions=50), {"width": 0.125, "norm": "group"}, 16),
    "resnet20": (replace(METHOD, density=0.1), {"width": 1.0, "norm": "group"}, 2),
}


@pytest.mark.parametrize("model", CASES)
@pytest.mark.parametrize("name", ["one-1", "one-8", "split"])
def test_a_local_step_stays_within_the_peak_of_a_pass(model: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it allocates beside what is resident; it draws with torch's own generator, as passes do."""
    method, options, batch = CASES[model]
    made = network(model if options else f"tests.zeroth_parts:{model}", **options)
    whole, submodel = whole_of(method, made), "one-1" if name == "split" else name
    client = client_of(method, whole, submodel, batch=batch, actions=("split",) if name == "split" else ())
    resident_bytes = prepared(method, whole, submodel, batch).resident_bytes
    own = {n: t for n, t in client.tensors.items() if n in tensors_of(whole.module)}
    x, y = client.batch(torch.arange(batch))
    names, masks = draw_names(own), masks_of(own)
    seeds, scalars = list(range(method.directions)), torch.full((method.directions,), 1e-4)
    room_bytes = own_room_bytes(client, own, batch_bytes=x.nbytes + y.nbytes)
    assert sum(t.nbytes for t in client.tensors.values()) + x.nbytes + y.nbytes == resident_bytes
    assert room_bytes >= max(own[n].nbytes for n in names)
    before = {n: own[n].clone() for n in names}
    monkeypatch.setattr(torch, "Generator", None)  # another one would take 5 KB that no allocator sees
    with one_thread(), allocator_events() as events:
        descend(own, scalars, seeds, names, masks, sigma=SIGMA, clip=0.01, lr=0.1, room_bytes=room_bytes)
    assert any(not torch.equal(own[n], before[n]) for n in names)
    used_bytes = peak_of(events)
    assert used_bytes > max(own[n].nbytes for n in names)
    assert resident_bytes + used_bytes <= client.measured_peak_bytes


def test_fewer_weights_are_estimated_better() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(32, 99, generator=generator), torch.randint(0, 10, (32,), generator=generator)
    model = nn.Linear(99, 10, bias=False).double()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    true = torch.autograd.grad(F.cross_entropy(model(x.double()), y), list(model.parameters()))[0]
    found = []
    for density in (1.0, 0.3, 0.1):
        mask = torch.rand(true.shape, generator=generator) < density
        estimates = [_estimate(weights, {"weight": mask}, (x, y), count=50, repeat=repeat) for repeat in range(8)]
        found.append(sum(_cosine({"weight": true * mask}, e) for e in estimates) / 8)
    assert found[0] + 0.1 < found[1] < found[2] - 0.1


def _estimate(weights: Tensors, masks: Tensors, batch: tuple[Tensor, Tensor], *, count: int, repeat: int) -> Tensors:
    """From central differences of real losses."""
    (x, y), names = batch, tuple(weights)
    seeds = [direction_seed(repeat, direction=i) for i in range(count)]

    def loss(seed: int, scale: float) -> Tensor:
        moved = {n: weights[n] + scale * z * masks.get(n, 1.0) for n, z in drawn(seed, names, weights)}
        return F.cross_entropy(F.linear(x.double(), moved["weight"], moved.get("bias")), y)

    scalars = torch.stack([(loss(seed, 1e-3) - loss(seed, -1e-3)) / 2 for seed in seeds])
    return dict(estimated_gradient(scalars / count, seeds, names, weights, masks, sigma=1e-3))


def _cosine(a: Tensors, b: Tensors) -> float:
    flat_a, flat_b = (torch.cat([t[n].flatten() for n in sorted(t)]) for t in (a, b))
    return float(F.cosine_similarity(flat_a, flat_b, dim=0))


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("central", [False, True])
def test_local_steps_are_plain_descent_in_place(central: bool, clip: float, weights: Tensors) -> None:
    """The client's weights after two batches are those of the formula; what is pruned stays zero and is not sent."""
    method = METHOD
    client = client_of(method, whole_of(method), "one-1")
    addresses = {n: t.data_ptr() for n, t in client.tensors.items()}
    task = task_of(weights, "one-1")
    with one_thread():
        update = trained_locally(task, client, batches=2, directions=4, sigma=SIGMA, central=central, clip=clip)
    assert addresses == {n: t.data_ptr() for n, t in client.tensors.items()}
    names, masks = draw_names(weights), masks_of(weights)
    expected = {n: weights[n].clone() for n in names}
    twin = client_of(method, whole_of(method), "one-1")
    batches = list(twin.batches(task_of(weights, "one-1", steps=2).work, task.seed))
    for number, (x, y) in enumerate(batches):
        load_into({n: twin.tensors[n] for n in names}, expected)
        seeds = [direction_seed(task.seed, batch=number, direction=i) for i in range(4)]
        with one_thread():
            scalars, _ = differences(Passes(twin, "one-1"), x, y, seeds=seeds, sigma=SIGMA, central=central, lanes=1)
        gradient = dict(estimated_gradient(scalars / 4, seeds, names, weights, masks, sigma=SIGMA))
        top = max(float(g.abs().max()) for g in gradient.values())
        assert top > 0.05
        factor = clip / top if clip else 1.0
        expected = {n: expected[n] - task.work.lr * factor * gradient[n] for n in names}
    assert update.weights.keys() == set(names)
    for name in names:
        assert torch.allclose(update.weights[name], expected[name], atol=1e-5)
        if name in masks:
            assert not bool(update.weights[name][~masks[name]].any())
            assert torch.equal(update.masks[name], masks[name])


def test_masks_of_another_share_change_the_noise(weights: Tensors) -> None:
    fewer = masks_at(weights, 0.1)
    x, y = digits().batch(torch.arange(BATCH))
    assert not torch.equal(perturbed_losses(weights, 1, SIGMA, x, y), perturbed_losses(fewer, 1, SIGMA, x, y))


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(1024, 8), nn.Linear(8, 8)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.b(self.a(x.flatten(1))))  # type: ignore[no-any-return]


class _Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift, self.layer = nn.Parameter(torch.zeros(1024)), nn.Linear(1024, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1) + self.shift)  # type: ignore[no-any-return]


def test_models_that_do_not_fit_are_refused_with_reasons() -> None:
    x = digits().batch(torch.arange(2))[0]
    tied = nn.Sequential(nn.Flatten(), nn.Linear(1024, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    tied[3].weight = tied[2].weight
    cases = {
        'norm = "group"': network("resnet20", width=0.25),
        "'b' is used 2 times": _Twice(),
        "'unused' is used 0 times": _Twice(),
        "'the model' holds some beside": _Bare(),
        "2.weight, 3.weight are one": tied,
        "set dropout to 0": nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(1024, 10)),
    }
    for words, model in cases.items():
        state = torch.get_rng_state()
        with pytest.raises(ConfigError) as caught:
            ForesightZo().adapt(model, x)
        assert any(words in problem for problem in caught.value.problems), (words, caught.value.problems)
        assert torch.equal(state, torch.get_rng_state())
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(ConfigError, match="needs inputs that are numbers"):
        ForesightZo().adapt(model, torch.zeros(2, 4, dtype=torch.int64))
