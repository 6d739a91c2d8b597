"""Peak against step time, one panel a model: lower and further left is better, hollow marks change the gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from fedhybrid.report.figures import LIGHT, themed
from fedhybrid.report.figures.style import new_figure

__all__ = ["draw_memory"]

ENCODED = " + encode"  # ends the names of plans that may compress
LOSSY = 1e-4  # relative gradient error; sums in another order stay below
_MARKERS = ("*", "D", "s", "^", "v", "<", ">", "P", "X", "h")


def draw_memory(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes the picture of `memory.py`'s rows."""
    shown = [row for row in rows if not row.get("needed_bytes")]
    models = list(dict.fromkeys((row["model"], row["batch"]) for row in shown))
    peers = list(dict.fromkeys(row["contestant"] for row in shown if not row["ours"]))
    with themed(LIGHT):
        figure = new_figure(2.75 * len(models) + 0.6)
        panels = figure.subplots(len(models), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (model, batch) in zip(panels, models, strict=True):
            _draw_model(axes, [r for r in shown if (r["model"], r["batch"]) == (model, batch)], peers)
            axes.set_title(f"{model}, batch {batch}")
        panels[-1].set_xlabel("peak above the resident bytes, relative to PyTorch eager (hollow: gradients differ)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
        figure.savefig(path)


def _draw_model(axes: Axes, rows: list[dict[str, Any]], peers: list[str]) -> None:
    for number, (label, suffix) in enumerate((("fedhybrid", ""), ("fedhybrid, may compress", ENCODED))):
        mine = [r for r in rows if r["ours"] and r["contestant"].endswith(ENCODED) == bool(suffix)]
        if not mine:
            continue
        ours = sorted((r["peak_share_ratio"], r["time_ratio"], r["contestant"]) for r in mine)
        colour = LIGHT.series[-number]  # the first, and the one least like it
        axes.plot(
            [x for x, _, _ in ours], [y for _, y, _ in ours], color=colour, linewidth=1.6, marker="o", markersize=5,
            markerfacecolor="none" if suffix else colour, zorder=4, label=label,
        )  # fmt: skip
        for x, y, name in ours:
            axes.annotate(
                name.removeprefix("fedhybrid ").removesuffix(suffix), (x, y), xytext=(0, 6 if number else -11),
                textcoords="offset points", ha="center", fontsize=7, color=colour,
            )  # fmt: skip
    for number, peer in enumerate(peers):
        found = next((r for r in rows if r["contestant"] == peer), None)
        colour = LIGHT.ink if peer == "eager" else LIGHT.series[1 + number % (len(LIGHT.series) - 2)]
        axes.plot(
            [] if found is None else [found["peak_share_ratio"]], [] if found is None else [found["time_ratio"]],
            linestyle="", marker=_MARKERS[number % len(_MARKERS)], markersize=9 if peer == "eager" else 6.5,
            markerfacecolor="none" if found is not None and found["gradient_error"] > LOSSY else colour,
            markeredgecolor=colour, label=peer, zorder=3,
        )  # fmt: skip
    axes.axhline(1.0, color=LIGHT.muted, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    axes.grid(axis="both")
    axes.tick_params(length=0)
    axes.set_xlim(left=0)
    axes.set_ylabel("step time / eager")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol="\u00a0%"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"\u00d7{y:.1f}"))
