"""Peak and step time of a training step: planned, eager, and what people use today; 32x32 images, SGD with momentum.

    .venv/bin/python benchmarks/memory.py                                   # table on the terminal
    .venv/bin/python benchmarks/memory.py --out DIR --note                  # memory.json, .md, .png; a note in results/
    .venv/bin/python benchmarks/memory.py --max-gradient-error 0.04         # and plans that may also compress
    .venv/bin/python benchmarks/memory.py --exactness --batch 1,8,32        # prediction = measurement, model by model

Everything runs in one process with the same allocator settings, one step of each in turn; times are medians. The peak
is that of the allocator's events of one step, plus what was resident before it, for everybody. With --exactness exit
code 1 means that a measured peak differs from the planned one by more than 0.1 % and 1 KiB, or is above its budget.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import itertools
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peers import LR, MOMENTUM, PEERS
from showing import draw_memory, exactness_table, machine, memory_table, note_name, write_note
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

import fedhybrid as fh
from fedhybrid.errors import InfeasibleBudgetError
from fedhybrid.executor import LOSS_FREE, PreparedStep, TrainStep, prepare_step
from fedhybrid.graph import allocator_events, peak_of
from fedhybrid.models import build_model

Row = dict[str, Any]
# mallopt's (parameter, value) pairs. "high": blocks stay in the heap, no page faults; "low": each is a mapping.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MALLOC = {
    "default": (),
    "high": ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1)),
    "low": ((M_MMAP_THRESHOLD, 65536),),
}


def main() -> int:
    given = _arguments()
    for parameter, value in MALLOC[given.malloc]:
        assert ctypes.CDLL(None).mallopt(parameter, value) == 1
    torch.set_num_threads(given.threads)
    measure = exactness if given.exactness else compare
    rows: list[Row] = []
    for model in given.models:
        for batch in given.batch:
            rows += measure(model, batch, given)
            print(f"{model}, batch {batch}: done", file=sys.stderr)
    table = exactness_table(rows) if given.exactness else memory_table(rows)
    theme = "exactness" if given.exactness else "lossy" if given.max_gradient_error else "memory"
    print(json.dumps({"machine": machine(), "rows": rows}, indent=1) if given.json else table)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / f"{theme}.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
        (given.out / f"{theme}.md").write_text(table + "\n")
        if not given.exactness:
            draw_memory(rows, given.out / f"{theme}.png")
    if given.note:
        _note(given, theme, rows, table)
    return 1 if given.exactness and not all(map(_holds, rows)) else 0


def compare(name: str, batch: int, given: argparse.Namespace) -> list[Row]:
    """One row for each plan and each peer."""
    model, data = _subject(name, batch, given)
    prepared = _prepared(copy.deepcopy(model), data)
    resident_bytes, above_bytes = prepared.resident_bytes, prepared.eager_peak_bytes - prepared.resident_bytes
    rows, runs = [], {}
    expected: list[Tensor] | None = None
    for contestant, ours, net, run, facts in _contestants(prepared, model, data, given):
        row = {"model": name, "batch": batch, "contestant": contestant, "ours": ours, **facts}
        rows.append(row)
        if run is None:
            continue
        update = _first_update(net, run)
        expected = update if expected is None else expected  # eager is the first
        row["gradient_error"] = _distance(update, expected)
        row["gradient_cosine"] = _cosine(update, expected)
        run()
        row["peak_bytes"] = resident_bytes + _allocated_peak(run)
        row["peak_share_ratio"] = (row["peak_bytes"] - resident_bytes) / above_bytes
        runs[contestant] = run
    seconds: dict[str, list[float]] = {contestant: [] for contestant in runs}
    for _ in range(given.repeats):
        for contestant, run in runs.items():
            start_s = time.perf_counter()
            run()
            seconds[contestant].append(time.perf_counter() - start_s)
    eager_s = statistics.median(seconds["eager"])
    for row in rows:
        if row["contestant"] in seconds:
            row["step_time_s"] = statistics.median(seconds[row["contestant"]])
            row["time_ratio"] = row["step_time_s"] / eager_s
    return rows


def _contestants(
    prepared: PreparedStep, model: nn.Module, data: tuple[Tensor, Tensor], given: argparse.Namespace
) -> Iterator[tuple[str, bool, nn.Module, Callable[[], Tensor] | None, Row]]:
    """Name, whether it is ours, the model that it trains, its step (None where no plan fits), and facts for its row."""
    for peer in ("eager", *(name for name in PEERS if name != "eager" and name not in given.without)):
        net = copy.deepcopy(model)
        made = PEERS[peer](net, data)
        yield peer, False, net, made.run, {"note": made.note}
    kinds: list[tuple[str, dict[str, Any]]] = [("", {})]
    if given.max_gradient_error:
        lossy = (*LOSS_FREE, "encode")
        kinds.append((" + encode", {"actions": lossy, "max_gradient_error": given.max_gradient_error}))
    for budget, (kind, options) in itertools.product(given.budgets, kinds):
        with torch.no_grad():  # all plans are made for and train the captured model: each starts from the same weights
            for mine, start in zip(_tensors(prepared.model), _tensors(model), strict=True):
                mine.copy_(start)
        try:
            plan = prepared.plan(budget, time_limit_s=given.time_limit, **options)
        except InfeasibleBudgetError as error:
            yield f"fedhybrid {budget}{kind}", True, model, None, {"needed_bytes": error.needed_bytes}
            continue
        step = TrainStep(prepared, plan)
        facts = {
            "note": f"{plan.solver}, planned",
            "planned_peak_bytes": plan.peak_bytes,
            "extra_time_s": plan.extra_time_s,
            "predicted_error": plan.gradient_error,
        }
        yield f"fedhybrid {budget}{kind}", True, prepared.model, step.run_example, facts


def exactness(name: str, batch: int, given: argparse.Namespace) -> list[Row]:
    """One row for each budget: planned and measured peak, and for the eager step the same difference."""
    model, data = _subject(name, batch, given)
    prepared = _prepared(model, data)
    eager = PEERS["eager"](copy.deepcopy(model), data).run
    eager()
    eager_difference = prepared.resident_bytes + _allocated_peak(eager) - prepared.eager_peak_bytes
    rows = []
    for budget in given.budgets:
        row: Row = {"model": name, "batch": batch, "budget": budget, "eager_difference_bytes": eager_difference}
        rows.append(row)
        try:
            plan = prepared.plan(budget, time_limit_s=given.time_limit)
        except InfeasibleBudgetError as error:
            row |= {"budget_bytes": error.budget_bytes, "needed_bytes": error.needed_bytes}
            continue
        measured_bytes = TrainStep(prepared, plan).measured_peak_bytes()
        row |= {
            "budget_bytes": plan.budget_bytes,
            "planned_bytes": plan.peak_bytes,
            "measured_bytes": measured_bytes,
            "difference_bytes": measured_bytes - plan.peak_bytes,
        }
    return rows


def _holds(row: Row) -> bool:
    if row.get("needed_bytes"):
        return bool(row["needed_bytes"] > row["budget_bytes"])
    close = abs(row["difference_bytes"]) <= max(1024, 0.001 * row["measured_bytes"])
    return bool(close and row["measured_bytes"] <= row["budget_bytes"])


def _subject(name: str, batch: int, given: argparse.Namespace) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    side = given.side
    data = torch.randn(batch, 3, side, side, generator=draw), torch.randint(0, 10, (batch,), generator=draw)
    options = {"width": given.width} if name != "vit" else {}
    return build_model(name, input_shape=(3, side, side), classes=10, seed=0, options=options), data


def _prepared(model: nn.Module, data: tuple[Tensor, Tensor]) -> PreparedStep:
    return prepare_step(model, F.cross_entropy, data, fh.SGD(lr=LR, momentum=MOMENTUM))


def _allocated_peak(run: Callable[[], Tensor]) -> int:
    with allocator_events() as events:
        kept = run()
    del kept
    return peak_of(events)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _first_update(model: nn.Module, run: Callable[[], Tensor]) -> list[Tensor]:
    """What the first step adds to the parameters: with fresh momentum, the gradient times the learning rate."""
    before = [p.detach().clone() for p in model.parameters()]
    run()
    return [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]


def _distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """Relative L2 distance."""
    difference = sum(float((f - e).double().square().sum()) for f, e in zip(found, expected, strict=True))
    size = sum(float(e.double().square().sum()) for e in expected)
    return float((difference / size) ** 0.5)


def _cosine(found: list[Tensor], expected: list[Tensor]) -> float:
    dots = [
        sum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True))
        for one, other in ((found, expected), (found, found), (expected, expected))
    ]
    return dots[0] / (dots[1] * dots[2]) ** 0.5


def _note(given: argparse.Namespace, theme: str, rows: list[Row], table: str) -> None:
    name = note_name(theme, given.hardware)
    body = table
    if theme != "exactness":
        notes = dict.fromkeys(f"- {r['contestant']}: {r['note']}" for r in rows if not r["ours"])
        body = "\n".join([table, "", *notes])
    path = write_note(
        name,
        title="Prediction and measurement" if theme == "exactness" else "Peak and time of one training step",
        command=f".venv/bin/python benchmarks/memory.py {_told()}",
        settings={"malloc": given.malloc, "width": given.width, "image": f"3x{given.side}x{given.side}",
                  "repeats": given.repeats,
                  "max gradient error": given.max_gradient_error, "optimizer": f"SGD, lr {LR}, momentum {MOMENTUM}"},
        body=body,
    )  # fmt: skip
    if theme != "exactness":
        picture = path.with_suffix(".png")
        draw_memory(rows, picture)
        path.write_text(f"{path.read_text()}\n![Peak against step time]({picture.name})\n")


def _told() -> str:
    """The command line's options, without the folder of this machine that --out names."""
    words = sys.argv[1:]
    if "--out" in words:
        at = words.index("--out")
        words = words[:at] + words[at + 2 :]
    return shlex.join(words)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _budgets(text: str) -> list[str]:
    return [f"{word}%" if word.replace(".", "", 1).isdigit() else word for word in _words(text)]


