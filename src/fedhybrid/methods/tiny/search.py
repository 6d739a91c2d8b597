"""Finds the update scheme of the largest contribution within a byte budget.

RECONSTRUCTED: the paper names the objective and evolutionary search, its published code holds found schemes alone.
Ours: 64 schemes, 50 generations, the better half stays, children take each gene from either parent and change it with
probability 0.1, what does not fit is not admitted; the largest "last layers" and "last biases" that fit are among the
first schemes, so that the result is never below them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from fedhybrid.errors import ConfigError
from fedhybrid.methods.tiny.schemes import DENOMINATORS, Scheme
from fedhybrid.seeds import derive_seed

__all__ = ["Contributions", "Evolution", "find_scheme", "last_layers"]

Fits = Callable[[Scheme], bool]
_TRIES = 200  # for a child that fits, before one of its parents takes its place


@dataclass(frozen=True, kw_only=True)
class Contributions:
    """What training a part adds to the accuracy on one task, as measured.

    Attributes:
        biases: At place k: training the biases of the last k convolutions beside the classifier, over the classifier
            alone; the first is 0.
        weights: For (layer, divisor of its input channels): training them beside all biases, over the biases alone.
    """

    biases: tuple[float, ...]
    weights: Mapping[tuple[int, int], float]

    def predicted(self, scheme: Scheme) -> float:
        """The sum over the scheme's parts: contributions are taken to add up, as in the paper."""
        return self.biases[scheme.biases] + sum(self.weights.get(gene, 0.0) for gene in scheme.weights.items())

    def to_json(self) -> str:
        """As text that `from_json` reads."""
        weights = [[layer, divisor, gain] for (layer, divisor), gain in sorted(self.weights.items())]
        return json.dumps({"biases": list(self.biases), "weights": weights})

    @classmethod
    def from_json(cls, text: str) -> Contributions:
        """What `to_json` wrote."""
        raw = json.loads(text)
        weights = {(int(layer), int(divisor)): float(gain) for layer, divisor, gain in raw["weights"]}
        return cls(biases=tuple(float(gain) for gain in raw["biases"]), weights=weights)


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """Options of the search; RECONSTRUCTED.

    Attributes:
        population: Schemes of a generation.
        generations: How many.
        mutation_ratio: Probability that a gene of a child changes.
        seed: Decides all draws.
        divisors: What a layer's input channels may be divided by.
    """

    population: int = 64
    generations: int = 50
    mutation_ratio: float = 0.1
    seed: int = 0
    divisors: tuple[int, ...] = field(default=DENOMINATORS)


def last_layers(layers: int, fits: Fits) -> Scheme:
    """The most of the last convolutions that fit with all their weights and biases."""
    found = Scheme(biases=0)
    for count in range(1, layers + 1):
        scheme = Scheme(biases=count, weights=dict.fromkeys(range(layers - count, layers), 1))
        if fits(scheme):
            found = scheme
    return found


def find_scheme(contributions: Contributions, fits: Fits, *, options: Evolution | None = None) -> Scheme:
    """The scheme of the largest predicted contribution that evolution finds among those that fit.

    Args:
        contributions: Of the network.
        fits: Whether a scheme is within the budget.
        options: Of the search.

    Raises:
        ConfigError: Not even training the classifier alone fits.
    """
    options = options or Evolution()
    layers = len(contributions.biases) - 1
    if not fits(Scheme(biases=0)):
        raise ConfigError("no update scheme fits: the classifier alone is already more than the budget")
    rng = Random(derive_seed(options.seed, purpose="update scheme"))
    biases = max((k for k in range(layers + 1) if fits(Scheme(biases=k))), default=0)
    people = [Scheme(biases=0), Scheme(biases=biases), last_layers(layers, fits)]
    while len(people) < options.population:
        people.append(_mutated(people[len(people) % 3], layers, fits, rng, options, ratio=0.5))
    for _ in range(options.generations):
        people.sort(key=contributions.predicted, reverse=True)
        people = people[: options.population // 2]
        elite = list(people)
        while len(people) < options.population:
            child = _crossed(rng.choice(elite), rng.choice(elite), layers, rng)
            people.append(_mutated(child, layers, fits, rng, options, ratio=options.mutation_ratio, parents=elite))
    return max(people, key=contributions.predicted)


def _crossed(one: Scheme, other: Scheme, layers: int, rng: Random) -> Scheme:
    biases = rng.choice((one.biases, other.biases))
    weights = {n: gene for n in range(layers) if (gene := rng.choice((one, other)).weights.get(n))}
    return _whole(biases, weights, layers)


def _whole(biases: int, weights: Mapping[int, int], layers: int) -> Scheme:
    """Without the weights of layers whose biases are not trained."""
    return Scheme(biases=biases, weights={n: d for n, d in weights.items() if n >= layers - biases})


def _mutated(
    scheme: Scheme,
    layers: int,
    fits: Fits,
    rng: Random,
    options: Evolution,
    *,
    ratio: float,
    parents: Sequence[Scheme] = (),
) -> Scheme:
    """The scheme with some genes drawn anew, as often as it takes until it fits."""
    for _ in range(_TRIES):
        biases = rng.randint(0, layers) if rng.random() < ratio else scheme.biases
        weights = dict(scheme.weights)
        for layer in range(layers):
            if rng.random() < ratio:
                divisor = rng.choice((0, *options.divisors))
                weights.pop(layer, None)
                weights |= {layer: divisor} if divisor else {}
        changed = _whole(biases, weights, layers)
        if fits(changed):
            return changed
    return rng.choice(parents) if parents else Scheme(biases=0)
