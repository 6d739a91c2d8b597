"""What the sums of coded training are on average: rows of real coding steps, and all cases of who comes."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from tests.coded_parts import coded_server, devices, full_gradient, update, weights_of
from tests.federation_parts import small_split
from torch import Tensor

from fedhybrid.engine.runtime import Station, Stretch, Workbench, classification_loss
from fedhybrid.executor import SGD, TrainStep, prepare_step
from fedhybrid.methods import CodedFedL, Scfl
from fedhybrid.methods.coded import (
    ENCODE,
    HEAD,
    NAMES,
    SEED,
    STEPS,
    CodedSet,
    coded_gradient,
    coded_names,
    coded_submodel,
    joined,
    one_hot,
    split,
)
from fedhybrid.models import build_model
from fedhybrid.protocols import ServerState, Submodel
from fedhybrid.records import ClientTask, LocalWork, Update
from fedhybrid.tree import buffers_of, detached_copy, tensors_of

FEATURES, BATCH, LR = 6, 8, 0.5
WORK = LocalWork(epochs=1, batch_size=BATCH, lr=LR)
SHARDS = (np.arange(0, 20), np.arange(20, 36), np.arange(36, 41))
CASES = list(itertools.product((False, True), repeat=3))


@cache
def whole() -> Submodel:
    model = build_model("fourier", input_shape=(1, 32, 32), classes=10, seed=0, options={"features": FEATURES})
    return Submodel(module=model, loss_fn=classification_loss, optimizer=SGD(lr=LR))


@cache
def station(name: str) -> Station:
    made = coded_submodel(whole(), name)
    batch = small_split().batch(torch.arange(BATCH))
    step = prepare_step(
        made.module, made.loss_fn, batch, made.optimizer, op_seconds=lambda _: 1e-6, forward_only=made.forward_only
    )
    return Station(
        step=TrainStep(step, step.keep_all()), tensors=tensors_of(step.model), buffers=buffers_of(step.model)
    )


def bench() -> Workbench:
    return Workbench(model=whole().module, split=small_split(), station=station)


def done(method: Scfl | CodedFedL, task: ClientTask) -> Update:
    step = station(task.submodel).step
    assert isinstance(step, TrainStep)
    return bench().run(method, task, SHARDS[task.client], [Stretch(program=step.plan, steps=10**6)], {})


def coding_task(client: int, rows: int, block: int, seed: int, **options: float) -> ClientTask:
    names = coded_names(whole().module)
    made = detached_copy(tensors_of(station(f"encode.{block}").step.prepared.model))  # type: ignore[attr-defined]
    for name, width in zip(names, (FEATURES, 10), strict=False):
        made[name] = torch.zeros(block, width)
    everything = {names[3]: torch.zeros(rows, FEATURES), names[4]: torch.zeros(rows, 10)}
    return ClientTask(
        round_index=0,
        client=client,
        weights={**made, names[2]: torch.ones(()), **everything},
        work=WORK,
        plan=None,
        seed=seed,
        kind=ENCODE,
        submodel=f"encode.{block}",
        options={NAMES: names, STEPS: 1, SEED: 5, **options},
    )


def gradient_task(client: int, weights: dict[str, Tensor]) -> ClientTask:
    return ClientTask(
        round_index=0,
        client=client,
        weights=weights,
        work=LocalWork(epochs=1, batch_size=BATCH, lr=LR, steps=1),
        plan=None,
        seed=3,
        submodel=HEAD,
        options={NAMES: ("head.weight",), "load_seed": client},
    )


def samples(client: int) -> tuple[Tensor, Tensor]:
    """Features and targets, in float64."""
    x, labels = small_split().batch(torch.from_numpy(SHARDS[client]))
    seen: list[Tensor] = []
    head = whole().module.get_submodule("head")
    hook = head.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    with torch.no_grad():
        whole().module(x)
    hook.remove()
    return seen[0].double(), one_hot(labels, torch.zeros(1, 10)).double()


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_rows_of_a_client_are_its_products_and_noise_on_average(noise: float) -> None:
    """Three blocks of at most 240 rows, of which the last is cut, by a step with a last batch that is filled up."""
    x, y = samples(0)
    sigma = noise * math.sqrt(float(x.square().mean()))
    weight = torch.randn(FEATURES, 10, generator=torch.Generator().manual_seed(0)).double()
    squares, products, gradient = torch.zeros(6, 6).double(), torch.zeros(6, 10).double(), torch.zeros(6, 10).double()
    draws = 30
    for seed in range(draws):
        sent = done(Scfl(), coding_task(0, 600, 240, seed, sigma=noise))
        assert sent.metrics["sigma"] == pytest.approx(sigma, rel=1e-5)
        assert sent.steps == 9
        coded_x, coded_y = (sent.weights[f"head.coded_{name}"].double() for name in ("x", "y"))
        assert coded_x.shape == (600, FEATURES)
        squares += coded_x.mT @ coded_x / 600 / draws
        products += coded_x.mT @ coded_y / 600 / draws
        gradient += coded_gradient(coded_x, coded_y, weight, noise=sigma**2) / draws
    wanted = x.mT @ (x @ weight - y)
    assert apart(squares, x.mT @ x + sigma**2 * torch.eye(6)) < 0.03
    assert apart(products, x.mT @ y) < 0.06
    assert apart(gradient, wanted) < 0.06
    if noise:
        assert apart(squares, x.mT @ x) > 0.1, "else there is no noise to be seen"
        assert apart(gradient + sigma**2 * weight, wanted) > 0.1, "else there is nothing to make up for"


def test_loads_and_coded_rows_add_up_to_the_whole_gradient() -> None:
    """Through coding, gradients and aggregation as they are in runs: mean over codings, exact over who comes."""
    method, chance, draws, rows = CodedFedL(), (0.3, 0.6, 1.0), 20, 1500
    weights = detached_copy(tensors_of(whole().module))
    weights["head.weight"] = torch.randn(10, FEATURES, generator=torch.Generator().manual_seed(1))
    held = [samples(client) for client in range(3)]
    weight = joined(weights, ["head.weight"]).double()
    sent = [done(method, gradient_task(client, weights)) for client in range(3)]
    found = {True: torch.zeros_like(weight), False: torch.zeros_like(weight)}
    for seed, scaled in itertools.product(range(draws), found):
        coded = [
            done(
                method,
                coding_task(client, rows, rows, 10 * seed + client, arrival=p if scaled else 0.0, classes=10,
                            load_seed=client),
            )
            for client, p in enumerate(chance)
        ]  # fmt: skip
        server = method.aggregate(ServerState(weights=weights), coded)
        for case in CASES:
            likely = math.prod(p if came else 1 - p for p, came in zip(chance, case, strict=True))
            after = method.aggregate(server, [each for each, came in zip(sent, case, strict=True) if came])
            found[scaled] += likely * (joined(after.weights, ["head.weight"]).double() - weight) / draws
    wanted = -LR * full_gradient(held, weight) / sum(len(x) for x, _ in held)
    assert apart(found[True], wanted) < 0.05
    assert apart(found[False], wanted) > 0.2, "else scaling by chances would not matter"


def exact_server(weight: Tensor) -> ServerState:
    """Rows from which the whole gradient follows without error, so that arrivals alone are chance."""
    data = devices()
    server, held = coded_server(weight, sigma=0.0)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    kept = CodedSet(**{**vars(held), "x": x * math.sqrt(len(x)), "y": y * math.sqrt(len(x))})
    return ServerState(weights=server.weights, extra=kept.to_extra(), version=1)


def test_the_measured_mix_has_no_bias_over_arrivals() -> None:
    """All 32 cases of a first round, and after each of them all 32 of a second."""
    data, chance, method = devices(), (0.3, 0.5, 0.9, 1.0, 0.4), Scfl(measured=True)

    def came(server: ServerState, case: tuple[bool, ...]) -> list[Update]:
        now = joined(server.weights, ["head.weight"])
        return [
            update(client, split(-0.1 * x.mT @ (x @ now - y) / 40, ["head.weight"]), share=0.2, arrival=chance[client])
            for client, (x, y) in enumerate(data)
            if case[client]
        ]

    def mean_step(server: ServerState) -> tuple[Tensor, Tensor, list[ServerState]]:
        now = joined(server.weights, ["head.weight"])
        found, after = torch.zeros_like(now), []
        for case in itertools.product((False, True), repeat=5):
            likely = math.prod(p if there else 1 - p for p, there in zip(chance, case, strict=True))
            after.append(method.aggregate(server, came(server, case)))
            if likely:
                found += likely * (joined(after[-1].weights, ["head.weight"]) - now)
        return found, -0.1 * full_gradient(data, now) / 200, after

    found, wanted, firsts = mean_step(exact_server(weights_of()))
    torch.testing.assert_close(found, wanted)
    for first in firsts:
        found, wanted, _ = mean_step(first)
        torch.testing.assert_close(found, wanted)
    variances = {tuple(first.extra["coded/variances"].tolist()) for first in firsts if "coded/variances" in first.extra}
    assert len({round(server / (clients + server), 6) for clients, server in variances}) > 10, "lambda follows arrivals"
