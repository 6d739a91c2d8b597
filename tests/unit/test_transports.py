"""What a method says about the links: pipelines by the server's version, the same on both sides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.federation_parts import shop
from tests.scene_parts import same_tensors, small_task, update_of
from tests.update_parts import chain

from fedhybrid.engine.labour import Job
from fedhybrid.engine.receiving import received
from fedhybrid.engine.traffic import Traffic
from fedhybrid.engine.walk import Leg
from fedhybrid.errors import ConfigError
from fedhybrid.experiment.check import load_config, to_table
from fedhybrid.integrations.flower.device.slim import open_device
from fedhybrid.methods import TeasqFed
from fedhybrid.protocols import Transport
from fedhybrid.records import Failure, Update
from fedhybrid.tree import Tensors, total_bytes
from fedhybrid.updates import Pipeline

BITS = (2, 4, 8, 32)


def bits_by_version(version: int) -> Transport:
    tables: tuple[dict[str, Any], ...] = ({"name": "quantise", "bits": BITS[min(version, 3)], "rounding": "nearest"},)
    return Transport(down=tables, up=({"name": "delta"}, *tables))


def links(transport: Any = bits_by_version, **changes: Any) -> Traffic:
    parts = {"down": Pipeline(), "up": Pipeline(), "differences": False, "run_seed": 4, "transport": transport}
    return Traffic(**parts | changes)


def moved() -> Tensors:
    generator = torch.Generator().manual_seed(3)
    return {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in shop().weights.items()}


def test_each_version_has_its_own_both_ways_and_sizes_are_foretold() -> None:
    both = links()
    found = []
    for version in range(4):
        task = small_task(0, round_index=version)
        _, down_bytes = both.sent_down(task.weights, version=version)
        delivery = both.packed(update_of(moved()), task, {})
        sizes = down_bytes, both.bytes_up(delivery)
        assert sizes == both.expected_bytes(task.weights, version=version)
        found.append(sizes)
    assert found == sorted(found)
    assert found[3] == (total_bytes(shop().weights),) * 2
    assert len(set(found)) == 4


def test_the_same_model_at_another_version_is_packed_anew() -> None:
    both = links()
    coarse, fine, exact = (both.sent_down(shop().weights, version=version)[0] for version in (0, 2, 3))
    assert not same_tensors(coarse, fine)
    assert same_tensors(exact, shop().weights)


def test_an_update_is_read_as_its_task_was_given_whatever_it_says_itself() -> None:
    both, task = links(), small_task(0, round_index=1)
    delivery = both.packed(update_of(moved(), round_index=1), task, {})
    other = links()  # the other side: nothing but the method in common
    assert same_tensors(other.unpacked(delivery, task).weights, both.unpacked(delivery, task).weights)
    later = small_task(0, round_index=2)
    refused = received(both, delivery, later)
    assert isinstance(refused, Failure)
    assert refused.kind == "corrupt"


def test_a_method_that_says_nothing_leaves_it_to_the_recipe() -> None:
    plain = links(lambda _: None, down=chain("quantise"))
    assert plain.expected_bytes(shop().weights, version=7)[0] == chain("quantise").expected_bytes(shop().weights)


def test_recipe_and_method_may_not_both_say_it() -> None:
    for way in ("down", "up"):
        with pytest.raises(ConfigError, match="the method says itself what goes over the links"):
            links(**{way: chain("quantise")})


def test_what_cannot_be_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="unknown update transform 'quantize'"):
        links(lambda _: Transport(up=({"name": "quantize", "bits": 8},)))


def test_a_real_device_packs_by_the_version_of_its_task(tmp_path: Path) -> None:
    """It knows the recipe alone; the server, which knows the method alone, reads what it sends at each version."""
    method = TeasqFed(start="0.25/8", weaker_every=1)
    recipe = {
        "method": "teasq-fed",
        "method_options": {"weaker_every": 1},
        "policy": "first-come",
        "model": "cnn",
        "model_options": {"width": 0.25},
        "dataset": "digits",
        "data": {"clients": 8},
        "fleet": {"clients_per_round": 2},
        "train": {"batch_size": 8, "lr": 0.05},
        "schedule": {"kind": "asynchronous", "in_flight": 2, "buffer": 2},
    }
    device = open_device(to_table(load_config(recipe)), 2, tmp_path / "home")
    server = links(method.transport)
    sizes = []
    for version in range(4):
        given = small_task(2, round_index=version, weights=shop().weights)
        shard = np.zeros(0, dtype=np.int64)
        job = Job(task=given, device="laptop", legs=(Leg(plan=None, steps=9),), shard=shard, state={}, at_s=0.0)
        delivery = device.do(job, {})
        sizes.append(server.bytes_up(delivery))
        assert sizes[-1] == server.expected_bytes(given.weights, version=version)[1]
        update = received(server, delivery, given)
        assert isinstance(update, Update)
        same = [torch.equal(update.weights[name], tensor) for name, tensor in given.weights.items()]
        assert not any(same)
        if delivery.payload is not None:
            refused = received(server, delivery, replace(given, round_index=version + 1))
            assert isinstance(refused, Failure)
    assert sizes == sorted(sizes)
    assert sizes[-1] == total_bytes(shop().weights) > 9 * sizes[0]
