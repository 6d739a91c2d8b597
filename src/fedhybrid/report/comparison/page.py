"""The page of a comparison: `comparison.html`, its figures as `figures/*.png`, and its tables as text and JSON."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedhybrid.errors import ConfigError
from fedhybrid.records import COMPARISON
from fedhybrid.report import tables
from fedhybrid.report.comparison import sentences
from fedhybrid.report.comparison.effects import Effect, effects
from fedhybrid.report.comparison.figures import DRAWINGS, Drawing, Scene
from fedhybrid.report.comparison.load import Comparison, joined, load_comparison
from fedhybrid.report.comparison.measuring import measure_cell
from fedhybrid.report.comparison.overall import Overall, overall
from fedhybrid.report.comparison.table import (
    brief_table,
    cost_table,
    effects_table,
    markdown,
    outcome_table,
    overall_table,
    reach_table,
)
from fedhybrid.report.figures import DARK, LIGHT
from fedhybrid.report.rendering import page_text, png

__all__ = ["Written", "write_comparison"]


@dataclass(frozen=True, kw_only=True)
class Written:
    """Where the page and the tables lie, a short table of all cells, and what to beware of."""

    page: Path
    text: Path
    brief: tables.Table
    notices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """One figure, base64 PNGs for light and dark pages."""

    name: str
    title: str
    caption: str
    light: str
    dark: str


@dataclass(frozen=True, kw_only=True)
class _CellTables:
    """What the page shows of one cell; settings and configurations are those of its first seed."""

    label: str
    outcome: tables.Table
    reach: tables.Table
    cost: tables.Table
    differences: tables.Table | None
    configs: list[tuple[str, str]]


def write_comparison(*folders: Path | str, out: Path | str | None = None) -> Written:
    """Writes comparison.html, figures/, table.md and table.json for a comparison, finished or not, or for several.

    Args:
        folders: Of the comparisons; their cells must have different labels.
        out: Where the page goes: into the comparison's own folder, if nothing is said and there is one only.

    Raises:
        ConfigError: No comparison lies there, files of it cannot be read, nothing can be written, or `out` is missing
            or holds runs itself.
    """
    if not folders:
        raise ConfigError("there is no comparison to write a page of")
    if out is None and len(folders) != 1:
        raise ConfigError(f"one page of {len(folders)} comparisons needs a folder of its own: give --out")
    place = Path(folders[0] if out is None else out)
    own = len(folders) == 1 and place.resolve() == Path(folders[0]).resolve()
    if not own and any((place / name).exists() for name in (COMPARISON, "config.toml")):
        raise ConfigError(f"--out {place} holds runs, which have a page of their own; give another folder")
    comparison = joined([load_comparison(folder) for folder in folders], place)
    scenes = [Scene(cell=cell, result=measure_cell(cell)) for cell in comparison.cells]
    found = overall([scene.result for scene in scenes])
    apart = effects(comparison.cells)
    cells = [_cell_tables(scene) for scene in scenes if scene.result.variants]
    summary = overall_table(found, sentences.reference_words(scenes))
    beware = sentences.notices(comparison, scenes)
    page, text = comparison.folder / "comparison.html", comparison.folder / "table.md"
    try:
        figures = comparison.folder / "figures"
        figures.mkdir(parents=True, exist_ok=True)
        pictures = [_picture(name, drawing, scenes, figures) for name, drawing in DRAWINGS.items()]
        text.write_text(_text(comparison, beware, summary, apart, cells), encoding="utf-8")
        (comparison.folder / "table.json").write_text(_json(comparison, scenes, found, apart), encoding="utf-8")
        context = {
            "headline": sentences.headline(scenes, found),
            "subject": sentences.subject(comparison),
            "facts": sentences.key_facts(scenes, found),
            "notices": beware,
            "made": sentences.made(comparison),
            "overall": summary,
            "effects": effects_table(apart) if apart else None,
            "sections": [picture for picture in pictures if picture],
            "cells": cells,
        }
        page.write_text(page_text("comparison.html.jinja", context), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the page cannot be written into {comparison.folder}: {error}") from error
    return Written(page=page, text=text, brief=brief_table(found), notices=tuple(beware))


def _picture(name: str, drawing: Drawing, scenes: Sequence[Scene], folder: Path) -> _Picture | None:
    light, dark = (png(partial(drawing.draw, scenes), theme) for theme in (LIGHT, DARK))
    path = folder / f"{name}.png"
    if not light:
        path.unlink(missing_ok=True)  # an earlier page's figure would contradict this one
        return None
    path.write_bytes(light)
    encoded = [base64.b64encode(image).decode() for image in (light, dark)]
    return _Picture(name=name, title=drawing.title, caption=drawing.caption, light=encoded[0], dark=encoded[1])


def _cell_tables(scene: Scene) -> _CellTables:
    first = {label: next(iter(runs.values())) for label, runs in scene.cell.finished.items()}
    return _CellTables(
        label=scene.cell.label,
        outcome=outcome_table(scene.result),
        reach=reach_table(scene.result),
        cost=cost_table(scene.result),
        differences=tables.differences_table(first),
        configs=tables.configs(first),
    )


def _text(
    comparison: Comparison,
    beware: Sequence[str],
    summary: tables.Table,
    apart: Sequence[Effect],
    cells: Sequence[_CellTables],
) -> str:
    """The tables as markdown."""
    parts = [*(f"**{notice}**\n" for notice in beware), "## All cells together\n", markdown(summary)]
    if apart:
        parts += ["## Effects apart\n", markdown(effects_table(apart))]
    for cell in cells:
        parts += [f"## {cell.label}\n", *(markdown(table) for table in (cell.outcome, cell.reach, cell.cost))]
    return "\n".join([*parts, sentences.made(comparison), ""])


def _json(
    comparison: Comparison, scenes: Sequence[Scene], found: Mapping[str, Overall], apart: Sequence[Effect]
) -> str:
    """All numbers."""
    content = {
        "versions": dict(comparison.versions),
        "missing_runs": sum(sum(scene.cell.missing.values()) for scene in scenes),
        "overall": {label: dataclasses.asdict(each) for label, each in found.items()},
        "effects": [dataclasses.asdict(each) for each in apart],
        "cells": [dataclasses.asdict(scene.result) for scene in scenes],
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"
