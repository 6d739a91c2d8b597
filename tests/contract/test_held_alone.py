"""Classes that some clients alone may hold: what every partition of `ALONE_PARTITIONS` obeys then."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.contract.test_partitions import parts_of, people_of

from fedhybrid.data import ALONE_PARTITIONS, PARTITIONS, partition
from fedhybrid.data.partition import PartitionSpec, dirichlet
from fedhybrid.data.shards import DealtShards
from fedhybrid.errors import ConfigError
from fedhybrid.records import IntArray

Holders = Mapping[int, NDArray[np.bool_]]
CLASSES = 5


@st.composite
def problems(draw: st.DrawFn) -> tuple[IntArray, int, Holders]:
    """Labels, clients, and who may hold some of the classes 1 to 4; of class 0 there is a sample for each client."""
    clients = draw(st.integers(1, 25))
    others = draw(st.lists(st.integers(0, CLASSES - 1), max_size=80))
    labels = draw(st.permutations([0] * clients + others))
    alone = draw(st.sets(st.integers(1, CLASSES - 1)))
    masks = st.lists(st.booleans(), min_size=clients, max_size=clients).filter(any)
    return np.array(labels, dtype=np.int64), clients, {label: np.array(draw(masks)) for label in sorted(alone)}


@st.composite
def hard_problems(draw: st.DrawFn) -> tuple[IntArray, int, Holders]:
    """The same without a sample for each client; masks may be empty."""
    labels = draw(st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=30))
    clients = draw(st.integers(1, len(labels)))
    masks = st.lists(st.booleans(), min_size=clients, max_size=clients)
    alone = draw(st.sets(st.integers(0, CLASSES - 1)))
    return np.array(labels, dtype=np.int64), clients, {label: np.array(draw(masks)) for label in sorted(alone)}


def deal(
    name: str, problem: tuple[IntArray, int, Holders | None], *, seed: int = 0, alpha: float = 1.0
) -> list[IntArray]:
    labels, clients, holders = problem
    people = people_of(len(labels), max(clients, len(labels) // 2))
    few = {"shards_per_client": 1, "samples_per_client": 1}
    return parts_of(name, labels, clients=clients, seed=seed, alpha=alpha, natural_ids=people, holders=holders, **few)


def assert_allowed(parts: list[IntArray], labels: IntArray, holders: Holders) -> None:
    for client, part in enumerate(parts):
        assert len(part) > 0
        assert part.dtype == np.int64
        assert np.all(np.diff(part) > 0)
        assert all(holders[label][client] for label in set(labels[part].tolist()) & holders.keys())


SEEDS, ALPHAS = st.integers(0, 2**40), st.sampled_from([1e-300, 1e-3, 0.1, 1.0, 1e6])


@given(problem=problems(), seed=SEEDS, alpha=ALPHAS)
@settings(max_examples=150)
def test_dirichlet_deals_everything_to_those_who_may_hold_it(
    problem: tuple[IntArray, int, Holders], seed: int, alpha: float
) -> None:
    labels, _, holders = problem
    parts = deal("dirichlet", problem, seed=seed, alpha=alpha)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert_allowed(parts, labels, holders)
    again = deal("dirichlet", problem, seed=seed, alpha=alpha)
    assert all(np.array_equal(part, other) for part, other in zip(parts, again, strict=True))


@given(problem=problems(), seed=SEEDS)
@settings(max_examples=150)
def test_natural_leaves_out_what_people_may_not_hold(problem: tuple[IntArray, int, Holders], seed: int) -> None:
    labels, clients, holders = problem
    every = deal("natural", (labels, clients, None), seed=seed)
    barred = [[label for label, may in holders.items() if not may[client]] for client in range(clients)]
    expected = [part[~np.isin(labels[part], barred[client])] for client, part in enumerate(every)]
    empty = [client for client, part in enumerate(expected) if not len(part)]
    if empty:
        told = rf"^{len(empty)} of {clients} clients \({empty[0]}\b.* have nothing left: .* data.alone_classes"
        with pytest.raises(ConfigError, match=told):
            deal("natural", problem, seed=seed)
        return
    parts = deal("natural", problem, seed=seed)
    assert_allowed(parts, labels, holders)
    assert all(np.array_equal(part, other) for part, other in zip(parts, expected, strict=True))


@pytest.mark.parametrize("name", ALONE_PARTITIONS)
@given(problem=hard_problems(), seed=SEEDS, alpha=ALPHAS)
@settings(max_examples=150)
def test_what_cannot_be_dealt_is_told(
    name: str, problem: tuple[IntArray, int, Holders], seed: int, alpha: float
) -> None:
    labels, _, holders = problem
    try:
        parts = deal(name, problem, seed=seed, alpha=alpha)
    except ConfigError as error:
        assert len(error.problems) == 1
    else:
        assert all(may.any() for may in holders.values())
        assert_allowed(parts, labels, holders)


@pytest.mark.parametrize("name", sorted(PARTITIONS))
@given(problem=problems(), seed=SEEDS, alpha=ALPHAS)
@settings(max_examples=30)
def test_nothing_changes_where_all_may_hold_all(
    name: str, problem: tuple[IntArray, int, Holders], seed: int, alpha: float
) -> None:
    labels, clients, _ = problem
    before = deal(name, (labels, clients, None), seed=seed, alpha=alpha)
    everybody = {label: np.ones(clients, dtype=bool) for label in range(CLASSES)}
    for holders in ({}, everybody):
        after = deal(name, (labels, clients, holders), seed=seed, alpha=alpha)
        assert all(np.array_equal(part, other) for part, other in zip(before, after, strict=True))


def test_a_class_is_shared_out_among_its_holders() -> None:
    labels, may = np.arange(4000) % 4, np.arange(20) % 2 == 1
    parts = deal("dirichlet", (labels, 20, {2: may, 3: may}), alpha=1e6)
    held = np.array([np.bincount(labels[part], minlength=4) for part in parts])
    assert np.abs(held - np.where(np.arange(4) < 2, 50, np.where(may[:, None], 100, 0))).max() <= 2


@pytest.mark.parametrize("name", ALONE_PARTITIONS)
def test_a_class_that_nobody_may_hold(name: str) -> None:
    nobody = np.zeros(2, dtype=bool)
    with pytest.raises(ConfigError, match=r"data.alone_classes: nobody may hold class 1, 3, .* 2 clients"):
        deal(name, (np.arange(8) % 4, 2, {3: nobody, 0: ~nobody, 1: nobody}))


def test_each_empty_client_takes_one_that_it_may_hold_from_who_has_most_of_these() -> None:
    """What is dealt first, then each empty client by looking through everybody's samples."""
    rng = np.random.default_rng(3)
    for seed in range(40):
        labels, clients = rng.integers(0, CLASSES, 60), int(rng.integers(10, 20))
        labels[:clients] = 0
        holders = {label: rng.random(clients) < 0.5 for label in (1, 3, 4)}
        for may in holders.values():
            may[rng.integers(clients)] = True
        spec = PartitionSpec(clients=clients, seed=seed, alpha=0.01, holders=holders)
        found = dirichlet(labels, spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(partition, "_without_empty", slowly)
            expected = dirichlet(labels, spec)
        assert [part.tolist() for part in parts(found)] == [part.tolist() for part in parts(expected)]


def parts(shards: DealtShards) -> list[IntArray]:
    return [shards[client] for client in range(len(shards))]


def slowly(
    dealt: DealtShards, owner: IntArray, labels: IntArray, spec: PartitionSpec, rng: np.random.Generator
) -> DealtShards:
    held = [part.tolist() for part in parts(dealt)]
    assert [] in held, "nothing is tried where nobody is empty"
    for client in range(spec.clients):
        if not held[client]:
            barred = [label for label, may in spec.holders.items() if not may[client]]
            free = [[i for i in part if labels[i] not in barred and len(part) > 1] for part in held]
            donor = max(range(spec.clients), key=lambda each: len(free[each]))
            taken = free[donor][int(rng.integers(len(free[donor])))]
            held[donor].remove(taken)
            held[client] = [taken]
    return DealtShards.of([np.array(part) for part in held])


def test_a_fleet_of_many_is_dealt_at_once() -> None:
    labels, clients = np.arange(20_000) % 10, 5000
    may = np.arange(clients) % 5 < 3
    begin_s = time.perf_counter()
    deal("dirichlet", (labels, clients, dict.fromkeys(range(4, 10), may)), alpha=0.1)
    assert time.perf_counter() - begin_s < 10, "a fraction of a second, where each looked at all it was minutes"


def test_a_client_for_whom_there_is_nothing() -> None:
    last = np.array([False, False, True])
    with pytest.raises(ConfigError, match=r"client 0 gets no sample: .*data.alpha"):
        deal("dirichlet", (np.array([1, 1, 1, 0]), 3, {0: last, 1: last}))
