"""The page: one file that needs nothing else, says the numbers of the records, and shows what went wrong."""

from __future__ import annotations

import base64
import dataclasses
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest
from tests.unit.report_merges import write_merges
from tests.unit.report_runs import write_run

from fedhybrid.errors import ConfigError
from fedhybrid.records import ClientRecord, append_jsonl, as_json, read_jsonl
from fedhybrid.report import load_records, write_report
from fedhybrid.report.figures import FIGURES, LIGHT
from fedhybrid.report.load import load_runs
from fedhybrid.report.sentences import headline, key_facts, notices
from fedhybrid.report.tables import summary_table

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Collects what a page refers to, its text, and whether its tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in {"meta", "source", "img"}:
            self.open.append(tag)
        self.references += [value or "" for name, value in attrs if name in {"src", "srcset", "href", "action", "data"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data.replace("\u00a0", " "))

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("variants")
    write_run(folder / "exclusion", policy="exclusion", best_ratio=0.8)
    write_run(folder / "fedhybrid", failing=0.1)
    return folder


@pytest.fixture(scope="module")
def page(variants: Path) -> Page:
    return Page(write_report(variants).read_text())


def test_the_page_lies_above_the_variants_with_its_figures(variants: Path, page: Page) -> None:
    assert (variants / "report.html").is_file()
    found = sorted(path.name for path in (variants / "figures").iterdir())
    figures = ("accuracy", "cohorts", "failures", "fairness", "participation", "peaks", "timeline")
    assert found == [f"{name}.png" for name in figures]
    assert all((variants / "figures" / name).read_bytes().startswith(PNG_SIGNATURE) for name in found)
    assert page.open == []


@pytest.mark.parametrize("label", ["exclusion", "fedhybrid"])
def test_each_variant_has_a_page_of_its_own(variants: Path, page: Page, label: str) -> None:
    own = Page((variants / label / "report.html").read_text())
    assert own.open == []
    assert label in own.text
    assert not any(f"{other} reached" in own.text for other in {"exclusion", "fedhybrid"} - {label})
    shown = [base64.b64decode(r.partition(",")[2]) for r in own.references]
    drawn = sorted((variants / label / "figures").glob("*.png"))
    assert len(drawn) == len(shown) / 2 >= 4
    assert all(path.read_bytes() in shown for path in drawn)
    alone = (variants / label / "report.html").read_bytes()
    write_report(variants / label)
    assert (variants / label / "report.html").read_bytes() == alone


def test_the_page_needs_nothing_else(variants: Path, page: Page) -> None:
    assert len(page.references) == 14  # seven figures, light and dark
    for reference in page.references:
        kind, _, data = reference.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(PNG_SIGNATURE)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    html = (variants / "report.html").read_text()
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html
    assert "@import" not in html
    shown = [base64.b64decode(r.partition(",")[2]) for r in page.references]
    assert (variants / "figures" / "accuracy.png").read_bytes() in shown


def test_the_page_says_the_numbers_of_the_records(variants: Path, page: Page) -> None:
    for label in ("fedhybrid", "exclusion"):
        summary = load_records(variants / label).summary
        assert summary is not None
        assert f"{100 * summary.final_accuracy:.1f} %" in page.text
        reached = sum(tier["reached"] for tier in summary.participation.values())
        assert f"with {reached} of 30 devices" in page.text
    measured = sum(t.measured_peak_bytes is not None for r in load_runs(variants).values() for t in r.clients)
    assert f"over budget 0 of {measured} tasks whose measured peak" in page.text
    assert "planned 29.96 MiB, measured 29.94 MiB" in page.text
    assert "policy exclusion fedhybrid" in page.text  # the settings that differ
    assert 'partition = "dirichlet"' in page.text  # the whole configuration


def test_failed_tasks_are_listed_with_their_reason(variants: Path, page: Page) -> None:
    failed = [t for t in load_records(variants / "fedhybrid").clients if t.outcome != "completed" and t.tier == "25%"]
    devices = len({t.client for t in failed})
    row = f"fedhybrid 25% out of memory another application took 12 MiB {len(failed)} {devices} {failed[0].round}"
    assert row in page.text


def test_the_same_records_give_the_same_page_and_matplotlib_is_left_as_it_was(variants: Path, page: Page) -> None:
    folder = variants / "fedhybrid"
    first = (folder / "report.html").read_bytes()
    before = dict(matplotlib.rcParams)
    assert write_report(folder).read_bytes() == first
    assert dict(matplotlib.rcParams) == before


def test_an_unfinished_run_is_drawn_and_says_so(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path / "run", rounds=4, finished=False, failing=0.0)).read_text())
    assert "run is unfinished: 4 of 4 rounds are done." in page.text
    assert "run is at" in page.text
    assert len(page.references) == 10  # whom the model serves is known at the end only
    for title in ("Whom training reached", "Tasks under way", "Staleness", "Failures"):
        assert title not in page.text  # a section with nothing to say is left out


