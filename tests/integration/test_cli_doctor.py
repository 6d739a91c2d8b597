"""`fedhybrid doctor` finds this machine healthy, by a real step."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.integration.cli_runner import assert_refused, fedhybrid, fedhybrid_process

from fedhybrid.cli import checkup
from fedhybrid.devices import load_profile
from fedhybrid.devices.measuring import machine


def test_json_is_all_of_standard_output_and_the_step_is_real() -> None:
    ran = fedhybrid_process("doctor", "--json")
    assert ran.code == 0, ran
    answer = json.loads(ran.out)
    assert answer["ok"] is True
    found = answer["checks"]["planned = measured"]["found"]
    planned, measured, eager = (int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", found))
    assert abs(planned - measured) <= 0.01 * measured
    assert measured < eager


def test_names_what_is_wrong_and_exits_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "SUPPORTED_TORCH", ((1, 0), (1, 1)))
    ran = fedhybrid("doctor")
    assert ran.code == 1
    assert any("WRONG" in line and "torch" in line for line in ran.out.splitlines())


def test_profile_measures_this_machine_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SAMPLE_S", 0.0)  # three runs a sample suffice here
    path = tmp_path / "board.toml"
    ran = fedhybrid("doctor", "--json", "--profile", path, "--uplink-bytes-per-s", "2e6")
    assert ran.code == 0, ran
    answer = json.loads(ran.out)
    profile = load_profile(path)
    assert profile.name == answer["profile"]["name"] == "board"
    assert profile.uplink_bytes_per_s == 2e6
    assert profile.memory_bytes > 2**28
    assert profile.energy_j(1.0, 0, 0) > 0
    assert 1e8 < profile.kinds["matmul"].flops_per_s < 1e13
    assert "measuring conv" in ran.err
    assert "measured by fedhybrid doctor" in path.read_text()
    assert str(tmp_path) not in path.read_text()


def test_what_cannot_be_written_is_refused_before_measuring(tmp_path: Path) -> None:
    nowhere = tmp_path / "none" / "board.txt"
    ran = fedhybrid("doctor", "--profile", nowhere, "--threads", "0", "--watts-compute", "-1")
    assert_refused(ran, "--watts-compute must be", "--threads must be", "ends in .toml", "no such folder")
    assert_refused(fedhybrid("doctor", "--threads", "2"), "--threads goes with --profile FILE")
