"""How much a client trains: epochs, steps or samples; and by which program each of its steps runs."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.federation_parts import SHARDS, recipe, shop, small_split
from tests.scene_parts import same_tensors, small_task

from fedhybrid.engine.runtime import LocalClient, Stretch, steps_of
from fedhybrid.errors import ConfigError
from fedhybrid.experiment import load_config
from fedhybrid.experiment.parts import work_of
from fedhybrid.methods import METHODS
from fedhybrid.planner import Plan
from fedhybrid.records import LocalWork, Update

BATCH = 4


def place() -> dict[str, Any]:
    """Where clients train."""
    bench = shop().bench
    return {"station": bench.station(""), "split": bench.split}


def work(**changes: Any) -> LocalWork:
    return LocalWork(**({"epochs": 1, "batch_size": BATCH, "lr": 0.1} | changes))


@functools.cache
def pictures() -> dict[bytes, int]:
    """The number of each of the first samples, by its pixels."""
    split = small_split()
    return {split.batch(torch.tensor([i]))[0].numpy().tobytes(): i for i in range(20)}


def drawn(samples: int, asked: LocalWork, seed: int = 3) -> list[int]:
    """The sample numbers in the order of training; every batch is whole."""
    images = pictures()
    stretches = [Stretch(program=shop().prepared.keep_all(), steps=1)]
    client = LocalClient(
        station=shop().bench.station(""), split=shop().bench.split, shard=np.arange(samples), stretches=stretches
    )
    batches = [[images[image.numpy().tobytes()] for image in x] for x, _ in client.batches(asked, seed)]
    assert all(len(batch) == asked.batch_size for batch in batches)
    return [number for batch in batches for number in batch]


amounts = st.one_of(
    st.builds(lambda n, last: {"epochs": n, "last_batch": last}, st.integers(1, 3), st.sampled_from(["wrap", "drop"])),
    st.builds(lambda n: {"steps": n}, st.integers(1, 12)),
    st.builds(lambda n: {"samples": n}, st.integers(1, 40)),
)


@settings(max_examples=60)
@given(samples=st.integers(0, 19), amount=amounts)
def test_as_many_steps_as_foretold(samples: int, amount: dict[str, Any]) -> None:
    asked = work(**amount)
    assert len(drawn(samples, asked)) == steps_of(asked, samples) * BATCH


@settings(max_examples=60)
@given(samples=st.integers(1, 19), steps=st.integers(1, 15))
def test_steps_go_from_one_shuffle_to_the_next(samples: int, steps: int) -> None:
    """No sample comes a second time before all have come once, and so on."""
    found = drawn(samples, work(steps=steps))
    assert len(found) == steps * BATCH
    for start in range(0, len(found), samples):
        part = found[start : start + samples]
        assert len(set(part)) == len(part)
    counts = Counter(found)
    assert max(counts.values()) - min(counts.values(), default=0) <= 1 or len(counts) < samples


def test_steps_and_samples_do_not_depend_on_what_a_client_holds() -> None:
    assert {steps_of(work(steps=7), held) for held in (1, 5, 1000)} == {7}
    assert {steps_of(work(samples=9), held) for held in (1, 5, 1000)} == {3}


def test_who_holds_nothing_does_nothing() -> None:
    assert {steps_of(work(**amount), 0) for amount in ({"steps": 7}, {"samples": 9}, {"epochs": 3})} == {0}


def test_whole_epochs_by_samples_are_the_epochs() -> None:
    assert drawn(12, work(epochs=1)) == drawn(12, work(samples=12)) == drawn(12, work(steps=3))


def test_each_epoch_is_a_new_shuffle() -> None:
    found = drawn(12, work(steps=9))
    orders = [tuple(found[start : start + 12]) for start in (0, 12, 24)]
    assert len(set(orders)) == 3
    assert all(sorted(order) == list(range(12)) for order in orders)


class TestPrograms:
    def programs(self) -> tuple[Plan, Plan]:
        book = shop().ladder
        names = (book.choose("laptop", book.eager_peak_bytes), book.choose("laptop", 920_000))
        whole, tight = (book.program("laptop", name) for name in names)
        assert whole.bit_identical
        assert tight.bit_identical
        assert tight.peak_bytes < whole.peak_bytes
        return whole, tight

    def run(self, *stretches: tuple[Plan, int], steps: int = 6) -> Update:
        bench, task = shop().bench, small_task(0)
        task = dataclasses.replace(task, work=dataclasses.replace(task.work, steps=steps))
        made = [Stretch(program=program, steps=count) for program, count in stretches]
        return bench.run(METHODS["fedavg"](), task, SHARDS[0], made, {})

    def test_stretches_of_exact_plans_learn_what_one_program_learns(self) -> None:
        whole, tight = self.programs()
        alone = self.run((whole, 6))
        for stretches in ([(tight, 6)], [(whole, 2), (tight, 4)], [(tight, 1), (whole, 3), (tight, 2)]):
            assert same_tensors(self.run(*stretches).weights, alone.weights)

    def test_peak_is_the_largest_of_the_programs_that_ran(self) -> None:
        whole, tight = self.programs()
        assert self.run((tight, 6)).measured_peak_bytes == tight.peak_bytes
        assert self.run((tight, 3), (whole, 3)).measured_peak_bytes == whole.peak_bytes
        assert self.run((whole, 3), (tight, 3)).measured_peak_bytes == whole.peak_bytes
        assert self.run((tight, 6), (whole, 1)).measured_peak_bytes == tight.peak_bytes  # never came to the second

    def test_each_step_by_its_stretch(self) -> None:
        whole, tight = self.programs()
        bench = shop().bench
        client = LocalClient(
            station=bench.station(""),
            split=bench.split,
            shard=SHARDS[0],
            stretches=[Stretch(program=p, steps=n) for p, n in ((whole, 2), (tight, 1), (whole, 0), (tight, 1))],
        )
        client.load(shop().weights)
        ran = []
        for x, y in client.batches(work(steps=4, batch_size=8), 0):
            client.step(x, y)
            ran.append(bench.station("").step.plan.key)
        assert ran == [whole.key, whole.key, tight.key, tight.key]

    def test_a_method_that_goes_on_runs_the_last_one(self) -> None:
        whole, tight = self.programs()
        assert self.run((whole, 1), (tight, 1), steps=5).steps == 5

    def test_state_is_what_was_given_and_a_copy_of_the_dictionary(self) -> None:
        kept = {"mine": torch.tensor(1)}
        stretches = [Stretch(program=shop().prepared.keep_all(), steps=1)]
        client = LocalClient(
            station=shop().bench.station(""), split=shop().bench.split, shard=SHARDS[0], stretches=stretches, state=kept
        )
        client.state["other"] = torch.tensor(2)
        assert client.state == kept
        assert (
            LocalClient(
                station=shop().bench.station(""), split=shop().bench.split, shard=SHARDS[0], stretches=stretches
            ).state
            == {}
        )


class TestRecipes:
    @pytest.mark.parametrize(("train", "steps"), [({"steps": 5}, 5), ({"samples": 33}, 5), ({"epochs": 2}, 6)])
    def test_all_three(self, train: dict[str, int], steps: int) -> None:
        asked = work_of(load_config(recipe(train={"batch_size": 8, **train})))
        assert steps_of(asked, 20) == steps

    def test_not_two_ways_at_once(self) -> None:
        with pytest.raises(ConfigError, match="steps and samples are two ways to say how much is trained"):
            load_config(recipe(train={"steps": 5, "samples": 9}))
