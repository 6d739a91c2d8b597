"""The published methods on one fleet with memory limits: accuracy, time to a target, measured peaks, bytes.

    .venv/bin/python benchmarks/methods.py --root DATA --out DIR          # goes on where it was stopped
    .venv/bin/python benchmarks/methods.py --root DATA --out DIR --note   # and a note in results/

`--root` is the folder that holds FashionMNIST/ and cifar10-from-jpeg/ (or the original CIFAR-10). Each recipe of
`recipes/comparisons/` is a group whose variants share model, initial weights, data, fleet and seed: training from
scratch (`scratch`), from a convolutional network that the server has pre-trained (`pretrained`), and from a pre-trained
vision transformer (`transformer`), because not every method is for every model. "no-limit" is FedAvg on the same
devices with all the memory they want; all others keep to the tiers' budgets.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from showing import draw_methods, machine, methods_table, note_name, write_note

import fedhybrid as fh
from fedhybrid.records import COMPLETED, ClientRecord

RECIPES = Path(__file__).parents[1] / "recipes/comparisons"
GROUPS = ("scratch", "pretrained", "transformer")
FOLDERS = {"fashion-mnist": "FashionMNIST", "cifar10": "cifar10-from-jpeg"}
# Accuracies whose times are told: such that most variants of a group come there.
TARGETS = {
    "fashion-mnist": {"scratch": 0.70, "pretrained": 0.75, "transformer": 0.50},
    "cifar10": {"scratch": 0.30, "pretrained": 0.45, "transformer": 0.35},
}


def main() -> int:
    given = _arguments()
    rows: list[dict[str, Any]] = []
    for dataset in given.datasets:
        for group in given.groups:
            rows += list(_group(given, dataset, group))
            print(f"{dataset} {group}: done", file=sys.stderr, flush=True)
    table = methods_table(rows)
    print(json.dumps({"machine": machine(), "rows": rows}, indent=1) if given.json else table)
    draw_methods(rows, given.out / "methods.png")
    if given.note:
        targets = json.dumps({name: TARGETS[name] for name in given.datasets})
        recipes = ", ".join(f"recipes/comparisons/{group}.toml" for group in given.groups)
        note = write_note(
            note_name("methods", given.hardware),
            title="Methods under memory limits",
            command=f"benchmarks/methods.py --root DATA --out DIR --datasets {','.join(given.datasets)} "
            f"--seeds {given.seeds} --note",
            settings={"recipes": recipes, "targets": targets, "seeds": given.seeds},
            body=table,
        )
        draw_methods(rows, note.with_suffix(".png"))
        note.write_text(f"{note.read_text()}\n![Accuracy over virtual time]({note.with_suffix('.png').name})\n")
    return 0


def _group(given: argparse.Namespace, dataset: str, group: str) -> Iterator[dict[str, Any]]:
    """One row for each variant, over all seeds."""
    runs: dict[str, list[fh.RunResult]] = {}
    for seed in range(1, given.seeds + 1):
        overrides: dict[str, Any] = {"dataset": dataset, "data.root": str(given.root / FOLDERS[dataset]), "seed": seed}
        if given.rounds:
            overrides["rounds"] = given.rounds
        out = given.out / dataset / group / f"seed-{seed}"
        result = fh.run(RECIPES / f"{group}.toml", out=out, overrides=overrides, resume=out.exists())
        for label, run in result.variants.items():
            runs.setdefault(label, []).append(run)
    for label, of_seeds in runs.items():
        yield {"dataset": dataset, "group": group, "label": label, **_row(of_seeds, TARGETS[dataset][group])}


def _row(runs: list[fh.RunResult], target: float) -> dict[str, Any]:
    summaries = [run.summary for run in runs if run.summary is not None]
    times_s = [_time_to(run, target) for run in runs]
    tasks = [task for run in runs for task in run.clients if task.outcome == COMPLETED and task.kind == "train"]
    budget_bytes = {task.tier: task.budget_bytes for run in runs for task in run.clients}
    return {
        "method": summaries[0].method,
        "best_accuracy": [summary.best_accuracy for summary in summaries],
        "final_accuracy": [summary.final_accuracy for summary in summaries],
        "worst_tenth_accuracy": [summary.worst_tenth_accuracy for summary in summaries],
        "target": target,
        "time_to_target_s": None if None in times_s else statistics.median(t for t in times_s if t is not None),
        "virtual_time_s": statistics.median(summary.virtual_time_s for summary in summaries),
        "bytes_up": statistics.median(summary.bytes_up for summary in summaries),
        "bytes_down": statistics.median(summary.bytes_down for summary in summaries),
        "peak_bytes": {tier: _peak(tasks, tier) for tier in sorted(budget_bytes, key=budget_bytes.__getitem__)},
        "budget_bytes": budget_bytes,
        "reached": {  # by the first seed; who can take part is the same with all
            tier: [row["reached"], row["clients"]] for tier, row in summaries[0].participation.items()
        },
        "violations": sum(summary.budget_violations for summary in summaries),
        "curve": [[(r.virtual_time_s, r.accuracy) for r in run.rounds if r.accuracy is not None] for run in runs],
    }


def _time_to(run: fh.RunResult, target: float) -> float | None:
    """Virtual seconds until a tested model was that good; None where none was."""
    return next((r.virtual_time_s for r in run.rounds if r.accuracy is not None and r.accuracy >= target), None)


def _peak(tasks: list[ClientRecord], tier: str) -> int | None:
    """The largest measured peak of a tier's tasks; None where none was completed."""
    return max((t.measured_peak_bytes for t in tasks if t.tier == tier and t.measured_peak_bytes), default=None)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; what is there is not run again")
    parser.add_argument("--datasets", type=lambda text: text.split(","), default=list(FOLDERS))
    parser.add_argument("--groups", type=lambda text: text.split(","), default=list(GROUPS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=None, help="instead of the recipes' own")
    parser.add_argument("--note", action="store_true", help="write a note to benchmarks/results/")
    parser.add_argument("--hardware", default="epyc-2core", help="names the machine in the note's file")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
