"""Classes that some clients alone may hold: what every partition of `HELD_ALONE` obeys then."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.contract.test_partitions import parts_of, people_of

from fedhybrid.data import HELD_ALONE, PARTITIONS
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
@settings(max_examples=150, deadline=None)
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
@settings(max_examples=150, deadline=None)
def test_natural_leaves_out_what_people_may_not_hold(problem: tuple[IntArray, int, Holders], seed: int) -> None:
    labels, clients, holders = problem
    every = deal("natural", (labels, clients, None), seed=seed)
    barred = [[label for label, may in holders.items() if not may[client]] for client in range(clients)]
    expected = [part[~np.isin(labels[part], barred[client])] for client, part in enumerate(every)]
    empty = [client for client, part in enumerate(expected) if not len(part)]
    if empty:
        with pytest.raises(ConfigError, match=rf"{len(empty)} clients \({empty[0]}\b.* data.alone_classes"):
            deal("natural", problem, seed=seed)
        return
    parts = deal("natural", problem, seed=seed)
    assert_allowed(parts, labels, holders)
    assert all(np.array_equal(part, other) for part, other in zip(parts, expected, strict=True))


@pytest.mark.parametrize("name", HELD_ALONE)
@given(problem=hard_problems(), seed=SEEDS, alpha=ALPHAS)
@settings(max_examples=150, deadline=None)
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
@settings(max_examples=30, deadline=None)
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


@pytest.mark.parametrize("name", HELD_ALONE)
def test_a_class_that_nobody_may_hold(name: str) -> None:
    nobody = np.zeros(2, dtype=bool)
    with pytest.raises(ConfigError, match=r"data.alone_classes: nobody may hold class 1, 3, .* 2 clients"):
        deal(name, (np.arange(8) % 4, 2, {3: nobody, 0: ~nobody, 1: nobody}))


def test_a_client_for_whom_there_is_nothing() -> None:
    last = np.array([False, False, True])
    with pytest.raises(ConfigError, match=r"client 0 gets no sample: .*data.alpha"):
        deal("dirichlet", (np.array([1, 1, 1, 0]), 3, {0: last, 1: last}))