def test_an_asynchronous_run_shows_its_schedule_staleness_and_failures(tmp_path: Path) -> None:
    folder = write_merges(tmp_path / "run", failing=0.3)
    page = Page(write_report(folder).read_text())
    run = load_records(folder)
    assert run.summary is not None
    failed = sum(run.summary.failures.values())
    for shown in (
        "Tasks under way", "Staleness of updates", "Schedule semi-asynchronous", "Rounds or aggregations 30",
        f"Mean staleness (aggregations) {run.summary.staleness_mean:.2f}",
        f"Tasks that failed {failed} of {len(run.clients)}", f"crash {run.summary.failures['crash']} ",
        f"Steps for which a device had too little memory {run.summary.violations}",
        f"Moves along the ladder of plans {sum(task.switches for task in run.clients)}",
        "run worst tenth of all", "Accuracy for the worst tenth of devices 55.0 %",
    ):  # fmt: skip
        assert shown in page.text, shown
    assert "Energy" not in page.text  # no device's profile has figures


def test_energy_and_traffic_are_told_where_they_are_known(tmp_path: Path) -> None:
    runs = load_runs(write_run(tmp_path / "run", rounds=5, failing=0.0, finished=False))
    rows = {name: cell.replace("\u00a0", " ") for name, cell in summary_table(runs).rows}
    assert rows["Energy of all devices, above idle"] == "4.8 kJ (1.33 Wh)"  # 5 rounds of 8 tasks of 120 J
    assert rows["Sent by devices"] == rows["Sent to devices"] == "114.4 MiB"


def test_records_of_earlier_versions_are_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=4)
    kept = {"rounds.jsonl": 11, "clients.jsonl": 14, "summary.json": 20}  # fields, the first of today's
    for name, fields in kept.items():
        lines = (folder / name).read_text().splitlines()
        old = [json.dumps(dict(list(json.loads(line).items())[:fields])) for line in lines]
        (folder / name).write_text("".join(line + "\n" for line in old))
    run = load_records(folder)
    assert run.summary is not None
    assert (run.summary.schedule, run.summary.accuracy_by_tier, run.clients[0].kind) == ("rounds", {}, "train")
    page = Page(write_report(folder).read_text())
    assert "Whom training reached" not in page.text
    assert "Energy" not in page.text
    assert f"{100 * run.summary.final_accuracy:.1f} %" in page.text


def test_a_run_that_has_not_been_tested_yet_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=2, tested_every=2, finished=False)
    lines = (folder / "rounds.jsonl").read_text().splitlines(keepends=True)
    (folder / "rounds.jsonl").write_text(lines[0])
    runs = load_runs(folder)
    assert headline(runs) == "run has not been tested yet."
    assert FIGURES["accuracy"].draw(runs, LIGHT) is None
    assert "Best test accuracy" not in {row[0] for row in summary_table(runs).rows}


