"""Memory predictors on replayed traces: how often their promise is broken, and how much memory they leave unused.

    .venv/bin/python benchmarks/predictor.py [--json] [--clients 300] [--hours 4] [--window 60] [--out DIR]

Traces are random (fleet/traces.py), with users that differ and with users that are all alike, or read from `--traces
FILE` (fleet/tracefile.py). "fixed fraction, equal" is tuned with hindsight to be broken as often as running-minimum.
`--out` draws predictor.png: a calm and a busy device of the traces with what was promised.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from showing import machine

from fedhybrid.fleet import (
    PREDICTORS,
    FixedFraction,
    MemoryTraces,
    Replay,
    TraceSpec,
    equal_fraction,
    load_traces,
    make_traces,
    replay,
)
from fedhybrid.report.figures import LIGHT, themed
from fedhybrid.report.figures.style import new_figure

OURS = "running-minimum"
SHOWN_WINDOWS = 60
GIB = 2**30


def main() -> int:
    given = _arguments()
    rows, drawn = [], None
    for label, traces in _sets(given):
        replays = {name: replay(make(), traces, window_s=given.window) for name, make in sorted(PREDICTORS.items())}
        wanted = replays[OURS].scores(skip_windows=given.skip).violation_ratio
        share = equal_fraction(traces, window_s=given.window, skip_windows=given.skip, violation_ratio=wanted)
        replays[f"fixed fraction {share:.2f}, equal"] = replay(
            FixedFraction(share_ratio=share), traces, window_s=given.window
        )
        for name, found in replays.items():
            rows.append({"traces": label, "predictor": name} | asdict(found.scores(skip_windows=given.skip)))
        drawn = drawn or (traces, replays)
    if given.json:
        print(json.dumps({"machine": machine(), "window_s": given.window, "rows": rows}, indent=2))
    else:
        print(_table(rows))
    if given.out is not None and drawn is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        _draw(*drawn, given.window, given.out / "predictor.png")
        print(f"predictor.png is in {given.out}", file=sys.stderr)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument("--hours", type=float, default=4.0)
    parser.add_argument("--window", type=float, default=60.0, help="seconds of a round")
    parser.add_argument("--skip", type=int, default=20, help="first windows, in which predictors learn")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--traces", type=Path, help="a .csv or .toml file instead of random traces")
    parser.add_argument("--period", type=float, default=2.0, help="seconds between samples of that file")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _sets(given: argparse.Namespace) -> list[tuple[str, MemoryTraces]]:
    if given.traces is not None:
        return [(given.traces.name, load_traces(given.traces, period_s=given.period))]
    memory_bytes = np.full(given.clients, 4 * GIB)
    specs = {
        "users differ": TraceSpec(duration_s=3600 * given.hours),
        "users alike": TraceSpec(duration_s=3600 * given.hours, user_spread=0.0),
    }
    return [(label, make_traces(spec, memory_bytes, seed=given.seed)) for label, spec in specs.items()]


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'traces':14} {'predictor':28} {'violations':>10} {'unused':>8}"]
    lines += [
        f"{r['traces']:14} {r['predictor']:28} {r['violation_ratio']:10.1%} {r['unused_ratio']:8.1%}" for r in rows
    ]
    return "\n".join(lines)


def _draw(traces: MemoryTraces, replays: dict[str, Replay], window_s: float, path: Path) -> None:
    """The calmest and a busy device: available memory, and two predictors' promises from window to window."""
    samples = round(window_s / traces.period_s)
    total = replays[OURS].promised_bytes.shape[1]
    first = max(0, total - SHOWN_WINDOWS)
    part = slice(first * samples, total * samples)
    busy = np.argsort(traces.available_bytes[:, part].std(axis=1))
    minutes = np.arange(part.start, part.stop) * traces.period_s / 60
    edges = np.arange(first, total + 1) * window_s / 60
    with themed(LIGHT):
        figure = new_figure(5.2)
        panels = figure.subplots(2, 1, sharex=True)
        shown = {"a calm device": busy[len(busy) // 10], "a busy device": busy[len(busy) * 8 // 10]}
        for axes, (title, client) in zip(panels, shown.items(), strict=True):
            free = traces.available_bytes[client, part] / GIB
            axes.fill_between(minutes, free, color=LIGHT.track, step="post", linewidth=0)
            axes.step(minutes, free, where="post", color=LIGHT.muted, linewidth=0.9, label="available")
            for colour, name in zip(LIGHT.series, [OURS, list(replays)[-1]], strict=False):
                found = replays[name]
                promised = found.promised_bytes[client, first:] / GIB
                axes.stairs(promised, edges, baseline=None, color=colour, linewidth=1.5, label=name)
                broken = np.flatnonzero(found.promised_bytes[client, first:] > found.lowest_bytes[client, first:])
                middles = (edges[broken] + edges[broken + 1]) / 2
                axes.plot(middles, promised[broken], "x", color=colour, markersize=5)
            axes.set_title(f"{title} (crosses: promises that were broken)")
            axes.set_ylabel("GiB")
            axes.set_ylim(bottom=0)
            axes.grid(axis="y")
            axes.tick_params(length=0)
        panels[-1].set_xlabel("minutes")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
