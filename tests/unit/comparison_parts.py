"""A comparison's folder made of written records: runs whose curves are known, and what they are compared by."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.unit.report_runs import write_run

from fedhybrid.records import RoundRecord, Summary, as_json, read_jsonl, read_record

VERSIONS = {"fedhybrid": "0.1.0", "torch": "2.13.0", "python": "3.11.7"}


def write_curve(folder: Path, curve: Sequence[tuple[float, float]], **options: Any) -> Path:
    """A run that is tested at these (virtual seconds, accuracy)."""
    write_run(folder, rounds=len(curve), **options)
    rounds = read_jsonl(RoundRecord, folder / "rounds.jsonl")
    changed = [
        dataclasses.replace(record, virtual_time_s=time_s, accuracy=accuracy)
        for record, (time_s, accuracy) in zip(rounds, curve, strict=True)
    ]
    (folder / "rounds.jsonl").write_text("".join(as_json(record) + "\n" for record in changed))
    if (folder / "summary.json").is_file():
        summary = dataclasses.replace(
            read_record(Summary, folder / "summary.json"),
            final_accuracy=curve[-1][1],
            best_accuracy=max(accuracy for _, accuracy in curve),
            virtual_time_s=curve[-1][0],
        )
        (folder / "summary.json").write_text(as_json(summary))
    return folder


def describe(
    folder: Path,
    cells: Mapping[str, Sequence[str]],
    *,
    seeds: Sequence[int] = (1, 2),
    targets: Sequence[float] = (0.5, 0.8),
    reference: str | None = None,
    oracle: str | None = None,
    apart: Sequence[str] = (),
    effects: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Writes comparison.json: cells by label, each with its variants."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "form": 1,
        "versions": VERSIONS,
        "seeds": len(seeds),
        "cells": [
            {
                "label": label,
                "folder": label.replace(", ", "-").replace(" ", "-"),
                "recipe": label.partition(",")[0],
                "settings": {},
                "seeds": list(seeds),
                "targets": list(targets),
                "reference": reference,
                "oracle": oracle,
                **({"apart": list(apart)} if apart else {}),
                **({} if effects is None else {"effects": {label: list(pair) for label, pair in effects.items()}}),
                "variants": {variant: {} for variant in variants},
            }
            for label, variants in cells.items()
        ],
    }
    (folder / "comparison.json").write_text(json.dumps(content))
    return folder


def place(folder: Path, cell: str, seed: int, variant: str) -> Path:
    """Where a run lies."""
    return folder / "runs" / cell.replace(", ", "-").replace(" ", "-") / f"seed-{seed}" / variant
