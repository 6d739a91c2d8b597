"""What a device's program takes, beside Flower's stock node: memory while it waits and trains, how soon a task begins.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/device_client.py --models cnn,resnet20,mobilenet_v2 --stock

A server in this process, `fedhybrid flower join` as a process of its own, TLS and node keys between them; both are
measured from outside by /proc (Linux only). Each model: a run of long tasks, then on the same superlink, with the same
device process, a run of tasks of one step: the difference says what a step takes, the rest is what a task takes beside.

- Memory while it waits: just before each task but the first, 0.3 s after the reply to the last; and at the end.
- Memory while it trains: the kernel's own peak (VmHWM, reset before each task), receiving and sending included, less
  what it held while it waited, less what the plan adds to what is resident.
- To the first step: from the message, complete in the process, to the call of the generated program; the process says
  it itself with each reply. The first task is left out.
- The stock node (`flower-supernode`, its superexec, an app process for each message) trains the same model by
  `torch.optim` with an ordinary app; seconds from its app process' start to the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from devices.ours import measure_join
from devices.stock import measure_supernode
from showing import machine, note_name, write_note

MIB = 2**20
BATCH = 16
# Budget of each model's device, and steps of its tasks. The small CNN has nothing to recompute at this size.
MODELS = {"cnn": ("100%", 16), "resnet20": ("60%", 8), "mobilenet_v2": ("60%", 2)}


def main() -> int:
    given = _arguments()
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped, too
    environment = dict(pair.partition("=")[::2] for pair in given.env)
    ours, stock = [], []
    for model in given.models:
        budget, steps = MODELS[model]
        with tempfile.TemporaryDirectory(prefix="device-") as folder:
            ours.append(
                measure_join(
                    Path(folder), model, tasks=given.tasks, steps=steps, batch=BATCH, budget=budget,
                    environment=environment,
                )
            )  # fmt: skip
        if given.stock:
            with tempfile.TemporaryDirectory(prefix="device-") as folder:
                stock.append(measure_supernode(Path(folder), model, tasks=given.stock, steps=steps, batch=BATCH))
    load = f"{os.getloadavg()[0]:.1f}"
    body = _ours_table(ours) + ("\n\n" + _stock_table(stock) if stock else "")
    result = {"machine": machine(), "ours": ours, "stock": stock}
    print(json.dumps(result, indent=1) if given.json else body)
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=1))
    if given.note:
        write_note(
            note_name("device-client", given.hardware),
            title="What a device's program takes",
            command=shlex.join([".venv/bin/python", "benchmarks/device_client.py", *_words_for_note()]),
            settings={
                "data": "digits at 32 x 32, 360 of its images on the device",
                "batch": BATCH,
                "tasks": f"{given.tasks} and as many of one step; the stock node {given.stock}",
                "load average at the end": load,
            },
            body=body,
        )
    return 0


def _ours_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        ("budget, steps a task", lambda r: f"{r['budget']}, {r['steps']}"),
        ("connected, nothing joined: RSS (own) MiB", lambda r: _both(r["connected"])),
        ("waiting before the first task: RSS MiB", lambda r: _mib(r["idle_rss_bytes_before_first_task"])),
        ("**waiting after tasks: RSS (own) MiB**", lambda r: _mib(r["idle_rss_bytes"], r["idle_anon_bytes"])),
        ("the same, most", lambda r: _mib(r["idle_rss_bytes_max"], r["idle_anon_bytes_max"])),
        ("of it resident of the step (R): MiB", lambda r: _fine(r["resident_bytes"])),
        ("plan's peak: MiB", lambda r: _fine(r["plan_bytes"])),
        ("highest while training: RSS (own) MiB", lambda r: _mib(r["top_rss_bytes"], r["top_anon_bytes"])),
        ("**above waiting and plan: MiB**", lambda r: _fine(r["over_plan_bytes"])),
        ("the same in the first task", lambda r: _fine(r["over_plan_bytes_first_task"])),
        ("**message to first step: ms**", lambda r: _most(r["to_first_step_ms"], r["to_first_step_ms_max"])),
        ("the same in the first task", lambda r: f"{r['to_first_step_ms_first_task']:.1f}"),
        ("sent to answered: s", lambda r: f"{r['round_trip_s']:.2f}"),
        ("of it the task: s", lambda r: f"{r['task_s']:.2f}"),
        ("CPU a task beside its steps: ms", lambda r: f"{r['cpu_s_a_task_beside_steps'] * 1000:.0f}"),
        ("CPU a step: ms", lambda r: f"{r['cpu_s_a_step'] * 1000:.0f}"),
        ("CPU while it waits: ms a second", lambda r: f"{r['idle_cpu_ratio'] * 1000:.0f}"),
        ("superlink: RSS (own) MiB", lambda r: _both(r["superlink"])),
        ("superlink, CPU while it waits: ms a second", lambda r: f"{r['superlink']['idle_cpu_ratio'] * 1000:.0f}"),
        ("superlink, CPU a task of one step: ms", lambda r: f"{r['superlink']['cpu_s_a_task'] * 1000:.0f}"),
    ]
    return _table("`fedhybrid flower join`", rows, lines)


def _stock_table(stock: list[dict[str, Any]]) -> str:
    lines = [
        ("waiting: RSS (own) MiB", lambda r: _mib(r["idle_rss_bytes"], r["idle_anon_bytes"])),
        ("of it, by process: RSS MiB", lambda r: _parts(r["idle_by_process_after_tasks"])),
        ("highest in a task: RSS (own) MiB", lambda r: _mib(r["top_rss_bytes"], r["top_anon_bytes"])),
        ("app process, highest: RSS MiB", lambda r: _mib(r["top_by_process"]["flwr-clientapp"])),
        (
            "process start to first step: ms",
            lambda r: _most(r["start_to_first_step_ms"], r["start_to_first_step_ms_max"]),
        ),
        ("CPU before the first step: ms", lambda r: f"{r['cpu_s_before_first_step'] * 1000:.0f}"),
        ("sent to answered: s", lambda r: f"{r['round_trip_s']:.1f}"),
        ("CPU a task (app process): ms", lambda r: f"{r['cpu_s_a_task'] * 1000:.0f}"),
    ]
    return _table("Flower's stock node", stock, lines)


def _table(name: str, rows: list[dict[str, Any]], lines: list[tuple[str, Any]]) -> str:
    head = f"| {name} | " + " | ".join(row["model"] for row in rows) + " |"
    rule = "| --- |" + " ---: |" * len(rows)
    return "\n".join([head, rule, *(f"| {label} | " + " | ".join(map(show, rows)) + " |" for label, show in lines)])


def _both(sizes: dict[str, Any]) -> str:
    return _mib(sizes["rss_bytes"], sizes["anon_bytes"])


def _mib(rss_bytes: float, own_bytes: float | None = None) -> str:
    return f"{rss_bytes / MIB:.0f}" + ("" if own_bytes is None else f" ({own_bytes / MIB:.0f})")


def _fine(size_bytes: float) -> str:
    return f"{size_bytes / MIB:.1f}"


def _most(middle_ms: float, most_ms: float) -> str:
    return f"{middle_ms:.1f} (most {most_ms:.1f})"


def _parts(sizes: dict[str, dict[str, float]]) -> str:
    return " + ".join(f"{size['rss_bytes'] / MIB:.0f} {name.partition('-')[2]}" for name, size in sizes.items())


def _words_for_note() -> list[str]:
    """The arguments, without the folders of this machine."""
    words, kept = iter(sys.argv[1:]), []
    for word in words:
        if word == "--out":
            next(words)
        else:
            kept.append(word)
    return kept


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=_names, default=["cnn"], help="some of: " + ",".join(MODELS))
    parser.add_argument("--tasks", type=int, default=20, help="of each length; at least 2")
    parser.add_argument(
        "--stock", type=int, nargs="?", const=4, default=0, metavar="TASKS", help="Flower's own node beside it"
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for the device's process")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--out", type=Path, help="a file for the JSON, too")
    parser.add_argument("--note", action="store_true", help="write a note into benchmarks/results/")
    parser.add_argument("--hardware", help="name of the machine in the note's file name")
    given = parser.parse_args()
    if given.tasks < 2:
        parser.error("--tasks must be at least 2: the first is left out")
    return given


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := sorted(set(names) - MODELS.keys()):
        raise argparse.ArgumentTypeError(f"no such model: {', '.join(unknown)}; known: {', '.join(MODELS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
