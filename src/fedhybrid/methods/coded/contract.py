"""Paying devices for what their coded rows give away: a menu of contracts, and one price for all to compare with.

Types of devices differ in what a bit of exposure costs them, theta_1 < ... < theta_M, which the server does not see: it
offers each a noise level and a payment, and everybody picks what suits him. A device's utility is its payment less
theta times the bits that its noise gives away (`privacy.exposure_bits`); the server pays, and more noise costs it
accuracy. RECONSTRUCTED after the public outline of the paper (`methods/scfl.py`): who minds exposure more gets no less
noise, the most sensitive type is paid exactly its cost, and each other one what makes the next one's offer as good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from fedhybrid.errors import ConfigError

__all__ = ["Contract", "Market", "Offer", "best_contract", "optimal_payments", "single_price"]

_ROUNDING = 1e-9  # of utilities, relative to the largest payment


@final
@dataclass(frozen=True, kw_only=True)
class Market:
    """What the server knows of the devices.

    Attributes:
        thetas: Cost of one bit to each type, ascending, above 0.
        counts: Devices of each type.
        bits: Bits that a noise level gives away, falling.
        noise_price: What a unit of a device's noise variance costs the server: k1 * E |W|^2.
    """

    thetas: tuple[float, ...]
    counts: tuple[int, ...]
    bits: Callable[[float], float]
    noise_price: float

    def __post_init__(self) -> None:
        problems = []
        if not self.thetas or list(self.thetas) != sorted(set(self.thetas)) or not self.thetas[0] > 0:
            problems.append(f"thetas must ascend and be above 0, got {self.thetas}")
        if len(self.counts) != len(self.thetas) or min(self.counts, default=0) < 1:
            problems.append(f"counts must be at least 1 for each of {len(self.thetas)} types, got {self.counts}")
        if not (math.isfinite(self.noise_price) and self.noise_price > 0):
            problems.append(f"noise_price must be positive and finite, got {self.noise_price}")
        if problems:
            raise ConfigError(problems)


@final
@dataclass(frozen=True, kw_only=True)
class Offer:
    """A noise level, the bits that it gives away, and what is paid for them."""

    sigma: float
    bits: float
    pay: float


@final
@dataclass(frozen=True, kw_only=True)
class Contract:
    """One offer for each type of a market."""

    market: Market
    offers: tuple[Offer, ...]

    @property
    def payments(self) -> float:
        """To all devices, each taking its own type's offer."""
        return sum(count * offer.pay for count, offer in zip(self.market.counts, self.offers, strict=True))

    @property
    def cost(self) -> float:
        """The server's: payments, and what the noise costs it."""
        pairs = zip(self.market.counts, self.offers, strict=True)
        return self.payments + self.market.noise_price * sum(count * offer.sigma**2 for count, offer in pairs)

    def utility(self, type_number: int, offer_number: int) -> float:
        """Of a device of one type that takes the offer made for another (or its own)."""
        offer = self.offers[offer_number]
        return offer.pay - self.market.thetas[type_number] * offer.bits

    def problems(self) -> list[str]:
        """Every type that would lose by taking part or gain by saying that it is another; all pairs are looked at."""
        least = _ROUNDING * max(1.0, *(abs(offer.pay) for offer in self.offers))
        types, found = range(len(self.offers)), []
        for own in types:
            truth = self.utility(own, own)
            if truth < -least:
                found.append(f"type {own} loses {-truth:g} by taking part")
            found += [
                f"type {own} gains {self.utility(own, other) - truth:g} by the offer for type {other}"
                for other in types
                if self.utility(own, other) > truth + least
            ]
        return found


def optimal_payments(thetas: Sequence[float], bits: Sequence[float]) -> tuple[float, ...]:
    """The least that must be paid for these exposures, of which a more sensitive type has no more.

    pay_M = theta_M bits_M, and pay_m = pay_(m+1) + theta_m (bits_m - bits_(m+1)).
    """
    pays = [thetas[-1] * bits[-1]]
    for number in range(len(thetas) - 2, -1, -1):
        pays.append(pays[-1] + thetas[number] * (bits[number] - bits[number + 1]))
    return tuple(reversed(pays))


def best_contract(market: Market, sigmas: Sequence[float]) -> Contract:
    """The menu of the least cost to the server, with noise from a grid.

    With optimal payments the cost falls apart into one term for each type: its noise, and its bits times n_m theta_m +
    (n_1 + ... + n_(m-1)) (theta_m - theta_(m-1)), as all less sensitive types are paid for them, too. So the best
    levels that do not fall from type to type are found exactly, type by type.

    Args:
        market: Whom it is for.
        sigmas: Levels to choose from, above 0.

    Raises:
        ConfigError: A level that is none.
    """
    grid = _grid(sigmas)
    bits = [market.bits(sigma) for sigma in grid]
    reached = [0.0] * len(grid)  # least cost of the types so far, the last of them at this level or a lower one
    choices: list[list[int]] = []
    before, below = 0, 0.0
    for theta, count in zip(market.thetas, market.counts, strict=True):
        paid = count * theta + before * (theta - below)
        best: list[float] = []
        chosen: list[int] = []
        for level, sigma in enumerate(grid):
            here = reached[level] + count * market.noise_price * sigma**2 + paid * bits[level]
            keeps = bool(best) and best[-1] <= here
            best.append(best[-1] if keeps else here)
            chosen.append(chosen[-1] if keeps else level)
        reached, before, below = best, before + count, theta
        choices.append(chosen)
    levels = [len(grid) - 1]
    for chosen in reversed(choices):
        levels.append(chosen[levels[-1]])
    found = levels[:0:-1]
    return _with_payments(market, [grid[level] for level in found])


def single_price(market: Market, sigmas: Sequence[float]) -> Contract:
    """The Stackelberg rule to compare with: one price of a bit and one noise level for all; RECONSTRUCTED.

    The server leads with a price, the devices follow: each sells while the price is not below its theta, and as costs
    grow evenly with bits, it then sells all that are bought. The server needs everybody's data, so the lowest price
    that does is theta_M, and only the noise level is left to choose.

    Raises:
        ConfigError: A level that is none.
    """
    offers = (_with_payments(market, [sigma] * len(market.thetas)) for sigma in _grid(sigmas))
    return min(offers, key=lambda contract: contract.cost)


def _with_payments(market: Market, sigmas: Sequence[float]) -> Contract:
    bits = [market.bits(sigma) for sigma in sigmas]
    pays = optimal_payments(market.thetas, bits)
    rows = zip(sigmas, bits, pays, strict=True)
    return Contract(market=market, offers=tuple(Offer(sigma=sigma, bits=bit, pay=pay) for sigma, bit, pay in rows))


def _grid(sigmas: Sequence[float]) -> list[float]:
    grid = sorted(set(sigmas))
    if not grid or not (grid[0] > 0 and math.isfinite(grid[-1])):
        raise ConfigError(f"noise levels must be positive and finite, at least one, got {list(sigmas)}")
    return grid
