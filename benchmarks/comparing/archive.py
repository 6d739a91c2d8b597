"""A comparison's records as one small file, from which its page can be written again without any run.

Kept is what pages of comparisons read. Weights, checkpoints and the place of the data stay behind, and of single tasks
the losses, the energy and the clock at their end, which are most of a compressed record: what is restored serves such
pages alone, and no report of a single run.
"""

from __future__ import annotations

import io
import json
import lzma
import tarfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from fedhybrid.engine.files import write_atomically
from fedhybrid.errors import ConfigError
from fedhybrid.experiment.fixing import json_ready
from fedhybrid.records import COMPARISON

__all__ = ["finished_runs", "keep_records", "restore_records"]

_LEFT_OUT = ("energy_j", "at_s")  # of a task, beside its loss, which a record must have as a field
_DATA = "DATA"  # stands for the folder of the data, as in the notes
_FINISHED = "summary.json"  # a run that has it is finished


def keep_records(folder: Path, file: Path) -> None:
    """Writes `file` (tar, xz) from the comparison in `folder`; equal records make equal bytes.

    Raises:
        ConfigError: A record is damaged; an older `file` is still there.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz", preset=9, format=tarfile.PAX_FORMAT) as archive:
        try:
            for name, text in _kept(folder):
                content = text.encode()
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"records of {folder} cannot be kept: {type(error).__name__}: {error}") from error
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, packed.getvalue())


def restore_records(file: Path, folder: Path) -> None:
    """Unpacks what `keep_records` has written.

    Raises:
        ConfigError: The file is damaged.
    """
    with _opened(file) as archive:
        archive.extractall(folder, filter="data")


def finished_runs(place: Path) -> int:
    """How many runs are finished in a comparison's folder, or in its records; none where nothing is.

    Raises:
        ConfigError: The records are damaged.
    """
    if place.is_dir():
        return sum(1 for _ in place.glob(f"runs/*/*/*/{_FINISHED}"))
    if not place.is_file():
        return 0
    with _opened(place) as archive:
        return sum(Path(name).name == _FINISHED for name in archive.getnames())


@contextmanager
def _opened(file: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(file, "r:xz") as archive:
            yield archive
    except (tarfile.TarError, EOFError, lzma.LZMAError) as error:
        raise ConfigError(f"{file} is damaged ({error}); take it away, or get it again from the repository") from error


def _kept(folder: Path) -> Iterator[tuple[str, str]]:
    """Names and contents; files of one kind stand side by side, which compresses best."""
    comparison = json_ready(json.loads((folder / COMPARISON).read_bytes()))
    for cell in comparison["cells"]:
        cell["variants"] = {label: _without_root(config) for label, config in cell["variants"].items()}
    yield COMPARISON, json.dumps(comparison, indent=1, allow_nan=False) + "\n"
    runs = sorted(path.parent for path in folder.glob(f"runs/*/*/*/{_FINISHED}"))
    for name in (_FINISHED, "rounds.jsonl"):
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
    if "root" not in config.get("data", {}):
        return dict(config)
    return {**config, "data": {**config["data"], "root": _DATA}}


def _tasks(path: Path) -> str:
    tasks = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = ({k: v for k, v in task.items() if k not in _LEFT_OUT} | {"train_loss": None} for task in tasks)
    return "".join(json.dumps(task) + "\n" for task in kept)
