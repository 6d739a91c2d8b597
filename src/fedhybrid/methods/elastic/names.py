"""Names of submodels that train some tensors of a model's first parts; all that makes them is in the name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fedhybrid.errors import ConfigError
from fedhybrid.models.exits import Layout

__all__ = ["Choice", "choice_name", "read_choice"]

_KINDS = ("probe", "train")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A part of a model as it is trained.

    Attributes:
        kind: "train", or "probe": two plain steps that show how important tensors are.
        last: The part of the model that it ends after, from 1.
        trained: Names of the parameters that get gradients, beside those of the exit.
    """

    kind: str
    last: int
    trained: tuple[str, ...]


def choice_name(layout: Layout, kind: str, last: int, trained: Iterable[str]) -> str:
    """Such as "train-3-1f": until part 3, those parameters whose bits are set in 0x1f, by the order of their names."""
    number = {name: bit for bit, name in enumerate(sorted(layout.params))}
    return f"{kind}-{last}-{sum(1 << number[name] for name in set(trained)):x}"


def read_choice(layout: Layout, name: str) -> Choice:
    """What a name says.

    Raises:
        ConfigError: It is no such name, or names what the model does not have.
    """
    kind, _, rest = name.partition("-")
    last_text, _, bits_text = rest.partition("-")
    try:
        last, bits = int(last_text), int(bits_text, 16)
    except ValueError:
        last, bits = 0, 0
    names = sorted(layout.params)
    trained = tuple(each for bit, each in enumerate(names) if bits >> bit & 1)
    ends = layout.exits | {layout.last}
    if kind not in _KINDS or last not in ends or bits >> len(names) or any(layout.params[n] > last for n in trained):
        raise ConfigError(
            f"submodel {name!r} must be probe-PART-BITS or train-PART-BITS with one of the parts "
            f"{', '.join(map(str, sorted(ends)))} and bits of its {len(names)} parameters"
        )
    return Choice(kind=kind, last=last, trained=trained)
