"""What every partition of `PARTITIONS` obeys, and what makes each the one it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhybrid.data import PARTITIONS, partition_data
from fedhybrid.errors import ConfigError
from fedhybrid.records import IntArray


def people_of(samples: int, people: int) -> IntArray:
    return np.random.default_rng(samples).permutation(np.arange(samples) % people).astype(np.int64)


@st.composite
def problems(draw: st.DrawFn) -> tuple[IntArray, int, IntArray]:
    samples = draw(st.integers(1, 120))
    clients = draw(st.integers(1, samples))
    people = draw(st.integers(clients, samples))
    labels = np.array(draw(st.lists(st.integers(0, 4), min_size=samples, max_size=samples)), dtype=np.int64)
    return labels, clients, people_of(samples, people)


@pytest.mark.parametrize("name", sorted(PARTITIONS))
@given(problem=problems(), seed=st.integers(0, 2**40), alpha=st.sampled_from([1e-300, 1e-3, 0.1, 1.0, 1e6]))
@settings(max_examples=60, deadline=None)
def test_disjoint_complete_sorted_and_deterministic(
    name: str, problem: tuple[IntArray, int, IntArray], seed: int, alpha: float
) -> None:
    labels, clients, natural_ids = problem
    shards = 1 + len(labels) // (2 * clients)

    def deal() -> list[IntArray]:
        return partition_data(
            name, labels, clients=clients, seed=seed, alpha=alpha, shards_per_client=shards, natural_ids=natural_ids
        )

    parts = deal()
    assert len(parts) == clients
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for part, again in zip(parts, deal(), strict=True):
        assert len(part) > 0
        assert part.dtype == np.int64
        assert np.all(np.diff(part) > 0)
        assert np.array_equal(part, again)


@pytest.mark.parametrize("name", sorted(PARTITIONS))
def test_another_seed_deals_otherwise_and_options_are_checked(name: str) -> None:
    labels = np.arange(400) % 10

    def deal(seed: int, clients: int = 10) -> list[list[int]]:
        parts = partition_data(
            name, labels, clients=clients, seed=seed, alpha=0.5, natural_ids=people_of(len(labels), 20)
        )
        return [part.tolist() for part in parts]

    assert deal(1) != deal(2)
    for clients in (0, 401):
        with pytest.raises(ConfigError, match=r"data\.clients"):
            deal(1, clients)


def test_iid_sizes_differ_by_at_most_one() -> None:
    sizes = [len(p) for p in partition_data("iid", np.zeros(103, np.int64), clients=10, seed=0, alpha=1.0)]
    assert set(sizes) == {10, 11}


def test_dirichlet_gets_more_uneven_as_alpha_falls() -> None:
    labels = np.repeat(np.arange(10), 1000)

    def mean_largest_class_ratio(alpha: float) -> float:
        parts = partition_data("dirichlet", labels, clients=20, seed=3, alpha=alpha)
        return float(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))

    ratios = [mean_largest_class_ratio(alpha) for alpha in (100.0, 1.0, 0.1, 0.01)]
    assert ratios == sorted(ratios)
    assert ratios[0] < 0.15
    assert ratios[-1] > 0.8


def test_dirichlet_follows_its_distribution() -> None:
    # A client's share of a class is Beta(alpha, (K-1) alpha): mean 1/K, variance (1/K)(1-1/K)/(K alpha + 1).
    labels, clients, alpha = np.zeros(20_000, np.int64), 4, 0.5
    shares = np.array(
        [
            [len(p) / len(labels) for p in partition_data("dirichlet", labels, clients=clients, seed=s, alpha=alpha)]
            for s in range(600)
        ]
    )
    expected = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert shares.var() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_dirichlet_refuses_alpha(alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.alpha"):
        partition_data("dirichlet", np.zeros(10, np.int64), clients=2, seed=0, alpha=alpha)


def test_shards_bound_the_classes_of_a_client() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 100))
    parts = partition_data("shards", labels, clients=50, seed=1, alpha=1.0, shards_per_client=2)
    assert {len(part) for part in parts} == {20}
    assert max(len(np.unique(labels[part])) for part in parts) <= 2
    pairs = [
        tuple(np.unique(labels[partition_data("shards", labels, clients=50, seed=seed, alpha=1.0)[0]]).tolist())
        for seed in range(30)
    ]
    assert len(set(pairs)) > 10, "which shards a client gets is drawn"
    with pytest.raises(ConfigError, match="shards_per_client"):
        partition_data("shards", labels, clients=600, seed=1, alpha=1.0, shards_per_client=2)


def test_natural_keeps_people_together() -> None:
    labels, people = np.zeros(100, np.int64), people_of(100, 10)
    exact = partition_data("natural", labels, clients=10, seed=0, alpha=1.0, natural_ids=people)
    assert [np.unique(people[part]).tolist() for part in exact] == [[i] for i in range(10)]
    fewer = partition_data("natural", labels, clients=4, seed=0, alpha=1.0, natural_ids=people)
    owners = [set(people[part].tolist()) for part in fewer]
    assert sum(len(owner) for owner in owners) == 10
    assert {len(owner) for owner in owners} == {2, 3}
    with pytest.raises(ConfigError, match="10 natural clients"):
        partition_data("natural", labels, clients=11, seed=0, alpha=1.0, natural_ids=people)
    with pytest.raises(ConfigError, match="which no built-in one does"):
        partition_data("natural", labels, clients=4, seed=0, alpha=1.0)
