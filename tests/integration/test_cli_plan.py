"""`fedhybrid plan`: the answer's form, and every way to be refused."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from tests.integration.cli_runner import Ran, assert_refused, fedhybrid, fedhybrid_process

SMALL = ("cnn", "--batch", "4", "--input", "1x16x16", "--threads", "1")
ALWAYS = {
    "resident_bytes",
    "eager_peak_bytes",
    "budget_bytes",
    "peak_bytes",
    "extra_time_s",
    "bound_extra_time_s",
    "gradient_error",
}
WITH_MEASURE = {"measured_peak_bytes", "step_time_s", "eager_step_time_s", "time_ratio", "bit_identical"}


def plan(*more: str | Path) -> Ran:
    return fedhybrid("plan", *SMALL, *more)


class TestAnswer:
    def test_json_is_all_of_standard_output(self) -> None:
        ran = fedhybrid_process("plan", *SMALL, "--budget", "100%", "--measure", "--json")
        assert ran.code == 0, ran.err
        answer = json.loads(ran.out)
        assert answer.keys() >= ALWAYS | WITH_MEASURE
        assert ran.err == ""  # no terminal: no progress either

    def test_measured_is_predicted(self) -> None:
        answer = json.loads(plan("--budget", "100%", "--measure", "--json").out)
        assert answer["measured_peak_bytes"] <= answer["budget_bytes"]
        assert abs(answer["peak_bytes"] - answer["measured_peak_bytes"]) <= 0.01 * answer["measured_peak_bytes"]
        assert answer["bit_identical"] is True
        assert answer["mode"] == "program"
        assert answer["time_ratio"] == pytest.approx(answer["step_time_s"] / answer["eager_step_time_s"])

    def test_without_measure_nothing_measured_is_claimed(self) -> None:
        answer = json.loads(plan("--budget", "100%", "--json").out)
        assert answer.keys() >= ALWAYS
        assert not answer.keys() & WITH_MEASURE

    def test_percentages_count_above_resident(self) -> None:
        answer = json.loads(plan("--budget", "90%", "--json").out)
        above_bytes = answer["eager_peak_bytes"] - answer["resident_bytes"]
        assert answer["budget_bytes"] == answer["resident_bytes"] + int(0.9 * above_bytes)

    def test_bytes_are_bytes(self) -> None:
        assert json.loads(plan("--budget", "2 MiB", "--json").out)["budget_bytes"] == 2 * 2**20

    def test_table_names_what_it_shows(self) -> None:
        ran = plan("--budget", "100%", "--measure", "--optimizer", "adamw")
        for row in ("resident", "eager peak", "keep-all peak", "budget", "planned peak", "measured peak", "time ratio"):
            assert re.search(rf"^{row} ", ran.out, flags=re.MULTILINE), (row, ran.out)

    def test_model_options_reach_the_model(self) -> None:
        wide, narrow = (
            json.loads(fedhybrid("plan", "cnn", f"width={width}", *SMALL[1:], "--budget", "100%", "--json").out)
            for width in (1.0, 0.5)
        )
        assert narrow["resident_bytes"] < wide["resident_bytes"]

    def test_a_text_has_as_many_tokens_as_are_told(self) -> None:
        step = ("bert", "dim=16", "--batch", "2", "--input", "8", "--classes", "3", "--budget", "100%", "--json")
        few, many = (fedhybrid("plan", *step, *more) for more in ((), ("--tokens", "103")))
        assert few.code == many.code == 0, (few.err, many.err)
        more_bytes = json.loads(many.out)["resident_bytes"] - json.loads(few.out)["resident_bytes"]
        assert more_bytes == 100 * 16 * 4 * 2, "weights and momentum"

    def test_out_holds_plan_and_picture(self, tmp_path: Path) -> None:
        ran = plan("--budget", "100%", "--out", tmp_path / "new", "--json")
        assert ran.code == 0, ran.err
        assert json.loads((tmp_path / "new/plan.json").read_text())["peak_bytes"] == json.loads(ran.out)["peak_bytes"]
        assert (tmp_path / "new/timeline.png").read_bytes().startswith(b"\x89PNG")

    def test_a_written_plan_can_be_taken_again(self, tmp_path: Path) -> None:
        first = json.loads(plan("--budget", "100%", "--out", tmp_path, "--json").out)
        again = plan("--plan", tmp_path / "plan.json", "--measure", "--json")
        assert again.code == 0, again.err
        assert json.loads(again.out)["fingerprint"] == first["fingerprint"]

    def test_own_model_by_module_and_factory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", sys.path.copy())
        (tmp_path / "own_nets.py").write_text(
            "from torch import nn\n"
            "def tiny(input_shape, classes, hidden=8):\n"
            "    size = input_shape[0] * input_shape[1] * input_shape[2]\n"
            "    return nn.Sequential(nn.Flatten(), nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, classes))\n"
        )
        arguments = ("plan", "own_nets:tiny", "hidden=16", *SMALL[1:], "--budget", "100%", "--json")
        ran = fedhybrid(*arguments)
        assert ran.code == 0, ran.err
        assert json.loads(ran.out)["resident_bytes"] > 4 * 16 * 256


class TestRefusal:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (("--budget", "-5 MiB"), "-5 MiB"),
            (("--budget", "0"), "positive"),
            (("--budget", "lots"), "lots"),
            ((), "--budget is missing"),
            (("--budget", "50%", "--optimizer", "sdg"), "Did you mean 'sgd'?"),
            (("--budget", "50%", "--solver", "gredy"), "unknown solver 'gredy'"),
            (("--budget", "50%", "--actions", "recomputed"), "recompute"),
            (("--budget", "50%", "--lr", "-1"), "--lr must be"),
            (("--budget", "50%", "--tokens", "0"), "--tokens must be at least 1, got 0"),
            (("--budget", "50%", "--tokens", "9"), "--tokens is for texts, whose --input is one number"),
            (("--budget", "50%", "--time-limit", "0"), "--time-limit must be"),
            (("--budget", "50%", "--plan", "no/such.json"), "no/such.json"),
        ],
    )
    def test_bad_option(self, arguments: tuple[str, ...], expected: str) -> None:
        assert_refused(plan(*arguments), expected)

    def test_unknown_model_offers_the_nearest(self) -> None:
        assert_refused(fedhybrid("plan", "resnet81", *SMALL[1:], "--budget", "50%"), "Did you mean 'resnet18'?")

    @pytest.mark.parametrize(
        ("module", "expected"),
        [
            (
                "def make(input_shape, classes, side=3):\n    raise ValueError('side must be even')\n",
                "side must be even",
            ),
            ("def make():\n    return 1 / 0\n", "ZeroDivisionError"),
            ("def make(:\n", "SyntaxError"),
            ("raise RuntimeError('needs a licence')\n", "needs a licence"),
        ],
    )
    def test_a_factory_that_fails(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, expected: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", sys.path.copy())
        name = f"failing_nets_{abs(hash(module))}"
        (tmp_path / f"{name}.py").write_text(module)
        assert_refused(fedhybrid("plan", f"{name}:make", *SMALL[1:], "--budget", "50%"), expected)

    @pytest.mark.parametrize("width", ["inf", "1e30"])
    def test_a_width_that_nothing_can_hold(self, width: str) -> None:
        assert_refused(fedhybrid("plan", "cnn", f"width={width}", *SMALL[1:], "--budget", "50%"), "width")

    def test_unknown_model_option(self) -> None:
        assert_refused(fedhybrid("plan", "cnn", "widht=2", *SMALL[1:], "--budget", "50%"), "Did you mean 'width'?")

    def test_wrong_type_is_bad_input(self) -> None:
        ran = fedhybrid("plan", "cnn", "--batch", "four", "--input", "1x16x16", "--budget", "50%")
        assert ran.code == 2
        assert "four" in ran.err

    def test_all_problems_at_once(self) -> None:
        ran = fedhybrid(
            "plan", "resnet81", "width", "--batch", "0", "--input", "3x0x32", "--budget", "-1 MiB", "--optimizer", "sdg"
        )
        assert_refused(ran, "--batch must be", "'width' is no key=value", "3x0x32", "-1 MiB", "resnet18", "'sgd'")
        assert len(ran.errors) == 6

    def test_plan_for_another_graph(self, tmp_path: Path) -> None:
        assert plan("--budget", "100%", "--out", tmp_path).code == 0
        other = ("plan", "cnn", "--batch", "8", "--input", "1x16x16", "--plan", tmp_path / "plan.json")
        assert_refused(fedhybrid(*other), "The plan was made for graph")

    def test_a_file_that_is_no_plan(self, tmp_path: Path) -> None:
        (tmp_path / "plan.json").write_text('{"peak": 3}')
        ran = plan("--plan", tmp_path / "plan.json")
        assert_refused(ran)
        assert len(ran.errors) >= 1

    def test_shape_that_the_model_refuses(self) -> None:
        assert_refused(fedhybrid("plan", "cnn", "--batch", "2", "--input", "1x2x2", "--budget", "50%"), "cnn")

    def test_shape_that_breaks_the_models_forward_pass(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "fixed_nets.py").write_text(
            "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        fitting, other = (
            fedhybrid("plan", "fixed_nets:make", "--batch", "2", "--input", shape, "--budget", "100%")
            for shape in ("1x8x8", "1x9x9")
        )
        assert fitting.code == 0, fitting.err
        assert_refused(other, "[2, 81] X [64, 10]")

    def test_a_model_that_branches_on_values(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "branching_nets.py").write_text(
            "from torch import nn\n"
            "class Branching(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.layer = nn.Linear(8, 10)\n"
            "    def forward(self, x):\n"
            "        x = x.flatten(1)\n"
            "        return self.layer(x) if x.sum() > 0 else self.layer(-x)\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        ran = fedhybrid("plan", "branching_nets:Branching", "--batch", "2", "--input", "1x1x8", "--budget", "100%")
        assert_refused(ran, "Could not capture the training step")


class TestInfeasible:
    def test_exit_3_names_the_smallest_budget_and_the_blocker(self) -> None:
        ran = plan("--budget", "1%")
        assert_refused(ran, "The smallest plan needs", code=3)
        found = re.search(r"needs ([\d,]+) bytes .* the budget is ([\d,]+) .*operator that blocks is (\S+)", ran.err)
        assert found is not None, ran.err
        needed_bytes, budget_bytes = (int(figure.replace(",", "")) for figure in found.groups()[:2])
        assert needed_bytes > budget_bytes
        # The smallest budget that is named is one that a plan fits; one byte less is not.
        assert plan("--budget", str(needed_bytes)).code == 0
        assert plan("--budget", str(needed_bytes - 1)).code == 3
