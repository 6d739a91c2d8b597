"""From a drawing to a PNG, and from a template to a page."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from fedhybrid.report.figures import Theme, themed

__all__ = ["page_text", "png"]


def png(draw: Callable[[Theme], Figure | None], theme: Theme) -> bytes:
    """What `draw` draws with this theme; empty where that is nothing."""
    with themed(theme):
        figure = draw(theme)
        if figure is None:
            return b""
        out = io.BytesIO()
        figure.savefig(out, format="png")
        return out.getvalue()


def page_text(template: str, context: Mapping[str, Any]) -> str:
    """A template of `report/templates`, filled in; every name that it uses must be there."""
    environment = Environment(
        loader=PackageLoader("fedhybrid.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(context)
