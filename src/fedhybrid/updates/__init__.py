"""Updates on their way: what a client's tensors become so that fewer bytes travel, and how they are put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from fedhybrid.errors import ConfigError
from fedhybrid.registry import lookup, nearest_hint
from fedhybrid.updates.aggregate import average_present, check_update, not_finite
from fedhybrid.updates.base import Context, Form, Piece, Pieces, Transform
from fedhybrid.updates.clip import Clip
from fedhybrid.updates.delta import Delta
from fedhybrid.updates.error_feedback import ErrorFeedback
from fedhybrid.updates.pipeline import Pipeline, Received, Sent, exact_bytes, order_problems
from fedhybrid.updates.quantise import Quantise
from fedhybrid.updates.residue import STATE_PREFIX
from fedhybrid.updates.top_k import TopK

__all__ = [
    "STATE_PREFIX",
    "TRANSFORMS",
    "Clip",
    "Context",
    "Delta",
    "ErrorFeedback",
    "Form",
    "Piece",
    "Pieces",
    "Pipeline",
    "Quantise",
    "Received",
    "Sent",
    "TopK",
    "Transform",
    "average_present",
    "check_update",
    "exact_bytes",
    "not_finite",
    "parse_pipeline",
]

TRANSFORMS: dict[str, type[Transform]] = {
    "clip": Clip,
    "delta": Delta,
    "error-feedback": ErrorFeedback,
    "quantise": Quantise,
    "top-k": TopK,
}


def parse_pipeline(tables: Sequence[Mapping[str, Any]], *, where: str) -> Pipeline:
    """The transforms that a recipe names, in its order.

    Args:
        tables: One for each transform: its `name` and its options.
        where: How the recipe calls the list, for messages.

    Raises:
        ConfigError: Unknown names or options, wrong values, an order that makes no sense; all at once.

    >>> parse_pipeline([{"name": "delta"}, {"name": "top-k", "ratio": 0.1}], where="traffic.up").parts
    (Delta(), TopK(ratio=0.1))
    >>> parse_pipeline([{"name": "topk"}], where="traffic.up")
    Traceback (most recent call last):
    fedhybrid.errors.ConfigError: traffic.up[0]: unknown update transform 'topk'. Did you mean 'top-k'? \
Known: clip, delta, error-feedback, quantise, top-k.
    """
    if isinstance(tables, (str, Mapping)) or not isinstance(tables, Sequence):
        raise ConfigError(f'{where} must be a list of tables like {{name = "top-k", ratio = 0.1}}, got {tables!r}')
    problems: list[str] = []
    made: list[tuple[int, Transform]] = []
    for position, table in enumerate(tables):
        try:
            made.append((position, _parse_transform(table)))
        except ConfigError as error:
            problems += [f"{where}[{position}]: {problem}" for problem in error.problems]
    problems += [f"{where}[{position}]: {problem}" for position, problem in order_problems(made)]
    if problems:
        raise ConfigError(problems)
    return Pipeline(parts=tuple(part for _, part in made))


def _parse_transform(table: Mapping[str, Any]) -> Transform:
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        raise ConfigError(f'must be a table with the name of an update transform, {{name = "delta"}}, got {table!r}')
    row: Any = lookup("update transform", TRANSFORMS, table["name"])
    make: Callable[..., Transform] = row
    options = {key: value for key, value in table.items() if key != "name"}
    known = [field.name for field in fields(row)]
    choices = f"Known: {', '.join(known)}." if known else "It has none."
    unknown = [
        f"{table['name']} has no option {key!r}.{nearest_hint(str(key), known)} {choices}"
        for key in options
        if key not in known
    ]
    missing = [
        f"{table['name']} needs the option {field.name!r}"
        for field in fields(row)
        if field.default is MISSING and field.name not in options
    ]
    if unknown or missing:
        raise ConfigError([*unknown, *missing])
    return make(**options)
