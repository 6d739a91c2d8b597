"""The server's step from scalars, what a device that was away needs to follow it, and what that costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.zeroth_parts import followed, network, whole_of

from fedhybrid.executor import SGD, Adam
from fedhybrid.methods.foresight_zo import ForesightZo
from fedhybrid.methods.zeroth import (
    SCALARS,
    SEED,
    Stepper,
    applied_clip,
    begun,
    copy_bytes,
    drawn,
    joined,
    mask_bytes,
    masks_of,
    round_seed,
)
from fedhybrid.methods.zeroth.noise import direction_seed
from fedhybrid.models.perturbed import draw_names
from fedhybrid.records import Update
from fedhybrid.tree import Tensors, detached_copy, tensors_of

ADAM = Stepper(rule=Adam(lr=0.02, betas=(0.9, 0.99), weight_decay=5e-4), sigma=1e-3, clip=0.3, ema=0.0)
PLAIN = Stepper(rule=SGD(lr=0.5), sigma=1e-2, clip=0.0, ema=0.0)


def start() -> tuple[Tensors, Tensors]:
    weights = detached_copy(tensors_of(whole_of(ForesightZo(mask="random", density=0.2)).module))
    return weights, begun(weights)


def table(number: int, batches: int = 2, directions: int = 3) -> torch.Tensor:
    return 1e-3 * torch.randn(batches, directions, generator=torch.Generator().manual_seed(number))


def test_a_step_follows_the_estimated_gradient() -> None:
    weights, extra = start()
    after, kept = PLAIN.step(weights, extra, table(1), version=4)
    expected = {name: weights[name].clone() for name in draw_names(weights)}
    for batch in range(2):
        for direction in range(3):
            seed = direction_seed(round_seed(int(extra[SEED]), 4), batch=batch, direction=direction)
            for name, z in drawn(seed, draw_names(weights), weights):
                mask = masks_of(weights).get(name, torch.ones(()))
                expected[name] -= 0.5 * table(1)[batch, direction] * z * mask / 1e-2
    for name, tensor in expected.items():
        assert torch.allclose(after[name], tensor, atol=1e-6)
    assert all(torch.equal(after[name], weights[name]) for name in weights.keys() - expected.keys())
    assert int(kept[SEED]) == int(extra[SEED])


def test_the_gradient_is_clipped_as_a_whole() -> None:
    weights, extra = start()
    seed = int(extra[SEED])
    free, clipped = (s.gradient(weights, 100 * table(1), seed=seed, version=0) for s in (replace(ADAM, clip=0.0), ADAM))
    top = max(float(g.abs().max()) for g in free.values())
    assert top > 1
    for name, gradient in free.items():
        assert torch.allclose(clipped[name], gradient * (0.3 / top), rtol=1e-5)
    assert applied_clip(0.2, 0.3) == applied_clip(5.0, 0.0) == applied_clip(0.0, 0.3) == 1.0


@pytest.mark.parametrize("stepper", [ADAM, PLAIN])
def test_a_device_that_was_away_makes_the_same_weights(stepper: Stepper) -> None:
    """From its copy and the logged tables alone, bit for bit; what is pruned stays zero."""
    weights, extra = start()
    server = (weights, extra)
    versions = []
    for version in range(6):
        versions.append(server)
        server = stepper.step(*server, table(version), version=version)
    log, sizes = server[1]["zo.log"], server[1]["zo.log_sizes"].tolist()
    assert sizes == [6] * 6
    tables = [part.view(2, 3) for part in log.split(sizes)]
    for missed in (1, 4):
        device = followed(stepper, *versions[6 - missed], tables[6 - missed :], version=6 - missed)
        assert all(torch.equal(device[0][name], server[0][name]) for name in weights)
    for name, mask in masks_of(weights).items():
        assert not bool(server[0][name][~mask].any())
        assert bool(server[0][name][mask].ne(weights[name][mask]).any())


def test_a_download_is_the_smaller_of_two_and_the_log_no_longer() -> None:
    weights, extra = start()
    active = sum(int(mask.sum()) for mask in masks_of(weights).values())
    others = sum(w.numel() for n, w in weights.items() if n in draw_names(weights)) - sum(
        mask.numel() for mask in masks_of(weights).values()
    )
    assert copy_bytes(weights) == 4 * (active + others)
    assert mask_bytes(weights) == -(-412 // 8)
    state = (weights, extra)
    assert ADAM.download_bytes(*state, 7, version=0) == copy_bytes(weights) + mask_bytes(weights)
    state = (weights, ADAM.seen(extra, [7], version=0))
    whole = 3 * copy_bytes(weights)  # Adam has two tensors of state for each parameter
    for version in range(60):
        state = ADAM.step(*state, table(version, 10, 5), version=version)
        assert ADAM.download_bytes(*state, 7, version=version + 1) == min(4 * 50 * (version + 1), whole)
        assert ADAM.download_bytes(*state, 8, version=version + 1) == whole + mask_bytes(weights)
    assert 4 * len(state[1]["zo.log"]) <= whole < 4 * len(state[1]["zo.log"]) + 4 * 50
    state = (state[0], ADAM.seen(state[1], [7, 9], version=60))
    assert ADAM.download_bytes(*state, 7, version=60) == 0
    state = ADAM.step(*state, table(60, 10, 5), version=60)
    assert ADAM.download_bytes(*state, 9, version=61) == 200


def test_the_first_table_is_logged_up_to_a_copy_with_adam_s_state() -> None:
    weights, extra = start()
    once = copy_bytes(weights)
    first = table(0, 2, int(1.25 * once / 4 / 2))
    assert once < first.nbytes < 3 * once
    state = ADAM.step(weights, ADAM.seen(extra, [7], version=0), first, version=0)
    assert torch.equal(state[1]["zo.log"], first.flatten())
    assert ADAM.download_bytes(*state, 7, version=1) == first.nbytes
    larger = table(0, 2, int(3.1 * once / 4 / 2))
    assert ADAM.step(weights, extra, larger, version=0)[1]["zo.log"].numel() == 0


def test_averaged_weights_are_tested_and_the_others_trained() -> None:
    weights, extra = start()
    averaging = replace(PLAIN, ema=0.9)
    after, kept = averaging.step(weights, extra, table(1), version=0)
    plain, _ = PLAIN.step(weights, extra, table(1), version=0)
    for name in draw_names(weights):
        assert torch.equal(averaging.current(after, kept)[name], plain[name])
        assert torch.allclose(after[name], 0.9 * weights[name] + 0.1 * plain[name], atol=1e-7)
    assert torch.equal(PLAIN.current(weights, extra)["1.weight"], weights["1.weight"])


def test_scalars_count_by_samples_and_batches() -> None:
    """Two clients with two batches and one: the mean over clients of each one's mean over its directions."""
    rows = (torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[10.0, 20.0]]))
    updates = [
        Update(
            client=client, round_index=0, weights={SCALARS: row}, num_samples=samples, samples_seen=1, steps=1,
            loss_mean=0.0, squared_loss_sum=0.0, measured_peak_bytes=0,
        )
        for client, (row, samples) in enumerate(zip(rows, (30, 10), strict=True))
    ]  # fmt: skip
    expected = 0.75 / 2 / 2 * rows[0]
    expected[0] += 0.25 / 2 * rows[1][0]
    assert torch.allclose(joined(updates, 2), expected)


def test_the_order_of_noise_survives_sorted_names() -> None:
    """Stored weights come back in another order; the order of a pass is in the model's own tensors."""
    weights, _ = start()
    names = draw_names(weights)
    assert names == draw_names({name: weights[name] for name in sorted(weights)})
    assert names == tuple(name for name, _ in network().named_parameters())
    resnet = network("resnet20", width=0.25, norm="group")
    adapted = ForesightZo(mask="dense").adapt(resnet, torch.zeros(2, 1, 32, 32))
    order = draw_names(tensors_of(adapted))
    assert order[:4] == ("stem.0.weight", "stem.1.weight", "stem.1.bias", "stages.0.conv1.weight")
    assert order[-2:] == ("head.weight", "head.bias")
