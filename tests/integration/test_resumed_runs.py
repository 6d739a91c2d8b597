"""Runs that are stopped, by an exception or by `kill -9`, and go on: always the same final bytes, nothing left over."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from tests.run_parts import (
    ALL_FAILURES,
    SQUEEZED,
    UNEQUAL,
    Stop,
    Stopper,
    assert_same_run,
    asynchronous,
    kept_states,
    last_state,
    small,
)

import fedhybrid as fh
from fedhybrid.engine.folder import RunFolder
from fedhybrid.engine.states import ClientStates
from fedhybrid.errors import ConfigError

ROOT = Path(__file__).parents[2]
ROUNDS = 5
# Clients that keep errors and come again, tasks that fail, a quantised way down: all that a stop could disturb.
_HARD: dict[str, Any] = {
    "rounds": ROUNDS,
    "data": {"clients": 10, "alpha": 2.0},
    "failures": ALL_FAILURES,
    "traffic": {"up": SQUEEZED, "down": [{"name": "quantise", "bits": 8}]},
}
RECIPES = {
    "synchronous": small(**_HARD, policy="oort", evaluation={"clients": 3}),
    "asynchronous": asynchronous("fedbuff", **_HARD, schedule={"kind": "asynchronous", "in_flight": 5, "buffer": 2}),
}
EVERY = {"default": {}, "every round": {"checkpoint_every": 1}, "every third round": {"checkpoint_every": 3}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each schedule that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return {name: fh.run(raw, out=folder / name).folder for name, raw in RECIPES.items()}


@pytest.fixture(params=RECIPES)
def schedule(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def first_round_after(stopped_at: int, every: dict[str, int]) -> int:
    """Where a run goes on that was stopped right after this round."""
    count = every.get("checkpoint_every", 1)
    return (stopped_at + 1) // count * count


class TestStoppedByAnException:
    @pytest.mark.parametrize("every", [EVERY["every round"], EVERY["every third round"]], ids=["1", "3"])
    def test_after_every_round(
        self, every: dict[str, int], schedule: str, whole: dict[str, Path], tmp_path: Path
    ) -> None:
        raw, out, expected = RECIPES[schedule] | every, tmp_path / "run", 0
        for stopped_at in range(ROUNDS):
            stopper = Stopper(at_round=stopped_at)
            with pytest.raises(Stop):
                fh.run(raw, out=out, resume=stopped_at > 0, progress=stopper)
            assert stopper.first_round == expected
            expected = first_round_after(stopped_at, every)
            kept_states(out)  # nothing is there but what the checkpoint counts on
        assert not (out / "summary.json").exists()
        last = Stopper()
        fh.run(raw, out=out, resume=True, progress=last)
        assert last.first_round == ROUNDS
        assert_same_run(whole[schedule], out)

    def test_in_the_middle_of_rounds(self, schedule: str, whole: dict[str, Path], tmp_path: Path) -> None:
        """After more ends of tasks each time; what has been done since the last checkpoint is done again."""
        raw, out = RECIPES[schedule] | EVERY["every round"], tmp_path / "run"
        stopped, tasks = 0, 1
        while not (out / "summary.json").exists():
            assert stopped < 20
            try:
                fh.run(raw, out=out, resume=stopped > 0, progress=Stopper(tasks=tasks))
            except Stop:
                stopped += 1
                tasks += 4
        assert stopped >= 3
        assert_same_run(whole[schedule], out)

    def test_checkpoints_by_time(self, schedule: str, whole: dict[str, Path], tmp_path: Path) -> None:
        """A run that is too short for one but the first begins again, and ends in the same bytes."""
        out = tmp_path / "run"
        with pytest.raises(Stop):
            fh.run(RECIPES[schedule], out=out, progress=Stopper(at_round=1))
        assert len(fh.load_run(out).rounds) == 2
        fh.run(RECIPES[schedule], out=out, resume=True)
        assert_same_run(whole[schedule], out)

    @pytest.mark.parametrize("when", ["before the checkpoint", "after the checkpoint"])
    def test_between_states_and_checkpoint(
        self, when: str, schedule: str, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What clients keep is written, the checkpoint that names it is not; or it is, and the old files are there."""
        raw, out = RECIPES[schedule] | {"checkpoint_every": 1}, tmp_path / "run"
        owner, name = (RunFolder, "store") if when == "before the checkpoint" else (ClientStates, "tidy")
        for session in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, _stopping(getattr(owner, name), 2))
                with pytest.raises(Stop):
                    fh.run(raw, out=out, resume=session > 0)
        left = {path.name for path in (out / "states").iterdir()}
        named = {f"{client}.{number}.safetensors" for client, number in last_state(out).client_states.items()}
        assert left > named  # so there is something to clear away
        fh.run(raw, out=out, resume=True)
        assert_same_run(whole[schedule], out)

    def test_checkpoints_may_come_more_or_less_often_than_before(
        self, schedule: str, whole: dict[str, Path], tmp_path: Path
    ) -> None:
        out = tmp_path / "run"
        for at_round, every in ((1, 1), (3, 2)):
            with pytest.raises(Stop):
                fh.run(
                    RECIPES[schedule] | {"checkpoint_every": every},
                    out=out,
                    resume=at_round > 1,
                    progress=Stopper(at_round=at_round),
                )
        fh.run(RECIPES[schedule], out=out, resume=True)
        assert_same_run(whole[schedule], out)

    def test_more_rounds_can_be_asked_for_later(self, schedule: str, whole: dict[str, Path], tmp_path: Path) -> None:
        out = tmp_path / "run"
        for rounds in (1, 4, ROUNDS):
            fh.run(RECIPES[schedule] | {"rounds": rounds}, out=out, resume=rounds > 1)
        assert_same_run(whole[schedule], out)