def _counts(text: str) -> list[int]:
    return [int(word) for word in _words(text)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=_words, default=["resnet18", "mobilenet_v2", "vit"])
    parser.add_argument("--budgets", type=_budgets, help="bare numbers are per cent")
    parser.add_argument("--batch", type=_counts, default=[32])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--time-limit", type=float, default=None, help="seconds a solver may take; none bounds its work"
    )
    parser.add_argument(
        "--max-gradient-error", type=float, default=0.0, help="plan every budget a second time, with lossy codecs"
    )
    parser.add_argument("--width", type=float, default=1.0, help="of convolutional models")
    parser.add_argument("--side", type=int, default=32, help="of the images")
    parser.add_argument("--malloc", choices=sorted(MALLOC), default="default", help="glibc's settings, for everybody")
    parser.add_argument("--without", type=_words, default=[], help=f"peers to leave out, of: {', '.join(PEERS)}")
    parser.add_argument("--exactness", action="store_true", help="only: planned against measured peak")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--out", type=Path, help="folder for table, numbers and picture")
    parser.add_argument("--note", action="store_true", help="write a note into benchmarks/results/")
    parser.add_argument("--hardware", help="name of the machine in the note's file name")
    given = parser.parse_args()
    given.budgets = given.budgets or _budgets("100,80,60,40,30,20,10" if given.exactness else "80,60,40,20,10")
    return given


if __name__ == "__main__":
    sys.exit(main())
