"""The example app: its own ServerApp and ClientApp, on the in-memory grid."""

import re
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("flwr")

import torch
from flwr.app import Context, RecordDict

from fedhybrid.integrations.flower import LocalGrid

ROOT = Path(__file__).parents[2] / "examples" / "flower_app"
BUDGETS_BYTES = (8 * 2**20, int(1.3 * 2**20), 900 * 2**10)


def test_it_runs_each_client_within_its_budget(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT))
    client, server = import_module("digits_app.client_app"), import_module("digits_app.server_app")
    nodes = {node: {"partition-id": node, "num-partitions": 6} for node in range(6)}
    run_config = {"rounds": 4, "fraction-train": 1.0, "lr": 0.1}
    torch.manual_seed(0)
    grid = LocalGrid(client.app, nodes, run_config=run_config)
    server.app(grid, Context(1, 1, {}, RecordDict(), run_config))

    printed = capsys.readouterr().out
    measured = re.findall(r"round (\d+): node (\d+) (\S+): ([\d,]+) bytes measured", printed)
    assert len(measured) == 4 * 6
    for _, node, _, peak in measured:
        assert int(peak.replace(",", "")) <= BUDGETS_BYTES[int(node) % 3]
    assert len({plan for _, _, plan, _ in measured}) == 3
    assert float(re.search(r"accuracy ([\d.]+)", printed)[1]) > 0.6


def test_the_lines_of_fedhybrid_are_the_five_that_the_readme_counts():
    sources = [path.read_text() for path in sorted((ROOT / "digits_app").glob("*.py"))]
    marks = sorted(re.findall(r"# FedHybrid (\d)$", "\n".join(sources), flags=re.MULTILINE))
    assert marks == ["1", "2", "3", "4", "5"]
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 40
    assert "fedhybrid" not in (ROOT / "digits_app" / "task.py").read_text()
