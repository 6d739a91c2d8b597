"""What the plans of the headline comparison cost: as priced for the fleet's devices, as priced here, as measured here.

    .venv/bin/python benchmarks/plan_overhead.py --root DATA            # table on the terminal
    .venv/bin/python benchmarks/plan_overhead.py --root DATA --note     # and a note in results/

Virtual time takes a plan's seconds from the device profile that it was made for, so in a comparison nothing can
contradict them. Here the same plans run: for each setting and tier FedHybrid's plan as in the paper and ours, beside
the same program without a decision, one step of each in turn, in one process and one thread. Overheads are of that
program's time. `--root` is the folder that holds the data sets.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from showing import machine, note_name, overhead_table, write_note

from fedhybrid.engine import Federation, PlanBook
from fedhybrid.engine.runtime import classification_loss
from fedhybrid.executor import PreparedStep, TrainStep, prepare_step
from fedhybrid.experiment import build_federation
from fedhybrid.experiment.check import load_config, variants_of
from fedhybrid.planner import Plan

RECIPES = Path(__file__).parents[1] / "recipes/headline"
SETTINGS = ("uci-har", "fashion-mnist", "shakespeare-plays", "shakespeare-characters", "cifar10")
PLANS = {"the paper's": "paper-plans", "ours": "plus-plans"}
Row = dict[str, Any]


def main() -> int:
    given = _arguments()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for setting in given.settings:
        rows += _setting(setting, given)
        print(f"{setting}: done", file=sys.stderr, flush=True)
    table = overhead_table(rows)
    print(json.dumps({"machine": machine(), "rows": rows}, indent=1) if given.json else table)
    if given.note:
        note = write_note(
            note_name("plan-overhead", given.hardware),
            title="What plans cost: priced and measured",
            command=f"benchmarks/plan_overhead.py --root DATA --repeats {given.repeats} --note",
            settings={"settings": ", ".join(given.settings), "turns": given.repeats},
            body=table,
        )
        print(note, file=sys.stderr)
    return 0


def _setting(setting: str, given: argparse.Namespace) -> Iterator[Row]:
    """One row a tier and kind of plan; a tier that holds the whole program has none."""
    jobs = {kind: _job(setting, variant, given) for kind, variant in PLANS.items()}
    job = next(iter(jobs.values()))
    batch = job.dataset.train.batch(torch.arange(job.work.batch_size) % len(job.dataset.train))
    prepared = prepare_step(job.model, classification_loss, batch, job.optimizer)
    with tempfile.TemporaryDirectory() as place:
        books = {kind: _book(each, prepared, Path(place) / kind) for kind, each in jobs.items()}
        for tier in job.fleet.tiers:
            budget_bytes = tier.budget.resolve_bytes(
                resident_bytes=prepared.resident_bytes, eager_peak_bytes=prepared.eager_peak_bytes
            )
            names = {kind: book.choose(tier.device.name, budget_bytes) for kind, book in books.items()}
            plans = {kind: books[kind].program(tier.device.name, name) for kind, name in names.items() if name}
            if all(plan.peak_bytes >= prepared.keep_all_peak_bytes for plan in plans.values()):
                continue
            row = {"setting": setting, "tier": tier.name, "device": tier.device.name, "budget_bytes": budget_bytes}
            for kind, found in _measured(prepared, plans, given.repeats).items():
                yield {**row, "plans": kind, **found}


def _job(setting: str, variant: str, given: argparse.Namespace) -> Federation:
    config = load_config(RECIPES / f"{setting}.toml", {"data.root": str(given.root)})
    return build_federation(variants_of(config)[variant], values=False)


def _book(job: Federation, prepared: PreparedStep, folder: Path) -> PlanBook:
    """As the run's: plans are made for the device's prices, never for this machine's."""
    folder.mkdir()
    devices = {tier.device.name: tier.device for tier in job.fleet.tiers}
    return PlanBook(prepared, devices, folder, enabled=True, planning=job.planning)


def _measured(prepared: PreparedStep, plans: dict[str, Plan], repeats: int) -> dict[str, Row]:
    """Priced and measured overhead of each plan over the program without a decision."""
    steps = {"": TrainStep(prepared, prepared.keep_all())}
    steps |= {kind: TrainStep(prepared, plan) for kind, plan in plans.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    for turn in range(repeats + 1):
        for kind, step in steps.items():
            start_s = time.perf_counter()
            step.run_example()
            if turn:  # the first of each warms up
                seconds[kind].append(time.perf_counter() - start_s)
    plain_s = statistics.median(seconds[""])
    found = {}
    for kind, plan in plans.items():
        here = prepared.repriced(plan)
        found[kind] = {
            "peak_bytes": plan.peak_bytes,
            "measured_peak_bytes": steps[kind].measured_peak_bytes(),
            "device_overhead_ratio": plan.extra_time_s / (plan.step_time_s - plan.extra_time_s),
            "priced_overhead_ratio": here.extra_time_s / (here.step_time_s - here.extra_time_s),
            "measured_overhead_ratio": statistics.median(
                own / other - 1 for own, other in zip(seconds[kind], seconds[""], strict=True)
            ),
            "plain_step_s": plain_s,
        }
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--settings", type=lambda text: text.split(","), default=list(SETTINGS))
    parser.add_argument("--repeats", type=int, default=31, help="turns: steps of each that are timed")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--note", action="store_true", help="write a note into benchmarks/results/")
    parser.add_argument("--hardware", default="epyc-2core", help="names the machine in the note's file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
