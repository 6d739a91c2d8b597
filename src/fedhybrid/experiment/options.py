"""Checks a table of options against whatever takes them: a plug-in's dataclass or a model's factory."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from fedhybrid.experiment.messages import pydantic_problem
from fedhybrid.registry import nearest_hint

__all__ = ["CheckedOptions", "check_options"]


@dataclass(frozen=True, kw_only=True)
class CheckedOptions:
    """What the check has found.

    Attributes:
        values: The given options and the defaults of the others.
        problems: Lines for the user.
        sound: The given options without a problem, whose range only the taker knows; None where it would lack some.
    """

    values: dict[str, Any]
    problems: list[str]
    sound: dict[str, Any] | None


def check_options(
    taker: Callable[..., Any], given: Mapping[str, Any], *, where: str, of: str, not_options: Collection[str] = ()
) -> CheckedOptions:
    """Compares `given` with the keyword parameters of `taker`: their names, types and whether any is missing.

    Args:
        taker: A class or function.
        given: The options by name.
        where: The table they stand in, such as "method_options".
        of: Whose options they are, for messages, such as "method 'fedprox'".
        not_options: Parameters that somebody else fills in.
    """
    parameters = {n: p for n, p in inspect.signature(taker).parameters.items() if n not in not_options}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    named = {n: p for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    known = ", ".join(sorted(named)) or "none"
    problems = [
        f"{where}.{key}: {of} has no such option.{nearest_hint(key, named)} Known: {known}."
        for key in given
        if key not in named and not takes_any
    ]
    problems += [
        f"{where}.{name} is missing: {of} needs it"
        for name, parameter in named.items()
        if parameter.default is parameter.empty and name not in given
    ]
    hints = _type_hints(taker)
    mistyped: set[Any] = set()
    fields: dict[str, Any] = {name: (hints.get(name, Any), ...) for name in named if name in given}
    try:
        create_model("Options", __config__=ConfigDict(strict=True, arbitrary_types_allowed=True), **fields)(
            **{name: given[name] for name in fields}
        )
    except ValidationError as error:
        problems += [pydantic_problem(found, where) for found in error.errors()]
        mistyped = {found["loc"][0] for found in error.errors()}
    defaults = {n: p.default for n, p in named.items() if isinstance(p.default, (bool, int, float, str))}
    sound = {n: value for n, value in given.items() if n not in mistyped and (n in named or takes_any)}
    lacks = any(p.default is p.empty and n not in sound for n, p in named.items())
    return CheckedOptions(values=defaults | dict(given), problems=problems, sound=None if lacks else sound)


def _type_hints(taker: Callable[..., Any]) -> dict[str, Any]:
    """Types of the parameters; none where they are not written or cannot be resolved."""
    function = taker.__init__ if inspect.isclass(taker) else taker
    try:
        return get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        return {}
