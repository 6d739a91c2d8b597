"""Sparse update schemes: which biases, which layers and what share of their input channels are trained.

A scheme is a name, and the name is all that is needed to make its submodel:

- `full`: every weight and bias; `head`: the classifier alone, which every scheme trains;
- `last-3`: weights and biases of the last three convolutions; `biases-3`: their biases alone;
- `k5_w3_w6-8`: the biases of the last five convolutions, all weights of convolution 3 and those of an eighth of the
  input channels of convolution 6, counted from 0 at the input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedhybrid.errors import ConfigError
from fedhybrid.models.quantised import LayerUpdate

__all__ = ["DENOMINATORS", "Scheme", "is_scheme", "parse_scheme"]

DENOMINATORS = (8, 4, 2, 1)  # of the shares of input channels that the paper chooses from

_SPARSE = re.compile(r"k(\d+)((?:_w\d+(?:-\d+)?)*)")
_LAST = re.compile(r"(last|biases)-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The biases of the last `biases` convolutions, and weights of some layers among them.

    Attributes:
        biases: k of the paper.
        weights: For each trained layer what its number of input channels is divided by: (I, r) of the paper.
    """

    biases: int
    weights: Mapping[int, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name, by which `parse_scheme` finds it again."""
        layers = (f"_w{n}" + ("" if self.weights[n] == 1 else f"-{self.weights[n]}") for n in sorted(self.weights))
        return f"k{self.biases}{''.join(layers)}"

    def updates(self, channels_in: Sequence[int]) -> tuple[LayerUpdate, ...]:
        """What is trained of each convolution; at least one channel where any are.

        Args:
            channels_in: Input channels of all convolutions, in order.
        """
        first = len(channels_in) - self.biases
        return tuple(
            LayerUpdate(bias=n >= first, channels=max(1, count // self.weights[n]) if n in self.weights else 0)
            for n, count in enumerate(channels_in)
        )


def is_scheme(name: str) -> bool:
    """Whether it names a scheme of some network."""
    return name in ("full", "head") or any(form.fullmatch(name) for form in (_LAST, _SPARSE))


def parse_scheme(name: str, layers: int) -> Scheme:
    """The scheme of that name, for a network with so many convolutions.

    Raises:
        ConfigError: It names none, or not one of this network; all that is wrong at once.

    >>> parse_scheme("last-2", 5).name
    'k2_w3_w4'
    >>> parse_scheme("k2_w1", 3) == Scheme(biases=2, weights={1: 1})
    True
    """
    if name in ("", "full"):
        return Scheme(biases=layers, weights=dict.fromkeys(range(layers), 1))
    if name == "head":
        return Scheme(biases=0)
    if found := _LAST.fullmatch(name):
        count = int(found[2])
        _refuse([f"the network has {layers} convolutions, fewer than {count}"] if count > layers else [], name)
        numbers = range(layers - count, layers) if found[1] == "last" else ()
        return Scheme(biases=count, weights=dict.fromkeys(numbers, 1))
    sparse = _SPARSE.fullmatch(name)
    if sparse is None:
        raise ConfigError(f"update scheme {name!r} must be full, head, last-N, biases-N, or such as k5_w3_w6-8")
    biases = int(sparse[1])
    parts = [part.removeprefix("w").split("-") for part in sparse[2].split("_") if part]
    weights = {int(layer): int(rest[0]) if rest else 1 for layer, *rest in parts}
    problems = [f"the network has {layers} convolutions, fewer than k = {biases}"] if biases > layers else []
    if len(weights) < len(parts):
        problems.append("it names a layer twice")
    for layer, divisor in weights.items():
        if not layers - biases <= layer < layers:
            problems.append(
                f"weights of layer {layer} need its bias, too: layers {layers - biases} to {layers - 1} have it"
            )
        if divisor < 1:
            problems.append(f"layer {layer}: channels cannot be divided by {divisor}")
    _refuse(problems, name)
    return Scheme(biases=biases, weights=weights)


def _refuse(problems: Sequence[str], name: str) -> None:
    if problems:
        raise ConfigError([f"update scheme {name!r}: {problem}" for problem in problems])
