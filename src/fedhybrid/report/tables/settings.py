"""What was run: settings in which runs differ, and configurations as they stand."""

from __future__ import annotations

from typing import Any

from fedhybrid.report.load import Runs
from fedhybrid.report.tables.base import NONE, Table

__all__ = ["configs", "differences_table"]


def differences_table(runs: Runs) -> Table | None:
    """Settings in which the runs differ; None for one run, or where all are equal."""
    flat = {label: _flatten(run.config) for label, run in runs.items()}
    keys = dict.fromkeys(key for settings in flat.values() for key in settings if not key.startswith("compare"))
    rows = []
    for key in keys:
        cells = [_shown(settings[key]) if key in settings else NONE for settings in flat.values()]
        if len(set(cells)) > 1:
            rows.append((key, *cells))
    return Table(heads=("setting", *runs), rows=tuple(rows), left=len(runs) + 1) if rows else None


def _flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def configs(runs: Runs) -> list[tuple[str, str]]:
    """Each run's label and its `config.toml` as it stands; runs without one are left out."""
    paths = {label: run.folder / "config.toml" for label, run in runs.items()}
    return [(label, path.read_text()) for label, path in paths.items() if path.is_file()]
