"""A run's folder and checkpoint: nothing is lost silently, and half-written things do no harm."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from fedhybrid.devices import DeviceProfile, load_profile
from fedhybrid.engine.checkpoint import Checkpoint
from fedhybrid.engine.claim import Claim, claim_folders
from fedhybrid.engine.files import truncate_to, write_atomically
from fedhybrid.engine.folder import RunFolder
from fedhybrid.errors import ConfigError
from fedhybrid.protocols import ServerState
from fedhybrid.records import RoundRecord, Summary, append_jsonl

CONFIG: dict[str, Any] = {"method": "fedavg", "rounds": 4, "train": {"lr": 0.1, "epochs": 1}}


def record(number: int) -> RoundRecord:
    return RoundRecord(
        round=number, virtual_time_s=1.5 * number, accuracy=0.5, loss=None, train_loss=1.0, cohort=[1, 2], completed=2,
        failed=0, bytes_up=10, bytes_down=20, wall_time_s=0.1,
    )  # fmt: skip


SUMMARY = Summary(
    method="fedavg", policy="uniform", dataset="digits", model="cnn", seed=0, rounds=1, clients=3, final_accuracy=0.5,
    best_accuracy=0.5, virtual_time_s=1.5, wall_time_s=2, time_to_accuracy_s={"0.50": 1.5, "0.60": None}, bytes_up=10,
    bytes_down=20, participation={"all": {"clients": 3}}, budget_violations=0, failures={}, resident_bytes=1,
    eager_peak_bytes=2, runtime_bytes=3,
)  # fmt: skip


def claim(
    path: Path,
    config: dict[str, Any],
    *,
    resume: bool,
    devices: tuple[DeviceProfile, ...] = (),
    files: dict[str, Path] | None = None,
) -> None:
    claim_folders([Claim(path=path, config=config, devices=devices, files=files or {})], resume=resume)


def finished_run(path: Path) -> dict[Path, bytes]:
    """A finished run of one round; its files."""
    config = CONFIG | {"rounds": 1}
    claim(path, config, resume=False, devices=(load_profile("laptop"),))
    folder, state = RunFolder(path), checkpoint()
    lengths = folder.append(record(0), [])
    folder.store(dataclasses.replace(state, next_round=1, rounds_length_bytes=lengths[0]))
    folder.finish(state.server.weights, SUMMARY)
    (path / "plans").mkdir()
    return files_of(path)


def files_of(path: Path) -> dict[Path, bytes]:
    return {inside: inside.read_bytes() for inside in path.rglob("*") if inside.is_file()}


def checkpoint(**changes: Any) -> Checkpoint:
    fields: dict[str, Any] = {
        "next_round": 3,
        "now_s": 0.1 + 0.2,
        "wall_time_s": 7.0,
        "rounds_length_bytes": 0,
        "clients_length_bytes": 0,
        "policy": {"arms": {"3": [1, 0.25]}},
        "server": ServerState(weights={"w": torch.randn(3, 2), "count": torch.tensor(5)}, extra={"w": torch.randn(4)}),
    }
    return Checkpoint(**(fields | changes))


class TestFiles:
    def test_replacing_leaves_no_left_overs(self, tmp_path: Path) -> None:
        for text in ("one", "two"):
            write_atomically(tmp_path / "f", text)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("f", "two")]

    def test_lengths(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        assert truncate_to(path, 0)
        first = append_jsonl(path, [record(0), record(1)])
        whole = path.read_bytes()
        append_jsonl(path, [record(2)])
        assert truncate_to(path, first)
        assert path.read_bytes() == whole
        assert not truncate_to(path, first + 1)


class TestRestore:
    def test_lines_after_the_checkpoint_go(self, tmp_path: Path) -> None:
        folder = RunFolder(tmp_path)
        lengths = folder.append(record(0), [])
        folder.store(checkpoint(next_round=1, rounds_length_bytes=lengths[0], clients_length_bytes=lengths[1]))
        folder.append(record(1), [])
        with (tmp_path / "rounds.jsonl").open("a") as out:
            out.write('{"round": 2, "virtu')  # what a killed process leaves
        assert RunFolder(tmp_path).rounds() == [record(0), record(1)]
        restored = RunFolder(tmp_path).restore()
        assert restored is not None
        assert restored.next_round == 1
        assert RunFolder(tmp_path).rounds() == [record(0)]

    def test_before_the_first_checkpoint_everything_starts_again(self, tmp_path: Path) -> None:
        assert RunFolder(tmp_path).restore() is None
        with (tmp_path / "clients.jsonl").open("w") as out:
            out.write('{"round": 0, "cli')  # no record has a checkpoint before it
        assert RunFolder(tmp_path).restore() is None
        assert RunFolder(tmp_path).clients() == []

    def test_the_first_checkpoint_comes_before_the_first_record(self, tmp_path: Path) -> None:
        folder = RunFolder(tmp_path)
        folder.reopen(checkpoint(next_round=0))
        folder.append(record(0), [])
        folder.append(record(1), [])  # and killed before the next checkpoint
        restored = RunFolder(tmp_path).restore()
        assert restored is not None
        assert restored.next_round == 0
        assert RunFolder(tmp_path).rounds() == []

    def test_records_without_any_checkpoint_are_refused(self, tmp_path: Path) -> None:
        RunFolder(tmp_path).append(record(0), [])
        with pytest.raises(ConfigError, match=r"checkpoint\.safetensors is missing, so the run cannot go on"):
            RunFolder(tmp_path).restore()
        assert RunFolder(tmp_path).rounds() == [record(0)]

    def test_lost_lines_are_refused(self, tmp_path: Path) -> None:
        RunFolder(tmp_path).store(checkpoint(rounds_length_bytes=100))
        with pytest.raises(ConfigError, match=r"rounds\.jsonl has lost lines"):
            RunFolder(tmp_path).restore()


class TestClaim:
    def test_new_and_empty_folders(self, tmp_path: Path) -> None:
        claim(tmp_path / "a/b", CONFIG, resume=False)
        claim(tmp_path / "c", CONFIG, resume=True)
        assert (tmp_path / "a/b/config.toml").is_file()
        assert (tmp_path / "c/config.toml").is_file()

    def test_left_overs_of_a_killed_process_do_not_count(self, tmp_path: Path) -> None:
        (tmp_path / "config.toml.tmp").write_text("meth")
        (tmp_path / ".lock").touch()
        (tmp_path / "devices.json").write_text("{}")
        (tmp_path / "inputs.json").write_text('{"failures.trace": "')
        (tmp_path / "variant").mkdir()
        (tmp_path / "variant/.lock").touch()
        claim(tmp_path, CONFIG, resume=False)

    def test_a_run_is_not_overwritten(self, tmp_path: Path) -> None:
        claim(tmp_path, CONFIG, resume=False)
        with pytest.raises(ConfigError, match="unfinished run already; add --resume"):
            claim(tmp_path, CONFIG, resume=False)
        (tmp_path / "summary.json").write_text("{}")
        with pytest.raises(ConfigError, match="a finished run already"):
            claim(tmp_path, CONFIG, resume=False)

    def test_what_is_no_run_is_not_touched(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("years of work")
        for resume in (True, False):
            with pytest.raises(ConfigError, match="not empty and holds no run"):
                claim(tmp_path, CONFIG, resume=resume)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "f").touch()
        with pytest.raises(ConfigError, match="is a file"):
            claim(tmp_path / "f", CONFIG, resume=False)

    def test_another_configuration_does_not_go_on(self, tmp_path: Path) -> None:
        claim(tmp_path, CONFIG, resume=False)
        other = {"method": "fedprox", "rounds": 4, "train": {"lr": 0.2, "epochs": 1}}
        with pytest.raises(ConfigError) as caught:
            claim(tmp_path, other, resume=True)
        assert len(caught.value.problems) == 2
        assert "method was 'fedavg'" in caught.value.problems[0]
        assert "train.lr was 0.1" in caught.value.problems[1]

    def test_rounds_may_grow_and_not_shrink(self, tmp_path: Path) -> None:
        claim(tmp_path, CONFIG, resume=False)
        claim(tmp_path, CONFIG | {"rounds": 9}, resume=True)
        with pytest.raises(ConfigError, match="rounds was 9"):
            claim(tmp_path, CONFIG, resume=True)


class TestGoingOn:
    """A finished run is asked for more rounds: what is wrong is said before anything has been changed."""

    LONGER: ClassVar = CONFIG | {"rounds": 3}

    def refused(
        self, path: Path, *, devices: tuple[DeviceProfile, ...] = (), files: dict[str, Path] | None = None
    ) -> str:
        before = files_of(path)
        with pytest.raises(ConfigError) as caught:
            claim(path, self.LONGER, resume=True, devices=devices, files=files)
        assert files_of(path) == before
        return "\n".join(caught.value.problems)

    def test_may_go_on(self, tmp_path: Path) -> None:
        finished_run(tmp_path)
        claim(tmp_path, self.LONGER, resume=True, devices=(load_profile("laptop"),))
        restored = RunFolder(tmp_path).restore()
        assert restored is not None
        assert (tmp_path / "summary.json").exists()
        RunFolder(tmp_path).reopen(restored)
        assert not (tmp_path / "summary.json").exists()

    @pytest.mark.parametrize(
        ("name", "content", "expected"),
        [
            ("checkpoint.safetensors", b"half", "is no checkpoint of a run"),
            ("rounds.jsonl", b"", "has lost lines"),
            ("summary.json", b"\xff\xfe", "not UTF-8"),
            ("summary.json", b"[1]", "needs an object, found"),
            ("infeasible.json", b"{", "not JSON"),
            ("infeasible.json", b'{"laptop-1MiB": "many"}', "must map names of plans to bytes"),
            ("plans/laptop-smallest.json", b"{", "a plan must be JSON"),
            ("plans/laptop-smallest.json", b"\xff", "not UTF-8"),
            ("config.toml", b"= =", "is not TOML"),
            ("config.toml", b"\xff", "is not TOML"),
            ("devices.json", b"{", "is not JSON"),
        ],
    )
    def test_damaged_files(self, tmp_path: Path, name: str, content: bytes, expected: str) -> None:
        finished_run(tmp_path)
        (tmp_path / name).write_bytes(content)
        said = self.refused(tmp_path, devices=(load_profile("laptop"),))
        assert expected in said
        assert str(tmp_path / name) in said

    def test_damaged_records_that_are_as_long_as_before(self, tmp_path: Path) -> None:
        finished_run(tmp_path)
        path = tmp_path / "rounds.jsonl"
        path.write_bytes(path.read_bytes().replace(b'"accuracy": 0.5', b'"accuracy": "a"'))
        assert "rounds.jsonl:1: not a RoundRecord record: 'accuracy' must be float | None, found 'a'" in self.refused(
            tmp_path
        )

    def test_missing_checkpoint(self, tmp_path: Path) -> None:
        finished_run(tmp_path)
        (tmp_path / "checkpoint.safetensors").unlink()
        assert "checkpoint.safetensors is missing" in self.refused(tmp_path)
        (tmp_path / "summary.json").unlink()
        assert "checkpoint.safetensors is missing" in self.refused(tmp_path)

    def test_changed_device(self, tmp_path: Path) -> None:
        finished_run(tmp_path)
        laptop = load_profile("laptop")
        renamed = dataclasses.replace(laptop, title="my own")
        claim(tmp_path, CONFIG | {"rounds": 1}, resume=True, devices=(renamed,))
        slow = dataclasses.replace(laptop, uplink_bytes_per_s=1000.0)
        said = self.refused(tmp_path, devices=(slow,))
        assert "laptop.uplink_bytes_per_s was" in said
        assert "now it is 1000.0" in said

    def test_changed_input_file(self, tmp_path: Path) -> None:
        trace, run = tmp_path / "trace.csv", tmp_path / "run"
        files = {"failures.trace": trace}
        trace.write_text("client,from_s,to_s,kind\n1,0,1,crash\n")
        finished_run(run)
        claim(run, CONFIG | {"rounds": 1}, resume=True, files=files)  # a run from before they were looked at
        claim(run, CONFIG | {"rounds": 2}, resume=True, files=files)
        trace.write_text("client,from_s,to_s,kind\n1,0,2,crash\n")
        assert self.refused(run, files=files) == (
            f"--resume: failures.trace: {trace} is not what it was when the run in {run} was begun; put the old file "
            "back, or start again with another --out"
        )
        trace.unlink()
        assert self.refused(run, files=files) == f"failures.trace: {trace} cannot be read: No such file or directory"
        trace.write_text("client,from_s,to_s,kind\n1,0,1,crash\n")
        claim(run, self.LONGER, resume=True, files=files)
        for damaged, expected in ((b"{", "is not JSON"), (b"[]", "is not what it was")):
            (run / "inputs.json").write_bytes(damaged)
            assert expected in self.refused(run, files=files)

    def test_missing_input_file_of_a_new_run(self, tmp_path: Path) -> None:
        files = {"fleet.memory.file": tmp_path / "none.csv", "failures.trace": tmp_path / "none either.csv"}
        with pytest.raises(ConfigError) as caught:
            claim(tmp_path / "run", CONFIG, resume=False, files=files)
        assert len(caught.value.problems) == 2
        assert not (tmp_path / "run/config.toml").exists()

    def test_running_elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fedhybrid.engine.folder._LOCK_PATIENCE_S", 0.1)
        finished_run(tmp_path)
        with RunFolder(tmp_path).locked():  # a second open file, as another process would have it
            assert "another process is running" in self.refused(tmp_path)

    def test_one_of_several_folders_is_refused_and_none_is_changed(self, tmp_path: Path) -> None:
        finished_run(tmp_path / "a")
        finished_run(tmp_path / "b")
        (tmp_path / "b/checkpoint.safetensors").write_bytes(b"half")
        before = files_of(tmp_path)
        with pytest.raises(ConfigError, match="is no checkpoint"):
            claim_folders([Claim(path=tmp_path / name, config=self.LONGER) for name in "ab"], resume=True)
        assert files_of(tmp_path) == before

    def test_a_model_that_is_not_the_checkpoints_is_not_finished(self, tmp_path: Path) -> None:
        finished_run(tmp_path)
        assert RunFolder(tmp_path).is_finished(1)
        assert not RunFolder(tmp_path).is_finished(2)
        (tmp_path / "model.safetensors").write_bytes(b"half")
        assert not RunFolder(tmp_path).is_finished(1)


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file/run", Path("/proc/foo/bar")):
        with pytest.raises(ConfigError, match="cannot be written"):
            claim(path, CONFIG, resume=False)


def test_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedhybrid.engine.folder._LOCK_PATIENCE_S", 0.2)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ConfigError, match="another process is running"), RunFolder(tmp_path).locked():
            pass
        other.kill()
    with RunFolder(tmp_path).locked():
        pass
