"""Reading a run's folder back: one run, variants, what a killed process leaves, and what is no run at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.report_runs import EAGER_PEAK_BYTES, TIERS, write_run

from fedhybrid.errors import ConfigError
from fedhybrid.report import load_records, load_runs


def test_one_run_comes_back_whole(tmp_path: Path) -> None:
    run = load_records(write_run(tmp_path / "run", rounds=5))
    assert [r.round for r in run.rounds] == list(range(5))
    assert len(run.clients) == 5 * 8
    assert run.summary is not None
    assert run.summary.participation.keys() == TIERS.keys()
    assert sorted(run.plans) == ["p25", "p40", "p60", "p80", "smallest"]
    assert run.plans["p25"]["eager_peak_bytes"] == EAGER_PEAK_BYTES
    assert run.config["data"]["alpha"] == 0.3
    assert {task.plan for task in run.clients} - {None} <= run.plans.keys()


def test_variants_come_by_label_in_order(tmp_path: Path) -> None:
    for label in ("uniform", "exclusion", "fedhybrid"):
        write_run(tmp_path / label, rounds=2, policy=label)
    (tmp_path / "figures").mkdir()
    runs = load_runs(tmp_path)
    assert list(runs) == ["exclusion", "fedhybrid", "uniform"]
    assert [run.config["policy"] for run in runs.values()] == list(runs)


def test_variants_come_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    for label in ("a", "b", "c"):
        write_run(tmp_path / label, rounds=1)
    (tmp_path / "config.toml").write_text("[compare.variants]\nc = {}\na = {}\n")
    assert list(load_runs(tmp_path)) == ["c", "a", "b"]
    with pytest.raises(ConfigError, match="several runs"):
        load_records(tmp_path)


def test_a_run_that_has_just_begun_has_its_configuration_only(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text("rounds = 3\n")
    run = load_records(folder)
    assert (run.rounds, run.clients, run.summary, run.plans, run.config) == ((), (), None, {}, {"rounds": 3})


def test_a_single_run_is_its_own_only_variant(tmp_path: Path) -> None:
    write_run(tmp_path / "quick", rounds=1)
    assert list(load_runs(tmp_path / "quick")) == ["quick"]


def test_an_unfinished_run_has_no_summary(tmp_path: Path) -> None:
    run = load_records(write_run(tmp_path / "run", rounds=3, finished=False))
    assert run.summary is None
    assert len(run.rounds) == 3


def test_a_torn_last_line_is_skipped_but_a_torn_middle_one_is_an_error(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=3, finished=False)
    path = folder / "clients.jsonl"
    whole = len(load_records(folder).clients)
    text = path.read_text()
    path.write_text(text[:-40])
    assert len(load_records(folder).clients) == whole - 1
    path.write_text(text[:-40] + "\n" + text)
    with pytest.raises(ConfigError, match=rf"clients\.jsonl:{whole}: not a ClientRecord"):
        load_records(folder)


def test_every_unreadable_file_is_named_at_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    (folder / "summary.json").write_text("{}")
    (folder / "plans" / "p25.json").write_text("[1]")
    (folder / "plans" / "p40.json").write_text("{")
    (folder / "plans" / "p60.json").write_bytes(b"\xff")
    (folder / "rounds.jsonl").write_bytes(b"\xff\n")
    (folder / "config.toml").write_text("=")
    with pytest.raises(ConfigError) as caught:
        load_runs(folder)
    names = ("summary.json", "p25.json", "p40.json", "p60.json", "rounds.jsonl", "config.toml")
    for name in names:
        assert any(name in problem for problem in caught.value.problems), name


def test_problems_of_several_variants_are_named_at_once(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (write_run(tmp_path / label, rounds=1) / "config.toml").write_text("=")
    with pytest.raises(ConfigError) as caught:
        load_runs(tmp_path)
    assert len(caught.value.problems) == 2


def test_what_is_no_run_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    write_run(tmp_path / "variants" / "a", rounds=1)
    for name, reason in (("empty", "not the folder of a run"), ("missing", "does not exist"), ("file", "is a file")):
        for load in (load_records, load_runs):
            with pytest.raises(ConfigError, match=reason):
                load(tmp_path / name)
    with pytest.raises(ConfigError, match=r"several runs \(a\)"):
        load_records(tmp_path / "variants")
