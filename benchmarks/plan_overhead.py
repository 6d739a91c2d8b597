"""What the plans of the headline comparison cost: as priced for the fleet's devices, as priced here, as measured here.

    .venv/bin/python benchmarks/plan_overhead.py --root DATA            # table on the terminal
    .venv/bin/python benchmarks/plan_overhead.py --root DATA --note     # and a note in results/

Virtual time takes a plan's seconds from the device profile that it was made for, so in a comparison nothing can
contradict them. Here the same plans run: for each setting and tier those of `paper-plans`, those of `plus-plans`, and
those that our solver makes of the paper's actions. They take turns in all orders with the same program without a
decision, in one process and one thread; a turn is a task as in the runs: codecs begin anew, then as many steps as a
client makes. `--root` is the folder that holds the data sets.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from comparing import RECIPES, SETTINGS, settings_named
from showing import machine, note_name, overhead_table, write_note

from fedhybrid.engine import Federation, PlanBook
from fedhybrid.engine.plannames import is_stand_in
from fedhybrid.engine.runtime import classification_loss, one_thread
from fedhybrid.errors import ConfigError, FedHybridError
from fedhybrid.executor import PreparedStep, TrainStep, prepare_step
from fedhybrid.experiment import build_federation
from fedhybrid.experiment.build import Datasets
from fedhybrid.experiment.check import load_config, variants_of
from fedhybrid.planner import Plan

# The variant whose plans they are, and what of its recipe is another here.
PLANS: dict[str, tuple[str, dict[str, Any]]] = {
    "the paper's": ("paper-plans", {}),
    "ours": ("plus-plans", {}),
    "our solver's with the paper's actions": ("paper-plans", {"solver": "auto"}),
}
PLAIN = ""  # the program without a decision, among the plans
Row = dict[str, Any]


def main() -> int:
    given = _arguments()
    rows: list[Row] = []
    try:
        for setting in given.settings:
            rows += _setting(setting, given)
            print(f"{setting}: done", file=sys.stderr, flush=True)
    except ConfigError as error:
        print("\n".join(f"error: {problem}" for problem in error.problems), file=sys.stderr)
        return 2
    table = overhead_table(rows, list(PLANS))
    print(json.dumps({"machine": machine(), "rows": rows}, indent=1) if given.json else table)
    if given.note:
        words = [] if given.settings == list(SETTINGS) else [f"--settings {','.join(given.settings)}"]
        note = write_note(
            note_name("plan-overhead", given.hardware),
            title="What plans cost: priced and measured",
            command=" ".join(
                ["benchmarks/plan_overhead.py --root DATA", *words, f"--turns {given.turns}", "--note"],
            ),
            settings={"settings": ", ".join(given.settings), "turns": given.turns, "threads of a step": 1},
            body=table,
        )
        print(note, file=sys.stderr)
    return 0


def _setting(setting: str, given: argparse.Namespace) -> Iterator[Row]:
    """One row for each tier and kind of plan."""
    datasets: Datasets = {}
    jobs = {kind: _job(setting, *plans, given.root, datasets) for kind, plans in PLANS.items()}
    job = next(iter(jobs.values()))
    assert job.work.steps is not None
    batch = job.dataset.train.batch(torch.arange(job.work.batch_size) % len(job.dataset.train))
    with tempfile.TemporaryDirectory() as place, one_thread():
        prepared = prepare_step(job.model, classification_loss, batch, job.optimizer)
        books = {kind: _book(each, prepared, Path(place) / kind) for kind, each in jobs.items()}
        for tier in job.fleet.tiers:
            budget_bytes = tier.budget.resolve_bytes(
                resident_bytes=prepared.resident_bytes, eager_peak_bytes=prepared.eager_peak_bytes
            )
            names = {kind: book.choose(tier.device.name, budget_bytes) for kind, book in books.items()}
            plans = {kind: books[kind].program(tier.device.name, name) for kind, name in names.items() if name}
            measured = measure(prepared, plans, steps=job.work.steps, turns=given.turns)
            for kind in PLANS:
                row = {"setting": setting, "tier": tier.name, "plans": kind, "budget_bytes": budget_bytes}
                # The solver that was asked for may find nothing; then devices have one of our own.
                own = not is_stand_in(names[kind] or "")
                yield {**row, "plan": names[kind], "own": own, **measured.get(kind, {})}


def _job(setting: str, variant: str, planning: Mapping[str, Any], root: Path, datasets: Datasets) -> Federation:
    config = variants_of(load_config(RECIPES / f"{setting}.toml", {"data.root": str(root)}))[variant]
    job = build_federation(config, datasets, values=False)
    return replace(job, planning=replace(job.planning, **planning))


def _book(job: Federation, prepared: PreparedStep, folder: Path) -> PlanBook:
    """As the run's: plans are made for the device's prices, never for this machine's."""
    folder.mkdir()
    devices = {tier.device.name: tier.device for tier in job.fleet.tiers}
    return PlanBook(prepared, devices, folder, enabled=True, planning=job.planning)


def measure(prepared: PreparedStep, plans: Mapping[str, Plan], *, steps: int, turns: int) -> dict[str, Row]:
    """Priced and measured overhead of each plan over the program without a decision; nothing is left changed.

    Args:
        prepared: Priced for this machine.
        plans: Made for whatever prices.
        steps: In one turn.
        turns: That are timed; one more warms up.

    Raises:
        FedHybridError: A loss is not finite: what comes after would be no usual step.
    """
    runs = {PLAIN: TrainStep(prepared, prepared.keep_all())}
    runs |= {kind: TrainStep(prepared, plan) for kind, plan in plans.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in runs}
    orders = list(itertools.permutations(runs))
    with runs[PLAIN].preserved():
        for turn in range(turns + 1):
            for kind in orders[turn % len(orders)]:
                runs[kind].reset_codecs(turn)
                start_s = time.perf_counter()
                losses = [runs[kind].run_example() for _ in range(steps)]
                seconds[kind].append((time.perf_counter() - start_s) / steps)
                if not torch.stack(losses).isfinite().all():
                    raise FedHybridError(f"the loss is not finite in turn {turn} ({kind or 'without a plan'})")
    plain_s = seconds[PLAIN][1:]
    found = {}
    for kind, plan in plans.items():
        here = prepared.repriced(plan)
        ratios = [own / other - 1 for own, other in zip(seconds[kind][1:], plain_s, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        found[kind] = {
            "decisions": [[list(part) for part in plan.key], plan.solver],
            "solver": plan.solver,
            "peak_bytes": plan.peak_bytes,
            "measured_peak_bytes": runs[kind].measured_peak_bytes(),
            "plain_step_s": statistics.median(plain_s),
            "device_overhead_ratio": plan.extra_time_s / (plan.step_time_s - plan.extra_time_s),
            "priced_overhead_ratio": here.extra_time_s / (here.step_time_s - here.extra_time_s),
            "measured_overhead_ratio": middle,
            "measured_quartile_ratios": [low, high],
        }
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--settings", type=settings_named, default=list(SETTINGS), help=f"of {', '.join(SETTINGS)}")
    parser.add_argument("--turns", type=_turns, default=48, help="timed tasks of each plan, best a multiple of 24")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--note", action="store_true", help="write a note into benchmarks/results/")
    parser.add_argument("--hardware", default="epyc-2core", help="names the machine in the note's file")
    return parser.parse_args()


def _turns(text: str) -> int:
    if not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"needs a whole number of at least 2, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
