"""The recipes of published systems run from beginning to end on the embedded data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fedhybrid as fh
from fedhybrid.experiment import load_config

FOLDER = Path(__file__).parents[2] / "recipes/methods"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_one_round_of_every_variant(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stream = load_config(recipe).stream
    rounds = 1 if stream is None else stream.tasks  # one of each task
    fh.run(recipe, out=out, overrides={"rounds": rounds} | ({} if stream is None else {"stream.rounds_each": 1}))
    variants = [path for path in sorted(out.iterdir()) if (path / "summary.json").is_file()]
    assert len(variants) >= 2
    for variant in variants:
        summary = json.loads((variant / "summary.json").read_text())
        assert summary["rounds"] == rounds
        assert summary["budget_violations"] == 0
        tasks = [json.loads(line) for line in (variant / "clients.jsonl").read_text().splitlines()]
        assert tasks
        assert {task["outcome"] for task in tasks} <= {"completed", "late"}, variant.name
        completed = [task for task in tasks if task["outcome"] == "completed"]
        assert completed
        for task in completed:
            assert task["measured_peak_bytes"] <= task["budget_bytes"]
            if task["planned_peak_bytes"] is not None:
                assert task["measured_peak_bytes"] == task["planned_peak_bytes"]
