"""A comparison's records as one small file, from which its page can be written again without any run.

Kept is what pages of comparisons read; weights, checkpoints, the losses of single tasks and the place of the data stay
behind.
"""

from __future__ import annotations

import io
import json
import tarfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from fedhybrid.records import COMPARISON

__all__ = ["keep_records", "restore_records"]

_UNREAD = ("train_loss", "at_s", "energy_j")  # of a task; most of a compressed record's bytes
_DATA = "DATA"  # stands for the folder of the data, as in the notes


def keep_records(folder: Path, file: Path) -> None:
    """Writes `file` (tar, xz) from the comparison in `folder`; equal records make equal bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:xz", preset=9, format=tarfile.PAX_FORMAT) as archive:
        for name, text in _kept(folder):
            content = text.encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def restore_records(file: Path, folder: Path) -> None:
    """Unpacks what `keep_records` has written."""
    with tarfile.open(file, "r:xz") as archive:
        archive.extractall(folder, filter="data")


def _kept(folder: Path) -> Iterator[tuple[str, str]]:
    """Names and contents; files of one kind stand side by side, which compresses best."""
    comparison = json.loads((folder / COMPARISON).read_text(encoding="utf-8"))
    for cell in comparison["cells"]:
        cell["variants"] = {label: _without_root(config) for label, config in cell["variants"].items()}
    yield COMPARISON, json.dumps(comparison, indent=1) + "\n"
    runs = sorted(path.parent for path in folder.glob("runs/*/*/*/summary.json"))
    for name in ("summary.json", "rounds.jsonl"):
        yield from ((_named(run / name, folder), (run / name).read_text(encoding="utf-8")) for run in runs)
    for run in runs:
        config = _without_root(tomllib.loads((run / "config.toml").read_text(encoding="utf-8")))
        yield _named(run / "config.toml", folder), tomli_w.dumps(config)
    for run in runs:
        yield _named(run / "clients.jsonl", folder), _tasks(run / "clients.jsonl")
    for plan in sorted(plan for run in runs for plan in run.glob("plans/*.json")):
        yield _named(plan, folder), plan.read_text(encoding="utf-8")


def _named(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _without_root(config: Mapping[str, Any]) -> dict[str, Any]:
    data = config.get("data", {})
    return {**config, "data": {**data, **({"root": _DATA} if "root" in data else {})}}


def _tasks(path: Path) -> str:
    tasks = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = ({**task, **dict.fromkeys(_UNREAD), "at_s": 0.0} for task in tasks)
    return "".join(json.dumps(task) + "\n" for task in kept)
