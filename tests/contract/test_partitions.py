"""What every partition of `PARTITIONS` obeys, and what makes each the one it is."""

from __future__ import annotations

import hashlib
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhybrid.data import PARTITIONS, Shards, partition_data
from fedhybrid.errors import ConfigError
from fedhybrid.records import IntArray

DEALS = sorted(set(PARTITIONS) - {"drawn"})  # each sample on one client; the others draw samples


def parts_of(name: str, labels: IntArray, *, clients: int, seed: int, **options: Any) -> list[IntArray]:
    """The shards as a list; `alpha` is 1 unless said."""
    shards = partition_data(name, labels, clients=clients, seed=seed, **({"alpha": 1.0} | options))
    return as_list(shards)


def as_list(shards: Shards) -> list[IntArray]:
    return [shards[client] for client in range(len(shards))]


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
@settings(max_examples=60)
def test_sorted_and_deterministic_and_deals_disjoint_and_complete(
    name: str, problem: tuple[IntArray, int, IntArray], seed: int, alpha: float
) -> None:
    labels, clients, natural_ids = problem
    shards = 1 + len(labels) // (2 * clients)

    def deal() -> Shards:
        return partition_data(
            name,
            labels,
            clients=clients,
            seed=seed,
            alpha=alpha,
            shards_per_client=shards,
            samples_per_client=1 + len(labels) // 3,
            natural_ids=natural_ids,
        )

    found = deal()
    parts = as_list(found)
    assert len(found) == len(parts) == clients
    assert found.sizes.tolist() == [len(part) for part in parts]
    if name in DEALS:
        assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for wrong in (-1, clients):
        with pytest.raises(IndexError):
            found[wrong]
    for part, again in zip(parts, as_list(deal()), strict=True):
        assert 0 <= part[0] <= part[-1] < len(labels)
        assert len(part) > 0
        assert part.dtype == np.int64
        assert np.all(np.diff(part) > 0)
        assert np.array_equal(part, again)


@pytest.mark.parametrize("name", sorted(PARTITIONS))
def test_another_seed_deals_otherwise_and_options_are_checked(name: str) -> None:
    labels = np.arange(400) % 10

    def deal(seed: int, clients: int = 10) -> list[list[int]]:
        parts = parts_of(name, labels, clients=clients, seed=seed, alpha=0.5, natural_ids=people_of(len(labels), 20))
        return [part.tolist() for part in parts]

    assert deal(1) != deal(2)
    for clients in (0, 401) if name in DEALS else (0, -1):
        with pytest.raises(ConfigError, match=r"data\.clients"):
            deal(1, clients)


def test_iid_sizes_differ_by_at_most_one() -> None:
    sizes = [len(p) for p in parts_of("iid", np.zeros(103, np.int64), clients=10, seed=0)]
    assert set(sizes) == {10, 11}


def test_dirichlet_gets_more_uneven_as_alpha_falls() -> None:
    labels = np.repeat(np.arange(10), 1000)

    def mean_largest_class_ratio(alpha: float) -> float:
        parts = parts_of("dirichlet", labels, clients=20, seed=3, alpha=alpha)
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
            partition_data("dirichlet", labels, clients=clients, seed=s, alpha=alpha).sizes / len(labels)
            for s in range(600)
        ]
    )
    expected = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert shares.var() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["dirichlet", "drawn"])
def test_alpha_is_checked(name: str, alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.alpha"):
        partition_data(name, np.zeros(10, np.int64), clients=2, seed=0, alpha=alpha, samples_per_client=4)


def test_shards_bound_the_classes_of_a_client() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 100))
    parts = parts_of("shards", labels, clients=50, seed=1, shards_per_client=2)
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
    exact = parts_of("natural", labels, clients=10, seed=0, natural_ids=people)
    assert [np.unique(people[part]).tolist() for part in exact] == [[i] for i in range(10)]
    fewer = parts_of("natural", labels, clients=4, seed=0, natural_ids=people)
    owners = [set(people[part].tolist()) for part in fewer]
    assert sum(len(owner) for owner in owners) == 10
    assert {len(owner) for owner in owners} == {2, 3}
    with pytest.raises(ConfigError, match="10 natural clients"):
        partition_data("natural", labels, clients=11, seed=0, alpha=1.0, natural_ids=people)
    with pytest.raises(ConfigError, match="as 'shakespeare' and 'uci-har' do"):
        partition_data("natural", labels, clients=4, seed=0, alpha=1.0)


# What these deals were when they were first published; a recipe's results rest on them.
PINNED = {
    "dirichlet": "fe55d9dff5d9db64",
    "iid": "ac68c4e67167c459",
    "natural": "5717e083fc591b9a",
    "shards": "7e635793549af42b",
}


@pytest.mark.parametrize("name", DEALS)
def test_deals_stay_what_they_were(name: str) -> None:
    labels = np.arange(500) * 7 % 10
    digest = hashlib.sha256()
    for seed, alpha in ((0, 0.3), (7, 0.01)):  # the small alpha leaves clients empty-handed at first
        for part in parts_of(name, labels, clients=40, seed=seed, alpha=alpha, natural_ids=np.arange(500) % 90):
            digest.update(part.astype("<i8").tobytes() + b"/")
    assert digest.hexdigest()[:16] == PINNED[name]


def test_drawn_clients_may_be_a_million() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 2000)
    tracemalloc.start()
    shards = partition_data("drawn", labels, clients=10**6, seed=3, alpha=0.3)
    held = [shards[client] for client in (0, 1, 999_999)]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2**20
    assert len(shards) == 10**6
    assert shards.sizes.shape == (10**6,)
    assert {len(part) for part in held} == set(shards.sizes[:5].tolist()) == {64}
    assert not np.array_equal(held[0], held[1])
    small = partition_data("drawn", labels, clients=2, seed=3, alpha=0.3)
    assert np.array_equal(small[1], held[1]), "a client's samples do not depend on how many clients there are"


def test_drawn_follows_its_distribution() -> None:
    # A share of a class is Beta(a, 9a): variance 0.09 / (10a + 1); the multinomial adds its own for n samples.
    labels, alpha, n = np.repeat(np.arange(10), 500), 0.5, 100
    shards = partition_data("drawn", labels, clients=3000, seed=1, alpha=alpha, samples_per_client=n)
    counts = np.array([np.bincount(labels[part], minlength=10) for part in as_list(shards)])
    assert counts.mean(axis=0) == pytest.approx(np.full(10, n / 10), rel=0.1)
    expected = 0.1 * 0.9 / n * (1 + (n - 1) / (10 * alpha + 1))
    assert (counts / n).var() == pytest.approx(expected, rel=0.05)
    members = np.bincount(np.concatenate(as_list(shards)), minlength=len(labels))
    assert members.min() > 0, "no sample is out of reach"


def test_drawn_fills_up_where_a_class_is_too_small() -> None:
    labels = np.array([0] * 3 + [1] * 97)
    shards = partition_data("drawn", labels, clients=200, seed=0, alpha=0.01, samples_per_client=40)
    parts = as_list(shards)
    assert {len(part) for part in parts} == {40}
    assert max(int((labels[part] == 0).sum()) for part in parts) == 3
    whole = partition_data("drawn", labels, clients=2, seed=0, alpha=1.0, samples_per_client=100)
    assert whole[0].tolist() == list(range(100))
    for wrong in (0, 101):
        with pytest.raises(ConfigError, match=r"data\.samples_per_client must be 1 to 100"):
            partition_data("drawn", labels, clients=2, seed=0, alpha=1.0, samples_per_client=wrong)
