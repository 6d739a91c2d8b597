"""The page: `report.html`, one file without any link to the outside, and the figures as `figures/*.png`."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedhybrid.errors import ConfigError
from fedhybrid.report import sentences, tables
from fedhybrid.report.figures import DARK, FIGURES, LIGHT, Drawing, Theme, themed
from fedhybrid.report.load import Runs, load_runs

__all__ = ["write_report"]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One figure of the page: base64 PNGs for light and dark pages, empty where there was nothing to draw."""

    name: str
    title: str
    caption: str
    light: str
    dark: str
    needs: str


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
        pictures = [_picture(name, drawing, runs, folder / "figures") for name, drawing in FIGURES.items()]
        page.write_text(_render(runs, pictures), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the report cannot be written into {folder}: {error}") from error
    return page


def _picture(name: str, drawing: Drawing, runs: Runs, folder: Path) -> Picture:
    light, dark = (_png(drawing, runs, theme) for theme in (LIGHT, DARK))
    path = folder / f"{name}.png"
    if light:
        path.write_bytes(light)
    else:
        path.unlink(missing_ok=True)  # an earlier report's figure would contradict this page
    return Picture(
        name=name,
        title=drawing.title,
        caption=drawing.caption(runs) if light else "",
        light=base64.b64encode(light).decode(),
        dark=base64.b64encode(dark).decode(),
        needs=drawing.needs,
    )


def _png(drawing: Drawing, runs: Runs, theme: Theme) -> bytes:
    with themed(theme):
        figure = drawing.draw(runs, theme)
        if figure is None:
            return b""
        out = io.BytesIO()
        figure.savefig(out, format="png")
        return out.getvalue()


def _render(runs: Runs, pictures: list[Picture]) -> str:
    environment = Environment(
        loader=PackageLoader("fedhybrid.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    context: dict[str, Any] = {
        "headline": sentences.headline(runs),
        "subject": sentences.subject(runs),
        "facts": sentences.key_facts(runs),
        "notices": sentences.notices(runs),
        "pictures": pictures,
        "summary": tables.summary_table(runs),
        "differences": tables.differences_table(runs),
        "memory": tables.memory_table(runs),
        "plans": tables.plans_table(runs),
        "failures": tables.failures_table(runs),
        "configs": tables.configs(runs),
    }
    return environment.get_template("report.html.jinja").render(context)
