"""Fleets of 10^3 to 10^6 devices: what selecting 1,000 costs, and a whole round of a small cohort.

    .venv/bin/python benchmarks/fleet.py [--json] [--sizes 1000,10000,100000,1000000] [--rounds 12]

Every device has its own memory budget and speed, drawn; they come and go; each holds 16 digits of its own mix of
classes. A size is measured in a process of its own, whose largest resident memory is reported with and without what the
process holds before there is a fleet. A round is one of `--cohort` clients that really train one step each; the first
two rounds are left out. Sizes are gone through `--repeats` times in turn, and medians are shown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from showing import machine, note_name, write_note

from fedhybrid.engine import Quiet, RunFolder, run_federation
from fedhybrid.engine.checkpoint import Checkpoint
from fedhybrid.engine.dispatch import choose
from fedhybrid.engine.world import assemble
from fedhybrid.experiment import build_federation, load_config
from fedhybrid.selection import POLICIES

KIB = 1024
SELECTED = 1000
_WORDS = """Medians. "ms" of a policy: choosing 1,000 of the devices that are online, after its first look at the fleet.
Memory is the largest resident size of the process: before there is a fleet, after all policies have chosen, and at the
end. A fleet's budgets and speeds are drawn, devices come and go, each holds 16 digits of its own mix of classes."""
SETTLING_ROUNDS = 2  # in which programs are compiled and pages touched


def main() -> int:
    given = _arguments()
    if given.one is not None:
        print(json.dumps(_measured(given.one, given.rounds, given.cohort)))
        return 0
    sizes = [int(size) for size in given.sizes.split(",")]
    runs: dict[int, list[dict[str, Any]]] = {size: [] for size in sizes}
    for repeat in range(given.repeats):
        for size in sizes:
            print(f"run {repeat + 1} of {given.repeats}: {size:,} devices", file=sys.stderr)
            runs[size].append(_in_own_process(size, given))
    rows = [_medians(found) for found in runs.values()]
    if given.json:
        print(json.dumps({"machine": machine(), "cohort": given.cohort, "rows": rows}, indent=2))
    else:
        print(_table(rows))
    if given.note:
        write_note(
            note_name("fleet", given.hardware),
            title="Fleets of a thousand to a million devices",
            command=f".venv/bin/python benchmarks/fleet.py --rounds {given.rounds} --repeats {given.repeats} --note",
            settings={"cohort of a round": given.cohort, "selected": SELECTED, "turns": given.repeats},
            body=_table(rows) + "\n\n" + _WORDS,
        )
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sizes", default="1000,10000,100000,1000000")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--cohort", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--note", action="store_true", help="write benchmarks/results/fleet_*.md")
    parser.add_argument("--hardware", help="name of this machine in the note's name")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _in_own_process(size: int, given: argparse.Namespace) -> dict[str, Any]:
    command = [
        sys.executable,
        __file__,
        "--one",
        str(size),
        "--rounds",
        str(given.rounds),
        "--cohort",
        str(given.cohort),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _recipe(size: int, rounds: int, cohort: int) -> dict[str, Any]:
    def budget(low: str, high: str) -> dict[str, str]:
        return {"distribution": "uniform", "low": low, "high": high}

    return {
        "method": "fedavg",
        "policy": "uniform",
        "model": "cnn",
        "model_options": {"width": 0.25},
        "dataset": "digits",
        "rounds": rounds,
        "data": {"clients": size, "partition": "drawn", "samples_per_client": 16, "alpha": 0.3},
        "fleet": {
            "clients_per_round": cohort,
            "availability": {"kind": "duty", "on_s": 8 * 3600.0, "off_s": 4 * 3600.0},
            "tiers": [
                {"name": "weak", "budget": budget("60%", "110%"), "device": "phone-low-end", "speed_spread": 0.3},
                {"name": "strong", "budget": budget("100%", "150%"), "device": "phone-flagship", "speed_spread": 0.3},
            ],
        },
        "train": {"batch_size": 16},
        "evaluation": {"every": 10_000},
    }


def _measured(size: int, rounds: int, cohort: int) -> dict[str, Any]:
    """Everything about one size, in this process."""
    torch.set_num_threads(1)
    config = load_config(_recipe(size, rounds, cohort))
    before_bytes = _largest_bytes()
    began_s = time.perf_counter()
    job = build_federation(config)
    built_s = time.perf_counter() - began_s
    select_ms: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        state = Checkpoint(
            next_round=0, now_s=0.0, wall_time_s=0.0, rounds_length_bytes=0, clients_length_bytes=0, policy={},
            server=job.method.init({}),
        )  # fmt: skip
        world = assemble(job, RunFolder(Path(folder)), state)
        for name, policy in sorted(POLICIES.items()):
            other = replace(job, policy=policy())
            seconds = []
            for selection in range(5):
                began_s = time.perf_counter()
                choose(other, world, policy().init(), SELECTED, selection)
                seconds.append(time.perf_counter() - began_s)
            select_ms[name] = 1e3 * statistics.median(seconds)
        world.driver.close()
    selected_bytes = _largest_bytes()
    ends_s: list[float] = []

    class Listener(Quiet):  # type: ignore[misc]  # notes when rounds end
        def on_round(self, label: str, record: Any) -> None:
            ends_s.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        run_federation(job, RunFolder(Path(folder)), Listener(), runtime_bytes=0)
    gaps_s = [after - before for before, after in itertools.pairwise(ends_s)][SETTLING_ROUNDS - 1 :]
    return {
        "devices": size,
        "build_s": built_s,
        "select_ms": select_ms,
        "round_ms": 1e3 * statistics.median(gaps_s),
        "runtime_bytes": before_bytes,
        "selecting_bytes": selected_bytes,
        "largest_bytes": _largest_bytes(),
    }


def _largest_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def _medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"devices": runs[0]["devices"]}
    for key in ("build_s", "round_ms", "runtime_bytes", "selecting_bytes", "largest_bytes"):
        row[key] = statistics.median(run[key] for run in runs)
    row["select_ms"] = {
        name: statistics.median(run["select_ms"][name] for run in runs) for name in runs[0]["select_ms"]
    }
    row["round_ms_range"] = [min(run["round_ms"] for run in runs), max(run["round_ms"] for run in runs)]
    return row


def _table(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]["select_ms"])
    head = ["devices", "made in s", "round ms", *(f"{name} ms" for name in names)]
    head += ["MiB before", "MiB selecting", "MiB in all"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [f"{row['devices']:,}", f"{row['build_s']:.2f}", f"{row['round_ms']:.1f}"]
        cells += [f"{row['select_ms'][name]:.2f}" for name in names]
        cells += [f"{row[key] / 2**20:.0f}" for key in ("runtime_bytes", "selecting_bytes", "largest_bytes")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
