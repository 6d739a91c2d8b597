"""The page: `report.html`, one file without any link to the outside, and the figures as `figures/*.png`."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedhybrid.errors import ConfigError
from fedhybrid.report import sentences, tables
from fedhybrid.report.figures import DARK, FIGURES, LIGHT, Drawing
from fedhybrid.report.load import Runs, load_runs
from fedhybrid.report.rendering import page_text, png

__all__ = ["write_report"]


# What stands below a figure: the table, and under which words it is folded away ("" for not at all).
_TABLES: dict[str, tuple[tuple[Callable[[Runs], tables.Table | None], str], ...]] = {
    "accuracy": ((tables.summary_table, ""),),
    "peaks": ((tables.memory_table, "The numbers by tier"), (tables.submodels_table, "What each tier trained")),
    "fairness": ((tables.fairness_table, "The numbers by tier"),),
    "timeline": ((tables.plans_table, "All plans"),),
    "failures": ((tables.trouble_table, ""), (tables.failures_table, "Every kind of failure by tier, with a reason")),
}


@dataclass(frozen=True, kw_only=True)
class Section:
    """One figure with what stands below it: base64 PNGs for light and dark pages, empty where nothing was drawn."""

    name: str
    title: str
    caption: str
    light: str
    dark: str
    needs: str
    tables: tuple[tuple[tables.Table, str], ...]

    @property
    def says_something(self) -> bool:
        """Whether there is anything to show, or something missing that the reader expects."""
        return bool(self.light or self.needs or self.tables)


def write_report(folder: Path | str) -> Path:
    """Draws the figures and writes the page for a run's folder; for a folder of variants, also in each variant's.

    Returns:
        The path of the folder's own `report.html`.

    Raises:
        ConfigError: Neither a run nor variants lie there, some file cannot be read, or the report cannot be written.
    """
    folder = Path(folder)
    runs = load_runs(folder)
    for label, run in runs.items():
        if run.folder != folder:
            _write_page(run.folder, {label: run})
    return _write_page(folder, runs)


def _write_page(folder: Path, runs: Runs) -> Path:
    page = folder / "report.html"
    try:
        (folder / "figures").mkdir(exist_ok=True)
        sections = [_section(name, drawing, runs, folder / "figures") for name, drawing in FIGURES.items()]
        page.write_text(_render(runs, [s for s in sections if s.says_something]), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the report cannot be written into {folder}: {error}") from error
    return page


def _section(name: str, drawing: Drawing, runs: Runs, folder: Path) -> Section:
    light, dark = (png(partial(drawing.draw, runs), theme) for theme in (LIGHT, DARK))
    path = folder / f"{name}.png"
    if light:
        path.write_bytes(light)
    else:
        path.unlink(missing_ok=True)  # an earlier report's figure would contradict this page
    below = ((make(runs), fold) for make, fold in _TABLES.get(name, ()))
    return Section(
        name=name,
        title=drawing.title,
        caption=drawing.caption(runs) if light else "",
        light=base64.b64encode(light).decode(),
        dark=base64.b64encode(dark).decode(),
        needs=drawing.needs,
        tables=tuple((table, fold) for table, fold in below if table),
    )


def _render(runs: Runs, sections: list[Section]) -> str:
    context: dict[str, Any] = {
        "headline": sentences.headline(runs),
        "subject": sentences.subject(runs),
        "facts": sentences.key_facts(runs),
        "notices": sentences.notices(runs),
        "sections": sections,
        "differences": tables.differences_table(runs),
        "configs": tables.configs(runs),
    }
    return page_text("report.html.jinja", context)
