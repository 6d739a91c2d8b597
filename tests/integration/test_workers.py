"""Worker processes: the same records and the same model whatever their number, and none of them is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from tests.run_parts import (
    ALL_FAILURES,
    SQUEEZED,
    Stop,
    Stopper,
    assert_books_balance,
    assert_same_run,
    asynchronous,
    child_processes,
    small,
)

import fedhybrid as fh
from fedhybrid.errors import ConfigError
from fedhybrid.records import ClientRecord

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forks, which are safe on Linux only")
ROOT = Path(__file__).parents[2]
# Everything that a worker does or is told: packed updates, kept errors, plans that are new to it, dropped jobs.
_HARD: dict[str, Any] = {
    "data": {"clients": 12, "alpha": 2.0},
    "failures": ALL_FAILURES,
    "traffic": {"up": SQUEEZED, "down": [{"name": "quantise", "bits": 8}]},
}
RECIPES = {
    "plain": small(rounds=3),
    "synchronous": small(
        rounds=5,
        **_HARD,
        policy="oort",
        evaluation={"clients": 4, "every": 2},
        schedule={"over_selection_ratio": 1.5, "timeout_s": 0.2},
    ),
    "asynchronous": asynchronous("fedbuff", rounds=8, **_HARD),
}


@pytest.fixture(autouse=True)
def no_process_is_left() -> Any:
    before = child_processes()
    yield
    assert _gone(child_processes() - before)


def _gone(processes: set[int]) -> bool:
    """Whether all of them end within a few seconds."""
    for _ in range(100):
        if not any(Path(f"/proc/{each}/stat").exists() for each in processes):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each recipe without workers."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: fh.run(raw, out=folder / name).folder for name, raw in RECIPES.items()}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("workers", [2, 4])
def test_their_number_changes_nothing(workers: int, name: str, alone: dict[str, Path], tmp_path: Path) -> None:
    result = fh.run(RECIPES[name] | {"workers": workers}, out=tmp_path / "run")
    assert result.config["workers"] == workers
    assert_books_balance(result)
    assert_same_run(alone[name], tmp_path / "run")


def test_what_is_compared_is_varied(alone: dict[str, Path]) -> None:
    tasks = {name: fh.load_run(folder).clients for name, folder in alone.items()}
    assert {task.kind for task in tasks["synchronous"]} == {"train", "evaluate"}
    assert {"completed", "late"} < {task.outcome for task in tasks["synchronous"]}
    assert len({task.outcome for task in tasks["asynchronous"]}) > 3
    assert max(task.staleness for task in tasks["asynchronous"]) > 0
    for name in ("synchronous", "asynchronous"):
        assert (alone[name] / "states").is_dir()


@pytest.mark.parametrize("name", ["synchronous", "asynchronous"])
def test_another_number_may_go_on(name: str, alone: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    for at_round, workers in ((0, 1), (2, 3)):
        raw = RECIPES[name] | {"workers": workers, "checkpoint_every": 1}
        with pytest.raises(Stop):
            fh.run(raw, out=out, resume=at_round > 0, progress=Stopper(at_round=at_round))
    fh.run(RECIPES[name] | {"workers": 2, "checkpoint_every": 1}, out=out, resume=True)
    assert_same_run(alone[name], out)


def test_they_are_there_while_it_runs_and_stop_with_it(tmp_path: Path) -> None:
    counted: list[int] = []
    before = child_processes()

    class Counting(Stopper):
        def on_task(self, label: str, record: ClientRecord) -> None:
            counted.append(len(child_processes() - before))
            super().on_task(label, record)

    with pytest.raises(Stop):
        fh.run(small(rounds=3, workers=3), out=tmp_path / "run", progress=Counting(tasks=6))
    assert counted == [3] * 6
    assert child_processes() == before


def test_one_that_is_killed_is_told_of_and_the_run_goes_on_later(alone: dict[str, Path], tmp_path: Path) -> None:
    before = child_processes()

    class Murder(Stopper):
        def on_task(self, label: str, record: ClientRecord) -> None:
            if record.round == 1 and not self.seen:
                super().on_task(label, record)
                for each in child_processes() - before:
                    os.kill(each, signal.SIGKILL)

    raw, out = RECIPES["plain"] | {"workers": 2, "checkpoint_every": 1}, tmp_path / "run"
    with pytest.raises(RuntimeError, match=r"a worker process ended with exit code -9; .* Go on with --resume"):
        fh.run(raw, out=out, progress=Murder())
    assert child_processes() == before
    fh.run(raw, out=out, resume=True)
    assert_same_run(alone["plain"], out)


def test_they_end_when_the_run_is_killed(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(small(rounds=500, workers=2)))
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fedhybrid", "run", str(tmp_path / "recipe.toml"), "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    workers: set[int] = set()
    try:
        given_up_s = time.monotonic() + 120
        while not (out / "clients.jsonl").exists():
            assert process.poll() is None
            assert time.monotonic() < given_up_s
            time.sleep(0.01)
        workers = child_processes(process.pid)
    finally:
        process.kill()
        process.wait()
    assert len(workers) == 2
    assert _gone(workers)


def test_an_error_in_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a task stumbles over in a worker ends the run with its words."""
    from fedhybrid.engine import crew  # noqa: PLC0415

    def broken(*_: object, **__: object) -> None:
        raise ConfigError("the disk has run away")

    monkeypatch.setattr(crew, "do_job", broken)
    with pytest.raises(RuntimeError, match="a worker process failed: ConfigError: the disk has run away"):
        fh.run(small(rounds=1, workers=2), out=tmp_path / "run")
