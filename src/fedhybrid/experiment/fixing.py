"""`comparison.json`: what a comparison fixes before its first run, and whether a later call asks for the same."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import fedhybrid
from fedhybrid.engine.files import write_atomically
from fedhybrid.errors import ConfigError
from fedhybrid.experiment.cells import Cell
from fedhybrid.experiment.check import to_table
from fedhybrid.records import COMPARISON

__all__ = ["MAY_CHANGE", "check_place", "check_versions", "described", "json_ready", "store"]

_FORM = 1
_CODE = "code"  # of the versions
_NAMED = 6  # differences, or cells, that are named one by one
MAY_CHANGE = ("workers", "checkpoint_every")  # no result depends on them
_MISSING = object()


def described(cells: Sequence[Cell], seeds: int) -> dict[str, Any]:
    """What comparison.json says: versions, targets, and the complete configuration of each variant."""
    return {
        "form": _FORM,
        "versions": {
            "fedhybrid": version("fedhybrid"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            _CODE: code_hash(),
        },
        "codes": [code_hash()],
        "seeds": seeds,
        "first_seeds": seeds,
        "cells": [
            {
                "label": cell.label,
                "folder": cell.folder,
                "recipe": cell.recipe,
                "settings": json_ready(cell.settings),
                "seeds": [cell.first_seed + i for i in range(seeds)],
                "targets": list(cell.targets),
                "reference": cell.reference,
                "oracle": cell.oracle,
                "apart": list(cell.apart),
                "effects": {name: list(pair) for name, pair in cell.effects.items()},
                "variants": {label: json_ready(to_table(config)) for label, config in cell.variants.items()},
            }
            for cell in cells
        ],
    }


def json_ready(value: Any) -> Any:
    """The same where JSON has it; a number that it has not is its name in TOML ("inf")."""
    if isinstance(value, Mapping):
        return {name: json_ready(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def check_place(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Makes sure that the folder is free, or holds this very comparison with as many seeds and variants, or fewer.

    Raises:
        ConfigError: It does not; one line with all differences.
    """
    stored = _stored(folder)
    if stored is None:
        if (folder / "config.toml").is_file():
            raise ConfigError(f"--out {folder} holds a run, not a comparison; give another folder")
        if folder.is_dir() and any(not _is_left_over(path) for path in folder.iterdir()):
            raise ConfigError(f"--out {folder} is not empty and holds no comparison; give another folder")
        return
    changed = _changes(stored["cells"], _as_far_as(stored["cells"], json.loads(json.dumps(wanted["cells"]))))
    if changed:
        raise ConfigError(
            f"--out {folder} holds another comparison: {_listed(changed)}. What is compared is fixed before the runs "
            "(only seeds and variants may be added): give another --out"
        )
    if stored["seeds"] > wanted["seeds"]:
        raise ConfigError(
            f"--out {folder} holds a comparison with {stored['seeds']} seeds; give --seeds {stored['seeds']} or more"
        )


@cache
def code_hash() -> str:
    """Twelve digits that tell one state of this package's own code from another, as far as it is Python."""
    found, root = sha256(), Path(fedhybrid.__file__).parent
    for path in sorted(root.rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:12]


def check_versions(folder: Path, wanted: Mapping[str, Any]) -> str | None:
    """Makes sure that all runs of a comparison are made by one version of everything.

    Returns:
        What to beware of: the version is the same, but not the package's code; None where that is the same, too.

    Raises:
        ConfigError: The versions are not those with which it was begun.
    """
    was, now = (_stored(folder) or wanted)["versions"], wanted["versions"]
    names = [name for name in now if name != _CODE and was.get(name) != now[name]]
    changed = [f"{name} was {was.get(name)}, now it is {now[name]}" for name in names]
    if changed:
        raise ConfigError(
            f"--out {folder}: the comparison was begun with other versions: {', '.join(changed)}; finish it with "
            "those, or give another --out"
        )
    if was.get(_CODE, now[_CODE]) == now[_CODE]:
        return None
    return (
        f"--out {folder}: the comparison was begun with other code of fedhybrid (hash {was[_CODE]}, now {now[_CODE]}); "
        "runs of both may not compare, and its page will say so"
    )


