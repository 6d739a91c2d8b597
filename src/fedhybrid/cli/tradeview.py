"""How `fedhybrid pareto` answers: a table, a JSON object, and two files."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

from rich.table import Table

from fedhybrid.cli.output import notes, print_json, results
from fedhybrid.cli.tradeoff import Tradeoff
from fedhybrid.errors import ConfigError
from fedhybrid.report.figures import LIGHT, TradePoint, draw_tradeoff, themed
from fedhybrid.units import format_bytes, format_seconds

__all__ = ["curve_object", "show_curve"]


def show_curve(curve: Tradeoff, *, as_json: bool, out: Path | None) -> None:
    """Prints the curve, and writes pareto.csv and pareto.png where `out` says."""
    if out is not None:
        _write(curve, out)
    if as_json:
        print_json(curve_object(curve))
        return
    results().print(_table(curve))
    if curve.infeasible:
        text = f"no plan fits {', '.join(curve.infeasible)}; the row 'smallest' is as far as it goes"
        results().print(text, markup=False, highlight=False)


def curve_object(curve: Tradeoff) -> dict[str, Any]:
    """The curve as a JSON object; `points` in the order of the table."""
    return {
        "model": curve.title,
        "resident_bytes": curve.resident_bytes,
        "eager_peak_bytes": curve.eager_peak_bytes,
        "infeasible": list(curve.infeasible),
        "points": [_row(point, curve) for point in curve.points],
    }


def _row(point: TradePoint, curve: Tradeoff) -> dict[str, Any]:
    row = dataclasses.asdict(point)
    return row | {"peak_share_ratio": _share(point.peak_bytes, curve), "extra_ratio": point.extra_ratio}


def _share(peak_bytes: int, curve: Tradeoff) -> float:
    """Of eager's peak above the resident bytes."""
    return (peak_bytes - curve.resident_bytes) / (curve.eager_peak_bytes - curve.resident_bytes)


def _table(curve: Tradeoff) -> Table:
    table = Table(title=curve.title, title_justify="left", box=None, pad_edge=False)
    table.add_column("budget or peer")
    measured = any(point.time_ratio is not None for point in curve.points)
    for heading in ("peak", "of eager", "extra time", "at least", *(("measured", "time ratio") if measured else ())):
        table.add_column(heading, justify="right")
    for point in curve.points:
        cells = [point.label, format_bytes(point.peak_bytes), f"{_share(point.peak_bytes, curve):.1%}"]
        for extra_s in (point.extra_time_s, point.bound_extra_time_s):
            cells.append("" if extra_s is None else format_seconds(extra_s))
        if measured:
            cells.append("" if point.measured_peak_bytes is None else format_bytes(point.measured_peak_bytes))
            cells.append("" if point.time_ratio is None else f"{point.time_ratio:.2f}")
        table.add_row(*cells, style=None if point.kind == "plan" else "dim")
    return table


def _write(curve: Tradeoff, out: Path) -> None:
    rows = [_row(point, curve) for point in curve.points]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "pareto.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        with themed(LIGHT):
            figure = draw_tradeoff(
                curve.points,
                LIGHT,
                title=curve.title,
                resident_bytes=curve.resident_bytes,
                eager_peak_bytes=curve.eager_peak_bytes,
            )
            figure.savefig(out / "pareto.png")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error})") from error
    notes().print(f"pareto.csv and pareto.png are in {out}", markup=False, highlight=False, soft_wrap=True)