def _stopping(real: Callable[..., None], calls: int) -> Callable[..., None]:
    """The function, but its n-th call never happens: the process is stopped right before it."""
    left = calls

    def instead(*arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Stop
        real(*arguments)

    return instead


class TestStatesOfClients:
    def test_they_are_what_a_run_goes_on_from(self, whole: dict[str, Path], tmp_path: Path) -> None:
        raw, out = RECIPES["synchronous"] | {"checkpoint_every": 1}, tmp_path / "run"
        with pytest.raises(Stop):
            fh.run(raw, out=out, progress=Stopper(at_round=3))
        states = sorted((out / "states").iterdir())
        assert len(states) > 3
        contents = [path.read_bytes() for path in states]
        for path in states:
            path.unlink()
        with pytest.raises(ConfigError, match=r"which client \d+ goes on from, cannot be read"):
            fh.run(raw, out=out, resume=True)
        for path, content in zip(states, contents, strict=True):
            path.write_bytes(content)
        fh.run(raw, out=out, resume=True)
        assert_same_run(whole["synchronous"], out)

    def test_every_client_that_completed_a_task_has_one(self, schedule: str, whole: dict[str, Path]) -> None:
        done = {task.client for task in fh.load_run(whole[schedule]).clients if task.outcome == "completed"}
        own = {t.client for t in fh.load_run(whole[schedule]).clients if t.kind == "train" and t.outcome == "completed"}
        assert own <= done
        assert {int(client) for client in kept_states(whole[schedule])} == own


class Killing:
    """A run on the command line that is killed again and again at random moments, and goes on each time."""

    def __init__(self, raw: dict[str, Any], folder: Path, *, seed: int) -> None:
        self.out, self._recipe, self._random = folder / "run", folder / "recipe.toml", random.Random(seed)
        self._recipe.write_text(tomli_w.dumps(raw))
        self.kills = 0

    def kill(self, *, most_s: float, early: bool) -> bool:
        """Kills the run within this time from its start or from its first new record; False where it ends before."""
        command = [sys.executable, "-m", "fedhybrid", "run", str(self._recipe), "--out", str(self.out)]
        command += ["--resume"] if (self.out / "config.toml").exists() else []
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        before = _changes(self.out)
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        try:
            given_up_s = time.monotonic() + 120
            while not early and _changes(self.out) == before and process.poll() is None:
                assert time.monotonic() < given_up_s, "the run does not get anywhere"
                time.sleep(0.002)
            process.wait(timeout=self._random.uniform(0, most_s))
        except subprocess.TimeoutExpired:
            self.kills += 1
            return True
        finally:
            process.send_signal(signal.SIGKILL)
            _, said = process.communicate()
        assert process.returncode == 0, said.decode()
        return False


def _changes(out: Path) -> tuple[int, int]:
    path = out / "clients.jsonl"
    return (path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else (0, 0)


def long(raw: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """So many rounds that a process has work for some seconds."""
    fleet = UNEQUAL | {"clients_per_round": 8}
    return raw | {"data": {"clients": 30, "alpha": 2.0}, "fleet": fleet} | changes


class TestKilled:
    def test_once(self, schedule: str, tmp_path: Path) -> None:
        raw = long(RECIPES[schedule], rounds=20, checkpoint_every=3, evaluation={"every": 20})
        killing = Killing(raw, tmp_path, seed=1)
        assert killing.kill(most_s=0.1, early=False)
        fh.run(raw, out=killing.out, resume=True)
        fh.run(raw, out=tmp_path / "whole")
        assert_same_run(tmp_path / "whole", killing.out)

    @pytest.mark.slow
    @pytest.mark.timeout(1800)
    @pytest.mark.parametrize("every", EVERY.values(), ids=EVERY)
    def test_twenty_times_at_random_moments(self, every: dict[str, int], schedule: str, tmp_path: Path) -> None:
        """Most while it trains, some while it starts; a few runs may be needed, as a quick one ends by itself."""
        # With checkpoints by time a process has to live for more than a second to get anywhere.
        rounds, most_s = (300, 2.5) if not every else (200, 0.6)
        raw = long(RECIPES[schedule], rounds=rounds, evaluation={"every": 25}, **every)
        fh.run(raw, out=tmp_path / "whole")
        kills, seed = 0, 0
        while kills < 20:
            folder = tmp_path / str(seed)
            folder.mkdir()
            killing = Killing(raw, folder, seed=seed)
            goes_on = True
            while goes_on and kills + killing.kills < 20:
                early = killing.kills % 5 == 3
                goes_on = killing.kill(most_s=3.0 if early else most_s, early=early)
            kills, seed = kills + killing.kills, seed + 1
            fh.run(raw, out=killing.out, resume=True)
            assert_same_run(tmp_path / "whole", killing.out)
            assert seed < 10
