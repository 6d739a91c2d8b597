"""Paying for exposure: whom a menu makes say the truth, what it costs, and what privacy it buys."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from functools import partial

import pytest
import torch

from fedhybrid.errors import ConfigError
from fedhybrid.methods.coded import (
    CodedSet,
    Contract,
    Market,
    Offer,
    best_contract,
    exposure_bits,
    ledger,
    optimal_payments,
    sigma_for,
    single_price,
)

BITS = partial(exposure_bits, rows=50, largest=0.2)
GRID = [0.05 * 1.4**step for step in range(14)]


def market(seed: int, types: int = 4) -> Market:
    rng = random.Random(seed)
    return Market(
        thetas=tuple(sorted(rng.uniform(0.1, 5.0) for _ in range(types))),
        counts=tuple(rng.randint(1, 6) for _ in range(types)),
        bits=BITS,
        noise_price=rng.uniform(0.05, 5.0),
    )


def contract_of(given: Market, sigmas: list[float]) -> Contract:
    bits = [given.bits(sigma) for sigma in sigmas]
    pays = optimal_payments(given.thetas, bits)
    return Contract(
        market=given,
        offers=tuple(Offer(sigma=s, bits=b, pay=p) for s, b, p in zip(sigmas, bits, pays, strict=True)),
    )


@pytest.mark.parametrize("seed", range(20))
def test_truth_is_best_for_every_type_and_nobody_loses(seed: int) -> None:
    """All pairs of types and offers."""
    found = best_contract(market(seed, types=2 + seed % 6), GRID)
    types = range(len(found.offers))
    for own, other in itertools.product(types, types):
        assert found.utility(own, own) >= found.utility(own, other) - 1e-9
    assert min(found.utility(own, own) for own in types) >= -1e-9
    assert found.problems() == []
    assert found.utility(types[-1], types[-1]) == pytest.approx(0.0, abs=1e-9)
    sigmas = [offer.sigma for offer in found.offers]
    assert sigmas == sorted(sigmas)


@pytest.mark.parametrize("seed", range(8))
def test_no_menu_of_the_grid_costs_less(seed: int) -> None:
    given, few = market(seed, types=3), GRID[::2]
    found = best_contract(given, few)
    all_menus = [contract_of(given, list(each)) for each in itertools.combinations_with_replacement(few, 3)]
    assert found.cost == pytest.approx(min(each.cost for each in all_menus))
    assert {round(each.cost, 6) for each in all_menus} != {round(found.cost, 6)}


@pytest.mark.parametrize("seed", range(5))
def test_less_pay_breaks_the_menu(seed: int) -> None:
    found = best_contract(market(seed), GRID)
    for number, offer in enumerate(found.offers):
        less = replace(offer, pay=offer.pay - 0.01)
        cheaper = replace(found, offers=(*found.offers[:number], less, *found.offers[number + 1 :]))
        alone = replace(found, offers=tuple(replace(each, pay=each.pay - 0.01) for each in found.offers))
        assert cheaper.problems() or found.offers.count(offer) > 1
        assert alone.problems()


def test_a_menu_that_goes_the_wrong_way_is_found_out() -> None:
    given = market(1)
    wrong = contract_of(given, sorted(GRID[2:10:2], reverse=True))
    assert any("gains" in problem for problem in wrong.problems())
    unpaid = replace(wrong, offers=tuple(replace(offer, pay=0.0) for offer in wrong.offers))
    assert any("loses" in problem for problem in unpaid.problems())


def test_a_contract_never_costs_more_than_one_price_and_less_where_types_differ() -> None:
    savings = []
    for seed in range(20):
        given = market(seed)
        menu, price = best_contract(given, GRID), single_price(given, GRID)
        assert price.problems() == []
        assert len({offer.pay for offer in price.offers}) == 1
        assert menu.cost <= price.cost + 1e-9
        savings.append(1 - menu.cost / price.cost)
    assert max(savings) > 0.05


def test_markets_and_grids_that_are_none() -> None:
    with pytest.raises(ConfigError) as caught:
        Market(thetas=(2.0, 1.0), counts=(1,), bits=BITS, noise_price=0.0)
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError, match="noise levels must be positive"):
        best_contract(market(0), [0.0, 1.0])


def test_more_noise_gives_fewer_bits_away() -> None:
    bits = [BITS(sigma) for sigma in (0.0, *GRID)]
    assert bits[0] == math.inf
    assert bits == sorted(bits, reverse=True)
    assert exposure_bits(0.7, rows=50, largest=0.2) == pytest.approx(0.5 * math.log2(1 + 50 * 0.04 / 0.49))
    for sigma in GRID:
        assert sigma_for(BITS(sigma), rows=50, largest=0.2) == pytest.approx(sigma)


def test_the_bound_holds_for_what_gaussian_entries_give_away() -> None:
    """I(x; G x + V | G) of one entry, where x is normal with the power of the bound, averaged over projections."""
    rows, power, sigma = 20, 0.2, 0.6
    squares = torch.randn(20_000, rows, generator=torch.Generator().manual_seed(0)).square().sum(dim=1)
    told = (0.5 * torch.log2(1 + squares * (power / sigma) ** 2)).mean()
    bound = exposure_bits(sigma, rows=rows, largest=power)
    assert 0.95 * bound < told < bound


def test_the_ledger_reads_what_the_server_keeps() -> None:
    held = CodedSet(
        head="head", x=torch.zeros(50, 8), y=torch.zeros(50, 3), clients=torch.tensor([2, 7]),
        samples=torch.tensor([5, 6]), sigma=torch.tensor([0.1, 0.0]), largest=torch.tensor([0.2, 0.2]),
        lr=torch.tensor(0.1), steps=torch.tensor([1, 1]), seed=torch.tensor(0),
    )  # fmt: skip
    entries = ledger(held.to_extra())
    assert [entry.client for entry in entries] == [2, 7]
    assert entries[0].bits == pytest.approx(BITS(0.1), rel=1e-6)
    assert entries[1].bits == math.inf
    assert ledger({}) == []