def store(folder: Path, wanted: Mapping[str, Any], *, running: bool) -> None:
    """Writes comparison.json, if it is not there, has fewer seeds or variants, other effects, or not the running code.

    Args:
        folder: The comparison's.
        wanted: As `described` gives it.
        running: Whether runs are made now.
    """
    stored = _stored(folder)
    if stored is None:
        content = dict(wanted)
    else:
        codes = stored.get("codes", [])
        before = {cell["label"]: cell for cell in stored["cells"]}
        content = {
            **(wanted if stored["seeds"] < wanted["seeds"] else stored),
            "cells": [_later(before[cell["label"]], cell) for cell in wanted["cells"]],
            "versions": stored["versions"],
            "codes": list(dict.fromkeys([*codes, *(wanted["codes"] if running else [])])),
            "first_seeds": stored.get("first_seeds", stored["seeds"]),
        }
    if content != stored:
        write_atomically(folder / COMPARISON, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _later(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """A cell with what may be new in it: effects (how results are read, and no race), seeds, and variants, named."""
    if before["seeds"] == now["seeds"] and before["variants"].keys() == now["variants"].keys():
        return {**before, "effects": now["effects"]}
    added = [*before.get("added", ()), *(label for label in now["variants"] if label not in before["variants"])]
    return {**now, "added": added} if added else dict(now)


def _stored(folder: Path) -> dict[str, Any] | None:
    path = folder / COMPARISON
    try:
        read = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise ConfigError(f"--out {folder} is a file; give a folder") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; give another --out") from error
    if not isinstance(read, dict) or read.get("form") != _FORM:
        raise ConfigError(f"{path} is not what this version of fedhybrid writes; give another --out")
    return dict(json_ready(read))  # of a comparison that was begun when "Infinity" was still written


def _is_left_over(path: Path) -> bool:
    """What a process leaves that was killed before it wrote comparison.json."""
    return path.is_file() and path.name.startswith((".", COMPARISON))


def _as_far_as(was: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells of `now` without the variants that `was` does not have: those are added, and change nothing."""
    known = {cell["label"]: cell["variants"] for cell in was}
    return [
        {
            **cell,
            "variants": {label: each for label, each in cell["variants"].items() if label in known[cell["label"]]},
            "apart": [label for label in cell["apart"] if label in known[cell["label"]]],
        }
        if cell["label"] in known
        else cell
        for cell in now
    ]


def _changes(was: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    """Each difference once, with the cells that have it."""
    before, after = ({cell["label"]: cell for cell in cells} for cells in (was, now))
    if before.keys() != after.keys():
        return [f"its cells are {_listed(before)}; now they are {_listed(after)}"]
    changed: dict[str, list[str]] = {}
    for label, cell in before.items():
        one, two = _flat(cell), _flat(after[label])
        for key in dict.fromkeys([*one, *two]):
            old, new = one.get(key, _MISSING), two.get(key, _MISSING)
            if old != new:
                changed.setdefault(f"{key} was {_word(old)}, now it is {_word(new)}", []).append(label)
    return [f"{what} ({_listed(labels)})" for what, labels in changed.items()]


def _flat(cell: Mapping[str, Any]) -> dict[str, Any]:
    """All that is fixed of a cell; a setting of all its variants has one entry."""
    flat: dict[str, Any] = {name: cell[name] for name in ("targets", "reference", "oracle")}
    flat["apart"] = sorted(cell.get("apart", ()))
    flat["variants"] = sorted(cell["variants"])
    tables = {label: _settings(table) for label, table in cell["variants"].items()}
    for label, table in tables.items():
        for key, value in table.items():
            same = all(other.get(key, _MISSING) == value for other in tables.values())
            flat[key if same else f"{label}: {key}"] = value
    return flat


def _settings(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        if f"{prefix}{key}" in MAY_CHANGE:
            continue
        found |= _settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {prefix + key: value}
    return found


def _word(value: Any) -> str:
    text = "not set" if value is _MISSING or value is None else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _listed(words: Iterable[str]) -> str:
    given = list(words)
    return "; ".join(given[:_NAMED]) + (f"; and {len(given) - _NAMED:,} more" if len(given) > _NAMED else "")