def test_text_from_the_records_is_never_markup(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    task = load_records(folder).clients[0]
    hostile = dataclasses.replace(task, outcome="crash", detail='<script>alert("x")</script>', tier="<b>$x_1$</b>")
    append_jsonl(folder / "clients.jsonl", [hostile])
    page = Page(write_report(folder).read_text())
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert '<script>alert("x")</script>' in page.text


def test_an_earlier_figure_does_not_outlive_its_records(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    write_report(folder)
    assert (folder / "figures" / "timeline.png").is_file()
    for plan in (folder / "plans").iterdir():
        plan.unlink()
    page = Page(write_report(folder).read_text())
    assert not (folder / "figures" / "timeline.png").exists()
    assert "this figure needs a plan with its timelines" in page.text


def test_contradicting_records_are_pointed_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=2, over_budget=True)
    summary = load_records(folder).summary
    assert summary is not None
    assert summary.budget_violations == 1
    assert notices(load_runs(folder)) == ["run: 1 tasks measured a peak above their device's budget."]
    (folder / "summary.json").write_text(as_json(dataclasses.replace(summary, budget_violations=0)))
    assert "summary.json says 0 budget violations" in notices(load_runs(folder))[0]
    assert key_facts(load_runs(folder))[0].value.startswith("1 of ")


def test_plans_that_stand_in_are_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=2)
    tasks = read_jsonl(ClientRecord, folder / "clients.jsonl")
    planned = [task for task in tasks if task.plan is not None]
    first, other = sorted({task.tier for task in planned})[:2]
    names = {first: "laptop-3MiB-auto", other: "laptop-5MiB"}
    stood_in = [dataclasses.replace(task, plan=task.plan and names.get(task.tier, task.plan)) for task in tasks]
    (folder / "clients.jsonl").write_text("".join(as_json(task) + "\n" for task in stood_in))
    assert notices(load_runs(folder)) == [], "the planner chose for itself"
    with (folder / "config.toml").open("a") as file:
        file.write('\n[planner]\nsolver = "greedy-mps"\n')
    (notice,) = notices(load_runs(folder))
    assert notice.startswith(f"run: greedy-mps found no plan within the budget of {first}; plans of the solver")


def test_a_fleet_without_a_fitting_device_is_explained(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=2, policy="exclusion", tiers={"25%": 0.25, "40%": 0.4})
    (notice,) = notices(load_runs(folder))
    assert notice.replace("\u00a0", " ") == (
        "run: no device took part, as no budget holds a training step (the largest budget is 44.40 MiB; PyTorch's own "
        "step needs 102.00 MiB), so the model is as it was before training."
    )


def test_promises_that_are_too_small_are_explained(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=2, policy="exclusion", tiers={"25%": 0.25, "90%": 0.9}, memory=True)
    (notice,) = notices(load_runs(folder))
    assert notice.replace("\u00a0", " ").startswith(
        "run: no device took part, as no device promised enough memory for a training step (the largest budget is "
        "92.40 MiB, of which other apps take a part; PyTorch's own step needs 102.00 MiB), so"
    )
    (task, *_) = load_records(write_run(tmp_path / "other", rounds=1)).clients
    refused = dataclasses.replace(
        task, outcome="out_of_memory", steps=0, budget_bytes=3 * 2**20, detail="", measured_peak_bytes=None
    )
    tests = dataclasses.replace(refused, kind="evaluate", budget_bytes=2**20)
    for tasks, expected in (
        ([refused, tests], "; devices promise what other apps leave of their budgets, 3.00 MiB at most), so the model"),
        ([tests], "no device promised enough memory for a training step (the largest promise was 1.00 MiB; PyTorch's"),
    ):  # fmt: skip
        (folder / "clients.jsonl").unlink(missing_ok=True)
        append_jsonl(folder / "clients.jsonl", tasks)
        assert expected in notices(load_runs(folder))[-1].replace("\u00a0", " ")


def test_tasks_that_all_failed_are_explained(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=2, failing=1.0)
    (notice,) = notices(load_runs(folder))
    assert notice.startswith("run: all 16 tasks failed (16 out of memory; the first: another application took 12 MiB)")


def test_headline_of_many_runs_names_the_best_and_the_spread(tmp_path: Path) -> None:
    for i in range(5):
        write_run(tmp_path / f"v{i}", rounds=25, best_ratio=0.9 - 0.1 * i)
    text = headline(load_runs(tmp_path))
    assert text.startswith("v0 reached")
    assert "the other 4 runs reached" in text
    assert "v1" not in text


def test_a_folder_without_a_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the folder of a run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_figure_window_can_open() -> None:
    code = "import sys, fedhybrid.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
