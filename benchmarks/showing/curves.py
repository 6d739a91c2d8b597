"""Accuracy after each epoch, one panel a data set and model, a line and band (all seeds) for each codec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator, PercentFormatter

from fedhybrid.report.figures import LIGHT, themed
from fedhybrid.report.figures.style import new_figure

__all__ = ["draw_curves"]


def draw_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes the picture of `lossy_training.py`'s rows."""
    panels = list(dict.fromkeys((row["data"], row["model"]) for row in rows))
    codecs = list(dict.fromkeys(row["codec"] for row in rows))
    with themed(LIGHT):
        figure = new_figure(2.6 * -(-len(panels) // 2) + 0.7)
        grid = figure.subplots(-(-len(panels) // 2), 2, squeeze=False).ravel()
        for axes, (data, model) in zip(grid, panels, strict=False):
            for number, codec in enumerate(codecs):
                runs = [r["accuracy"] for r in rows if (r["data"], r["model"], r["codec"]) == (data, model, codec)]
                if not runs:
                    continue
                epochs = range(1, 1 + min(map(len, runs)))
                columns = [sorted(run[epoch - 1] for run in runs) for epoch in epochs]
                colour = LIGHT.series[number % len(LIGHT.series)]
                axes.plot(epochs, [sum(c) / len(c) for c in columns], color=colour, label=codec, linewidth=1.6)
                axes.fill_between(epochs, [c[0] for c in columns], [c[-1] for c in columns], color=colour, alpha=0.15)
            axes.set_title(f"{model}, {data}")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol="\u00a0%"))
            axes.grid(axis="y")
            axes.tick_params(length=0)
            axes.set_xlabel("epoch")
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        grid[0].set_ylabel("accuracy on the test images")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
        figure.savefig(path)
