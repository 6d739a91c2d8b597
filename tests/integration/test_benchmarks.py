"""The benchmarks run, at tiny sizes, and what they print is what they claim to measure."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedhybrid.codecs import CODECS

BENCHMARK = Path(__file__).parents[2] / "benchmarks/memory.py"
FEDERATIONS = BENCHMARK.parent / "federations"
TINY = ("--models", "mobilenet_v2", "--width", "0.25", "--side", "16", "--batch", "4")


def memory(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARK), *TINY, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )


def run_json(script: Path, *arguments: str) -> dict[str, Any]:
    """What a benchmark's script prints as the last line."""
    command = [sys.executable, str(script), *arguments, "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return rows


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("memory")
    without = "torch.compile budget 0.5,torch.compile budget 0.2,torch.compile budget 0"
    rows = rows_of(memory("--budgets", "60,1", "--repeats", "1", "--without", without, "--out", folder, "--json"))
    return {row["contestant"]: row for row in rows}, folder


def test_plans_are_measured_as_planned(quick: tuple[dict[str, dict[str, Any]], Path]) -> None:
    rows, _ = quick
    row = rows["fedhybrid 60%"]
    assert row["peak_bytes"] == row["planned_peak_bytes"]
    assert row["peak_share_ratio"] <= 0.6
    assert row["gradient_error"] < 1e-5
    assert rows["fedhybrid 1%"]["needed_bytes"] > 0


def test_peers_do_what_they_are_named_for(quick: tuple[dict[str, dict[str, Any]], Path]) -> None:
    rows, _ = quick
    assert rows["eager"]["peak_share_ratio"] == 1.0
    assert rows["eager"]["time_ratio"] == 1.0
    for name in ("checkpoint per block", "checkpoint per 2 blocks", "checkpoint square root"):
        assert rows[name]["peak_bytes"] < rows["eager"]["peak_bytes"], name
        assert rows[name]["gradient_error"] < 1e-6, name
    assert rows["checkpoint per block"]["peak_bytes"] < rows["checkpoint square root"]["peak_bytes"]
    assert rows["hooks 4 bit"]["peak_bytes"] < rows["hooks 8 bit"]["peak_bytes"] < rows["eager"]["peak_bytes"]
    assert rows["hooks 4 bit"]["gradient_error"] > rows["hooks 8 bit"]["gradient_error"] > 1e-3


def test_files_are_written(quick: tuple[dict[str, dict[str, Any]], Path]) -> None:
    rows, folder = quick
    assert len(json.loads((folder / "memory.json").read_text())["rows"]) == len(rows)
    table = (folder / "memory.md").read_text().splitlines()
    assert len(table) == 2 + len(rows)
    assert len({line.count("|") for line in table}) == 1
    assert (folder / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_exactness_compares_each_model_budget_and_batch() -> None:
    done = memory("--exactness", "--budgets", "60,1", "--batch", "1,4", "--json")
    rows = rows_of(done)
    assert len(rows) == 2 * 2
    assert {row["difference_bytes"] for row in rows if "needed_bytes" not in row} == {0}
    assert {row["eager_difference_bytes"] for row in rows} == {0}


def test_the_note_says_where_the_numbers_are_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    from showing import note  # noqa: PLC0415 - the folder is on the path only here

    monkeypatch.setattr(note, "RESULTS", tmp_path)
    name = note.note_name("memory", None)
    assert re.fullmatch(r"memory_[a-z0-9-]+_20\d{4}", name)
    path = note.write_note(name, title="Peaks", command="run it", settings={"malloc": "high"}, body="| a |")
    text = path.read_text()
    for part in ("# Peaks", "run it", "- torch: ", "- threads: 1", "- malloc: high", "| a |"):
        assert part in text


@pytest.mark.slow
def test_torch_compile_budgets_differ() -> None:
    """Each ratio is compiled for itself: smaller ratios save less, and recompute without a wrong gradient."""
    rows = {row["contestant"]: row for row in rows_of(memory("--budgets", "60", "--repeats", "1", "--json"))}
    half, fifth = rows["torch.compile budget 0.5"], rows["torch.compile budget 0.2"]
    assert fifth["peak_bytes"] < half["peak_bytes"] < rows["eager"]["peak_bytes"]
    assert fifth["gradient_error"] < 1e-5


def test_every_codec_has_a_row() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fedhybrid", "bench", "codecs", "--json", "--", "--repeats", "1"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    rows = {row["name"]: row for row in rows_of(done)}
    assert {name.split(",")[0] for name in rows} == set(CODECS)
    columns = ("bits", "encode_over_clone", "decode_over_clone", "bytes_ratio", "relative_error")
    assert all(set(columns) <= set(row) for row in rows.values())
    assert rows["bits"]["relative_error"] == rows["narrow"]["relative_error"] == 0
    assert rows["affine-8"]["relative_error"] < rows["affine-4"]["relative_error"] < rows["affine-2"]["relative_error"]
    assert rows["affine-4"]["bytes_ratio"] < 0.134


def test_ours_and_the_bare_loop_do_the_same_job() -> None:
    """Cohorts, batches and initial weights are equal, so the models are, and each round's accuracy."""
    ours, bare = (run_json(FEDERATIONS / f"{name}.py", "--rounds", "2") for name in ("ours", "bare"))
    assert len(set(bare["accuracies"])) == 2
    assert ours["accuracies"] == pytest.approx(bare["accuracies"], abs=0.5 / 297)
    for result in (ours, bare):
        assert len(result["round_s"]) == result["rounds"] - 1 == 1
        assert 0 < result["round_s"][0] < result["first_round_end_s"] < result["total_s"]


def test_contenders_take_turns_and_who_is_missing_is_named(tmp_path: Path) -> None:
    engine = BENCHMARK.parent / "engine.py"
    arguments = ("--rounds", "2", "--repeats", "1", "--paired-rounds", "0", "--peers", "bare,flower")
    command = [sys.executable, str(engine), *arguments, "--env", f"flower={tmp_path / 'none'}", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "flower is left out" in done.stderr
    assert "pip install 'flwr[simulation]==1.41.*'" in done.stderr
    result = json.loads((tmp_path / "engine.json").read_text())
    (row,) = result["commands"]
    assert row["contender"] == "bare"
    assert 0 < row["start_up_s"][0] < row["command_s"][0]
    assert row["cpu_s"][0] > 0.5 * row["start_up_s"][0]
    assert done.stdout == (tmp_path / "engine.md").read_text()


def test_commands_are_compared_within_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    from federations.outcome import command_rows, command_table  # noqa: PLC0415 - the folder is on the path only here

    common = {"round_s": [0.5, 0.5], "first_round_end_s": 2.0, "cpu_s": 3.0, "accuracy": 0.9}
    runs = {
        "ours": [common | {"command_s": command_s, "cores": 1} for command_s in (2.0, 4.0)],
        "slow": [common | {"command_s": command_s, "cores": 2} for command_s in (6.0, 16.0)],
    }
    ours, slow = command_rows(runs, "ours")
    assert ours["command_over_reference"] == (1.0, 1.0, 1.0)
    assert slow["command_over_reference"] == (3.5, 3.0, 4.0)
    assert slow["start_up_s"][0] == 1.5
    assert (slow["rounds_per_s"][0], slow["rounds_per_s_and_core"][0]) == (2.0, 1.0)
    assert "| slow | 2 | 11.0 [6.0-16.0] |" in command_table([ours, slow], "ours")


@pytest.mark.slow
@pytest.mark.parametrize("job", [(), ("--empty",)])
def test_rounds_in_turn_end_with_equal_models(job: tuple[str, ...]) -> None:
    found = run_json(FEDERATIONS / "paired.py", "--rounds", "4", *job)
    ours, bare = zip(*found["accuracies"], strict=True)
    assert ours == pytest.approx(bare, abs=0.5 / 297)
    least, most = found["ratio_quartiles"]
    assert 0 < least <= found["ratio"] <= most


@pytest.mark.slow
def test_a_devices_program_stays_slim() -> None:
    pytest.importorskip("flwr")
    script = BENCHMARK.parent / "device_client.py"
    command = [sys.executable, str(script), "--models", "cnn", "--tasks", "3", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["ours"]
    assert row["idle_rss_bytes_max"] <= 330 * 2**20  # bytes, not seconds: they do not depend on the machine's load
    assert row["idle_anon_bytes_max"] < row["idle_rss_bytes_max"]
    assert row["over_plan_bytes"] <= 60 * 2**20
    assert row["to_first_step_ms"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif("FEDHYBRID_DATA" not in os.environ, reason="needs real data: set FEDHYBRID_DATA")
def test_methods_are_compared_at_equal_budgets(tmp_path: Path) -> None:
    """One round of each method from scratch: a row each, nobody above a budget."""
    arguments = ["--root", os.environ["FEDHYBRID_DATA"], "--out", str(tmp_path), "--datasets", "fashion-mnist"]
    command = [sys.executable, str(BENCHMARK.parent / "methods.py"), *arguments, "--groups", "scratch", "--rounds", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--json"], env=environment, capture_output=True, text=True, check=False, timeout=800
    )
    assert done.returncode == 0, done.stderr
    rows = {row["label"]: row for row in json.loads(done.stdout)["rows"]}
    assert {"no-limit", "exclusion", "fedhybrid", "fedel", "smartsplit", "mest"} <= rows.keys()
    for label, row in rows.items():
        assert row["violations"] == 0
        for tier, peak_bytes in row["peak_bytes"].items():
            assert peak_bytes is None or peak_bytes <= row["budget_bytes"][tier], (label, tier)
    assert (tmp_path / "methods.png").is_file()
