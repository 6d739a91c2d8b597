"""`fedhybrid explain`: an account of a plan from its file alone; and `fedhybrid bench`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.integration.cli_runner import assert_refused, fedhybrid, fedhybrid_process

from fedhybrid.cli import bench as bench_module
from fedhybrid.planner import Plan

STEP = ("resnet20", "width=0.5", "--batch", "8", "--input", "3x16x16", "--threads", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    ran = fedhybrid("plan", *STEP, "--budget", "40%", "--actions", "recompute", "--out", folder)
    assert ran.code == 0, ran.err
    return folder


class TestExplain:
    def test_names_peak_operator_and_what_is_dropped(self, folder: Path) -> None:
        plan = Plan.from_json((folder / "plan.json").read_text())
        ran = fedhybrid("explain", folder / "plan.json")
        assert ran.code == 0, ran.err
        text = " ".join(ran.out.split())
        assert plan.peak_op in text
        assert "Every bit is eager's." in text
        largest = max(plan.decisions, key=lambda d: d.nbytes)
        assert largest.tensor in text
        assert {d.action for d in plan.decisions} <= set(text.split())

    def test_draws_memory_over_the_step(self, folder: Path) -> None:
        drawn = [line[13:] for line in fedhybrid("explain", folder / "plan.json").out.splitlines() if "█" in line]
        heights = [sum(row[column : column + 1] == "█" for row in drawn) for column in range(len(drawn[-1]))]
        plan = Plan.from_json((folder / "plan.json").read_text())
        planned = plan.timelines["planned"]
        # The lowest column is the resident bytes, the highest the peak, both to one line of twelve.
        line_bytes = max(*planned, *plan.timelines["eager"]) / 12
        assert max(heights) == pytest.approx(plan.peak_bytes / line_bytes, abs=1)
        assert min(heights) >= plan.resident_bytes // line_bytes

    def test_json_has_the_largest_first(self, folder: Path) -> None:
        ran = fedhybrid("explain", folder / "plan.json", "--json", "--top", "3")
        answer = json.loads(ran.out)
        plan = Plan.from_json((folder / "plan.json").read_text())
        sizes = [entry["nbytes"] for entry in answer["largest"]]
        assert sizes == sorted((d.nbytes for d in plan.decisions), reverse=True)[:3]
        assert sum(group["tensors"] for group in answer["actions"].values()) == len(plan.decisions)

    def test_out_holds_the_picture(self, folder: Path, tmp_path: Path) -> None:
        assert fedhybrid("explain", folder / "plan.json", "--out", tmp_path / "new").code == 0
        assert (tmp_path / "new/timeline.png").read_bytes().startswith(b"\x89PNG")

    def test_a_file_that_is_missing_or_no_plan(self, tmp_path: Path) -> None:
        assert_refused(fedhybrid("explain", tmp_path / "none.json"), "none.json: cannot be read")
        (tmp_path / "other.json").write_text("[]")
        assert_refused(fedhybrid("explain", tmp_path / "other.json"), "a plan must be a JSON object")


class TestBench:
    def test_runs_a_benchmark_with_its_options_and_gives_its_exit_code(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "benchmarks").mkdir()
        (tmp_path / "benchmarks/echo.py").write_text(
            "import json, sys\nprint(json.dumps(sys.argv[1:]))\nsys.exit(len(sys.argv) - 1)\n"
        )
        monkeypatch.setattr(bench_module, "CHECKOUT", tmp_path)
        assert fedhybrid("bench", "echo").code == 0
        assert fedhybrid("bench", "echo", "--json", "--", "--repeats", "5").code == 3

    def test_output_is_the_benchmarks_own(self, tmp_path: Path) -> None:
        ran = fedhybrid_process("bench", "memory", "--", "--help")
        assert ran.code == 0, ran.err
        assert "--exactness" in ran.out

    def test_unknown_name_offers_the_nearest(self) -> None:
        assert_refused(fedhybrid("bench", "memroy"), "Did you mean 'memory'?")

    def test_without_a_checkout_one_clear_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench_module, "CHECKOUT", tmp_path)
        monkeypatch.chdir(tmp_path)
        ran = fedhybrid("bench", "memory")
        assert_refused(ran, "there is no benchmarks/ folder")
        assert len(ran.errors) == 1
