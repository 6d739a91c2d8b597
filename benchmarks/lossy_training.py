"""Training with packed activations against training without: accuracy after each epoch, same batches, several seeds.

    .venv/bin/python benchmarks/lossy_training.py --root DATA --out DIR          # goes on where it was stopped
    .venv/bin/python benchmarks/lossy_training.py --root DATA --out DIR --note   # and a note in results/

`--root` is the folder that holds FashionMNIST/ and cifar10-from-jpeg/ (or the original CIFAR-10). Every tensor that a
codec may pack is packed, in every step. "4 bit without gates" rounds like affine-4 and does not keep on which side of
zero an activation was, the same in 2 bits: the counter-examples. DIVISION is for convolutional networks only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from showing import draw_curves, machine, note_name, training_table, write_note
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

import fedhybrid as fh
from fedhybrid.data import Split, load_dataset
from fedhybrid.engine.evaluate import Evaluator
from fedhybrid.executor import PreparedStep, TrainStep, prepare_step
from fedhybrid.models import build_model
from fedhybrid.planner import Packable, Plan
from fedhybrid.tree import tensors_of

Cell = dict[str, Any]
UNPACKED = "uncompressed"
UNGATED = {"4 bit without gates": "affine-4", "2 bit without gates": "affine-2"}
MODELS: dict[str, dict[str, Any]] = {
    "resnet20": {"width": 0.5},
    "vit": {"dim": 48, "depth": 4, "heads": 3},
}
OPTIMIZERS = {
    "resnet20": fh.SGD(lr=0.1, momentum=0.9, weight_decay=5e-4),
    "vit": fh.AdamW(lr=1e-3, weight_decay=0.05),
}
CODECS = {
    "resnet20": ("channel-mix", "division", "mesa", "affine-2", *UNGATED),
    "vit": ("channel-mix", "mesa", "4 bit without gates"),
}
BATCH = 64


class Ungated(Packable):
    """Forgets which side of a threshold an activation is on."""

    def gates(self, storage: int) -> tuple[float, float] | None:
        """None, whatever reads the storage."""
        return None


def main() -> int:
    given = _arguments()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "runs.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    known = {_key(row) for row in done}
    cells = [cell for cell in _cells(given) if _key(cell) not in known]
    for number, cell in enumerate(cells):
        start_s = time.perf_counter()
        row = cell | train(cell, given)
        done.append(row)
        with path.open("a") as out:
            out.write(json.dumps(row) + "\n")
        took = f"{row['accuracy'][-1]:.3f} in {time.perf_counter() - start_s:.0f} s"
        print(f"{number + 1}/{len(cells)} {_key(cell)}: {took}", file=sys.stderr, flush=True)
    wanted = {_key(cell) for cell in _cells(given)}
    rows = [row for row in done if _key(row) in wanted]
    table = training_table(rows, UNPACKED)
    print(json.dumps({"machine": machine(), "rows": rows}, indent=1) if given.json else table)
    draw_curves(rows, given.out / "curves.png")
    if given.note:
        note = write_note(
            note_name("lossy-training", given.hardware),
            title="Training with packed activations",
            command=f"benchmarks/lossy_training.py --root DATA --out DIR --epochs {given.epochs} --note",
            settings={"images": given.images, "epochs": given.epochs, "seeds": given.seeds, "batch": BATCH,
                      "models": json.dumps(MODELS), "optimizers": {k: str(v) for k, v in OPTIMIZERS.items()}},
            body=table,
        )  # fmt: skip
        draw_curves(rows, note.with_suffix(".png"))
        note.write_text(f"{note.read_text()}\n![Accuracy after each epoch]({note.with_suffix('.png').name})\n")
    return 0


def train(cell: Cell, given: argparse.Namespace) -> Cell:
    """Accuracy on the test images after each epoch, and what was saved in how many bytes."""
    dataset = load_dataset(cell["dataset"], _root(given.root, cell["dataset"]))
    torch.manual_seed(cell["seed"])
    model = build_model(
        cell["model"],
        input_shape=dataset.input_shape,
        classes=dataset.classes,
        seed=cell["seed"],
        options=MODELS[cell["model"]],
    )
    prepared = prepare_step(model, F.cross_entropy, dataset.train.batch(slice(0, BATCH)), OPTIMIZERS[cell["model"]])
    plan = _plan(prepared, cell["codec"])
    step = TrainStep(prepared, plan)
    step.reset_codecs(cell["seed"])
    evaluator = Evaluator(model, _first(dataset.test, given.test_images))
    order = torch.Generator().manual_seed(cell["seed"])
    steps, accuracy, losses = given.epochs * (given.images // BATCH), [], []
    for number in range(steps):
        per_epoch = given.images // BATCH
        if number % per_epoch == 0:
            shuffled = torch.randperm(given.images, generator=order)
        step.set_lr(OPTIMIZERS[cell["model"]].lr * (1 - number / steps))
        begin = number % per_epoch * BATCH
        losses.append(float(step(*dataset.train.batch(shuffled[begin : begin + BATCH]))))
        if (number + 1) % per_epoch == 0:
            model.eval()
            accuracy.append(evaluator.score(tensors_of(model)).accuracy)
            model.train()
    return {
        "data": dataset.name,
        "accuracy": accuracy,
        "loss": statistics.fmean(losses[-20:]),
        "peak_bytes": plan.peak_bytes,
        "peak_share_ratio": (plan.peak_bytes - plan.resident_bytes) / (plan.eager_peak_bytes - plan.resident_bytes),
        "packed_tensors": sum(d.action.startswith("encode:") for d in plan.decisions),
    }


def _plan(prepared: PreparedStep, codec: str) -> Plan:
    if codec == UNPACKED:
        return prepared.keep_all()
    if codec in UNGATED:
        prepared.__dict__["packable"] = Ungated(prepared.graph)
        return prepared.packed_whole(UNGATED[codec])
    return prepared.packed_whole(codec)


def _first(split: Split, count: int) -> Split:
    return replace(split, images=split.images[:count], labels=split.labels[:count])


def _root(root: Path, dataset: str) -> Path:
    return root / {"cifar10": "cifar10-from-jpeg", "fashion-mnist": "FashionMNIST"}[dataset]


def _cells(given: argparse.Namespace) -> Iterator[Cell]:
    for seed in range(given.seeds):
        for dataset in given.datasets:
            for model in given.models:
                for codec in (UNPACKED, *CODECS[model]):
                    if codec in given.without:
                        continue
                    yield {"dataset": dataset, "model": model, "codec": codec, "seed": seed,
                           "epochs": given.epochs, "images": given.images}  # fmt: skip


def _key(row: Cell) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("dataset", "model", "codec", "seed", "epochs", "images"))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs.jsonl and curves.png")
    parser.add_argument("--datasets", type=_words, default=["fashion-mnist", "cifar10"])
    parser.add_argument("--models", type=_words, default=list(MODELS))
    parser.add_argument("--without", type=_words, default=[], help="codecs to leave out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--test-images", type=int, default=2_000)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--note", action="store_true", help="write a note into benchmarks/results/")
    parser.add_argument("--hardware", help="name of the machine in the note's file name")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
