"""What goes wrong on purpose: how often, to whom, and that the server finds the damage by looking."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.scene_parts import small_task, update_of
from tests.update_parts import updates

from fedhybrid.engine.faults import FAULTS, Fault, Faults, Incident, damaged, read_incidents
from fedhybrid.errors import ConfigError
from fedhybrid.records import ClientTask
from fedhybrid.tree import Tensors
from fedhybrid.updates import check_update, not_finite

TASK = dataclasses.replace(small_task(3), weights={})


def fates(faults: Faults, tasks: int, seed: int = 0) -> list[Fault | None]:
    return [faults.of(dataclasses.replace(TASK, seed=seed + number), 0.0) for number in range(tasks)]


class TestChance:
    def test_each_kind_as_often_as_asked(self) -> None:
        asked = dict(zip(FAULTS, (0.02, 0.05, 0.1, 0.15, 0.2, 0.08), strict=True))
        count = 5000
        found = Counter(fate.kind if fate else None for fate in fates(Faults(**asked), count))
        for kind, chance in {**asked, None: 0.4}.items():
            deviation = math.sqrt(count * chance * (1 - chance))
            assert abs(found[kind] - count * chance) < 4 * deviation, kind

    def test_moments_are_uniform(self) -> None:
        moments = [fate.at_ratio for fate in fates(Faults(crash=1.0), 2000) if fate]
        assert len(moments) == 2000
        assert 0 <= min(moments) < 0.01
        assert 0.99 < max(moments) < 1
        assert abs(sum(moments) / 2000 - 0.5) < 4 / math.sqrt(12 * 2000)

    def test_follow_from_the_tasks_seed_alone(self) -> None:
        faults = Faults(crash=0.3, corrupt=0.3)
        other = dataclasses.replace(TASK, client=8, round_index=5)
        assert fates(faults, 50) == fates(faults, 50)
        assert faults.of(other, 77.0) == faults.of(TASK, 0.0)
        assert fates(faults, 50) != fates(faults, 50, seed=1000)

    def test_more_of_one_kind_changes_no_moment(self) -> None:
        few, many = fates(Faults(crash=0.1), 300), fates(Faults(crash=0.5), 300)
        assert all(more == fewer for fewer, more in zip(few, many, strict=True) if fewer is not None)

    def test_none_and_all(self) -> None:
        assert not Faults()
        assert Faults(time_out=0.1)
        assert set(fates(Faults(), 100)) == {None}
        thirds = Faults(crash=1 / 3, corrupt=1 / 3, time_out=1 / 3)  # which add up to a little less than 1, or more
        assert None not in fates(thirds, 300)

    def test_every_problem_at_once(self) -> None:
        with pytest.raises(ConfigError) as caught:
            Faults(crash=-0.1, corrupt=1.5, time_out=math.nan)
        assert [problem.split(" must")[0] for problem in caught.value.problems] == [
            "failures.crash", "failures.time_out", "failures.corrupt"
        ]  # fmt: skip
        with pytest.raises(ConfigError, match=r"add up to 1\.2"):
            Faults(crash=0.6, corrupt=0.6)


class TestIncidents:
    def test_time_and_client(self) -> None:
        faults = Faults(incidents=(Incident(client=3, from_s=5.0, to_s=9.0, kind="crash"),))
        assert faults
        assert [faults.of(TASK, now_s) is not None for now_s in (4.99, 5.0, 8.99, 9.0)] == [False, True, True, False]
        assert faults.of(dataclasses.replace(TASK, client=2), 6.0) is None

    def test_come_before_what_is_drawn_and_the_first_counts(self) -> None:
        faults = Faults(
            corrupt=1.0,
            incidents=(
                Incident(client=3, from_s=0.0, to_s=2.0, kind="time_out"),
                Incident(client=3, from_s=1.0, to_s=3.0, kind="crash"),
            ),
        )
        kinds = [fate.kind for now_s in (0.0, 1.5, 2.5, 3.5) if (fate := faults.of(TASK, now_s))]
        assert kinds == ["time_out", "time_out", "crash", "corrupt"]

    def test_from_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "f.csv"
        path.write_text("client,from_s,to_s,kind\n3,5,9.5,crash\n0,0,inf,non_finite\n")
        assert read_incidents(path) == (
            Incident(client=3, from_s=5.0, to_s=9.5, kind="crash"),
            Incident(client=0, from_s=0.0, to_s=math.inf, kind="non_finite"),
        )

    def test_columns_in_any_order(self, tmp_path: Path) -> None:
        path = tmp_path / "f.csv"
        path.write_text("kind,to_s,client,from_s\ncrash,9.5,3,5\n")
        assert read_incidents(path) == (Incident(client=3, from_s=5.0, to_s=9.5, kind="crash"),)

    def test_every_bad_line_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "f.csv"
        path.write_text(
            "client,from_s,to_s,kind\nx,0,1,crash\n1,0,1,crush\n1,5,5,crash\n-1,0,1,crash\n1,nan,1,crash\n1,0\n"
            "1.5,0,1,crash\n2,0,1,crash\n"
        )
        with pytest.raises(ConfigError) as caught:
            read_incidents(path)
        problems = [problem.removeprefix(f"failures.trace: {path}:") for problem in caught.value.problems]
        assert [problem.split(":")[0] for problem in problems] == ["2", "3", "4", "5", "6", "7", "8"]
        assert "must be numbers" in problems[0]
        assert "unknown kind 'crush'. Did you mean 'crash'? Known: crash, time_out" in problems[1]
        assert "from_s below to_s" in problems[2]

    @pytest.mark.parametrize(
        "content", [b"", b"client,from_s,to_s,kind\n", b"client,from_s,kind\n1,0,crash\n", b"a\n1\n"]
    )
    def test_what_is_no_such_file(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "f.csv"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="must have rows below the columns client, from_s, to_s, kind"):
            read_incidents(path)

    def test_what_cannot_be_read(self, tmp_path: Path) -> None:
        path = tmp_path / "f.csv"
        with pytest.raises(ConfigError, match="cannot be read"):
            read_incidents(path)
        path.write_bytes(b"client,from_s,to_s,kind\n1,0,1,\xff\n")
        with pytest.raises(ConfigError, match="cannot be read"):
            read_incidents(path)


class TestDamage:
    @given(sent=updates(), seed=st.integers(0, 2**63 - 1))
    def test_what_is_corrupt_is_found(self, sent: tuple[Tensors, Tensors, Tensors], seed: int) -> None:
        reference, values, masks = sent
        assert check_update(values, masks, reference) is None
        broken = damaged(update_of(values, masks), "corrupt", seed)
        assert check_update(broken.weights, broken.masks, reference) is not None

    @given(sent=updates(), seed=st.integers(0, 2**63 - 1))
    def test_what_is_not_finite_is_found(self, sent: tuple[Tensors, Tensors, Tensors], seed: int) -> None:
        reference, values, masks = sent
        before = {name: tensor.clone() for name, tensor in values.items()}
        broken = damaged(update_of(values, masks), "non_finite", seed)
        assert check_update(broken.weights, broken.masks, reference) is None
        assert not_finite(broken.weights) is not None or not math.isfinite(broken.loss_mean)
        assert all(torch.equal(values[name], before[name]) for name in values)  # the client's own are left alone

    def test_any_layout(self) -> None:
        odd: Tensors = {"w": torch.zeros(3, 4).t(), "c": torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)}
        for seed in range(20):
            assert not_finite(damaged(update_of(odd), "non_finite", seed).weights) is not None

    def test_every_damage_occurs(self) -> None:
        whole: Tensors = {"w": torch.zeros(3), "b": torch.zeros(2)}
        found = set()
        for seed in range(60):
            weights = damaged(update_of(whole), "corrupt", seed).weights
            problem = check_update(weights, {}, whole)
            assert problem is not None
            found.add((problem.split("'")[1].rstrip("?"), "does not have" in problem, "complex64" in problem))
        assert len(found) == 6  # each of three damages, to each of two tensors

    def test_same_seed_same_damage(self) -> None:
        whole: Tensors = {"w": torch.zeros(3), "b": torch.zeros(2)}
        one, two = (damaged(update_of(whole), "corrupt", 9).weights for _ in range(2))
        assert {name: (t.shape, t.dtype) for name, t in one.items()} == {
            name: (t.shape, t.dtype) for name, t in two.items()
        }


def test_a_task_without_faults_has_none() -> None:
    task: ClientTask = TASK
    assert Faults().of(task, 0.0) is None
