"""What pydantic finds wrong with a recipe, as lines for the user: the TOML path, what was needed, what was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from fedhybrid.experiment.config import RunConfig
from fedhybrid.registry import nearest_hint

__all__ = ["pydantic_problem", "recipe_problem"]

# Where pydantic speaks of Python, and the recipe is TOML.
_WORDS = {
    "dict_type": "must be a table",
    "list_type": "must be a list",
    "model_type": "must be a table",
    "string_too_short": "must not be empty",
    "too_short": "must have at least one entry",
}


def pydantic_problem(found: Mapping[str, Any], where: str = "") -> str:
    """One of pydantic's errors as a line: the TOML path, what was needed, what was found."""
    path = ".".join(str(part) for part in ((where, *found["loc"]) if where else found["loc"]))
    message = _WORDS.get(found["type"]) or found["msg"].removeprefix("Value error, ").replace(
        "Input should be", "must be"
    )
    return f"{path}: {message}" if found["type"] == "value_error" else f"{path}: {message}, got {found['input']!r}"


def recipe_problem(found: Mapping[str, Any]) -> str:
    """One of pydantic's errors as a line; unknown keys get the nearest known one."""
    path = ".".join(str(part) for part in found["loc"])
    if found["type"] == "missing":
        return f"{path} is missing"
    if found["type"] != "extra_forbidden":
        return pydantic_problem(found)
    key, siblings = str(found["loc"][-1]), _keys_beside(found["loc"])
    elsewhere = [known for known in _all_paths(RunConfig) if known.rpartition(".")[2] == key]
    hint = f" Did you mean {elsewhere[0]!r}?" if elsewhere else nearest_hint(key, siblings)
    known = ", ".join(siblings)
    return f"unknown key {path}.{hint or f' Known here: {known}.'}"


def _keys_beside(loc: Sequence[str | int]) -> list[str]:
    table: type[BaseModel] = RunConfig
    for part in loc[:-1]:
        if isinstance(part, str):
            annotation = table.model_fields[part].annotation
            table = (get_args(annotation) or (annotation,))[0]
    return sorted(table.model_fields)


def _all_paths(table: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in table.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _all_paths(field.annotation, f"{prefix}{name}.")
