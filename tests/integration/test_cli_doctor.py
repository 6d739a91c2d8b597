"""`fedhybrid doctor` finds this machine healthy, by a real step."""

from __future__ import annotations

import json
import re

import pytest
from tests.integration.cli_runner import fedhybrid, fedhybrid_process

from fedhybrid.cli import checkup


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
