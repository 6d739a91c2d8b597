"""What people type, checked: `key=value` arguments, tensor shapes, and all problems of a command line at once."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fedhybrid.errors import ConfigError

__all__ = ["attempt", "parse_assignments", "parse_shape"]

T = TypeVar("T")


def attempt(problems: list[str], action: Callable[[], T]) -> T | None:
    """What `action` returns; or None, and what is wrong in `problems`, so that one command names everything at once."""
    try:
        return action()
    except ConfigError as error:
        problems.extend(error.problems)
        return None


def parse_assignments(arguments: Sequence[str]) -> dict[str, Any]:
    """The arguments as a mapping; keys stay as written (`data.root`), values are TOML where they can be, else text.

    Raises:
        ConfigError: An argument without `=`, or a key given twice; all of them at once.

    >>> parse_assignments(["rounds=3", "method=fedavg", "data.alpha=0.3", "stages=[1, 2]"])
    {'rounds': 3, 'method': 'fedavg', 'data.alpha': 0.3, 'stages': [1, 2]}
    """
    values: dict[str, Any] = {}
    problems = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        key = key.strip()
        if not equals or not key:
            problems.append(f"{argument!r} is no key=value; write for example width=0.5 or rounds=3")
        elif key in values:
            problems.append(f"{key!r} is given twice")
        else:
            values[key] = _value(text.strip())
    if problems:
        raise ConfigError(problems)
    return values


def parse_shape(text: str) -> tuple[int, ...]:
    """Shape of one sample: channels, height and width of an image, channels and length of a signal, length of a text.

    Raises:
        ConfigError: Not one to three positive whole numbers.

    >>> parse_shape("3x32x32"), parse_shape("80")
    ((3, 32, 32), (80,))
    """
    extents = text.lower().split("x")
    if len(extents) > 3 or not all(e.isascii() and e.isdigit() and int(e) > 0 for e in extents):
        raise ConfigError(
            "--input must be CHANNELSxHEIGHTxWIDTH like 3x32x32, CHANNELSxLENGTH like 9x128 for a signal, or LENGTH "
            f"like 80 for text, got {text!r}"
        )
    return tuple(int(e) for e in extents)


def _value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if table.keys() == {"value"} else text
