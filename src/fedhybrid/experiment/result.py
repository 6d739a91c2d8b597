"""What a run has left in its folder, as Python objects."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedhybrid.engine import RunFolder
from fedhybrid.errors import ConfigError
from fedhybrid.records import ClientRecord, RoundRecord, Summary, read_record

__all__ = ["RunResult", "load_run"]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run, or a comparison, whose runs are in `variants`.

    Attributes:
        folder: Where its files are.
        config: The complete configuration.
        rounds: One record a round; empty for a comparison.
        clients: One record a task, round by round; empty for a comparison.
        summary: None for a comparison and while a run is not finished.
        variants: The runs of a comparison by their labels.
    """

    folder: Path
    config: dict[str, Any]
    rounds: tuple[RoundRecord, ...] = ()
    clients: tuple[ClientRecord, ...] = ()
    summary: Summary | None = None
    variants: dict[str, RunResult] = field(default_factory=dict)

    @property
    def summaries(self) -> dict[str, Summary]:
        """The summary of each finished run by its label; the label of a run that is no variant is "" ."""
        runs = self.variants or {"": self}
        return {label: run.summary for label, run in runs.items() if run.summary is not None}


def load_run(folder: str | Path) -> RunResult:
    """Reads the folder of a run or of a comparison, finished or not.

    Raises:
        ConfigError: There is no run in the folder, or a file in it cannot be read.
    """
    path = Path(folder)
    try:
        config = tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} is no folder of a run: its config.toml cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path / 'config.toml'} is not TOML: {error}") from error
    if labels := config.get("compare", {}).get("variants", {}):
        variants = {label: load_run(path / label) for label in labels if (path / label).is_dir()}
        return RunResult(folder=path, config=config, variants=variants)
    files, summary = RunFolder(path), path / "summary.json"
    return RunResult(
        folder=path,
        config=config,
        rounds=tuple(files.rounds()),
        clients=tuple(files.clients()),
        summary=read_record(Summary, summary) if summary.is_file() else None,
    )
