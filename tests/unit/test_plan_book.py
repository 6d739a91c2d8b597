"""The plan book: which plan each device gets, and that no plan is solved twice."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.federation_parts import plan_book, prepared_step
from torch import nn

from fedhybrid.engine.plannames import bucket_name, is_stand_in
from fedhybrid.engine.plans import PlanBook, bucket_bytes
from fedhybrid.engine.runtime import one_thread
from fedhybrid.errors import ConfigError
from fedhybrid.executor import PlanOptions, PreparedStep
from fedhybrid.models import build_model

MIB = 2**20


@pytest.fixture(scope="module")
def prepared() -> PreparedStep:
    model: nn.Module = build_model("resnet20", input_shape=(1, 32, 32), classes=10, seed=0, options={"width": 0.5})
    with one_thread():
        return prepared_step(model)


@pytest.fixture(scope="module")
def book(prepared: PreparedStep, tmp_path_factory: pytest.TempPathFactory) -> PlanBook:
    return plan_book(prepared, tmp_path_factory.mktemp("book"))


def budget_of(book: PlanBook, share_ratio: float) -> int:
    return book.resident_bytes + int(share_ratio * (book.eager_peak_bytes - book.resident_bytes))


class TestBuckets:
    @given(budget=st.integers(1, 2**40), peak=st.integers(2**18, 2**40))
    def test_rounds_down_by_little(self, budget: int, peak: int) -> None:
        rounded = bucket_bytes(budget, eager_peak_bytes=peak)
        assert 0 <= budget - rounded < max(1024, peak / 256)

    @given(budget=st.integers(1, 2**40), peak=st.integers(2**18, 2**40))
    def test_is_stable(self, budget: int, peak: int) -> None:
        rounded = bucket_bytes(budget, eager_peak_bytes=peak)
        assert bucket_bytes(rounded, eager_peak_bytes=peak) == rounded

    @given(st.lists(st.integers(0, 2**30), min_size=2, max_size=20, unique=True))
    def test_names_differ(self, kibibytes: list[int]) -> None:
        assert len({bucket_name(1024 * k) for k in kibibytes}) == len(kibibytes)


class TestChoice:
    def test_full_budget_keeps_everything(self, book: PlanBook) -> None:
        assert book.choose("laptop", book.eager_peak_bytes) == "laptop-keep-all"
        assert book.choose("laptop", 100 * book.eager_peak_bytes) == "laptop-keep-all"

    def test_middling_budgets_get_their_own_plan_inside_them(self, book: PlanBook) -> None:
        for share in (0.45, 0.6, 0.8):
            budget = budget_of(book, share)
            name = book.choose("raspberry-pi-4", budget)
            assert name is not None
            assert book.needed_bytes(name) <= budget
            assert book.program("raspberry-pi-4", name).peak_bytes == book.needed_bytes(name)

    def test_less_memory_never_makes_a_step_faster(self, book: PlanBook) -> None:
        step_s = [book.step_s("raspberry-pi-4", budget_of(book, share)) for share in (0.45, 0.6, 1.0)]
        assert step_s[0] >= step_s[1] >= step_s[2] > 0

    def test_slow_device_takes_longer(self, book: PlanBook) -> None:
        budget = budget_of(book, 0.5)
        assert book.step_s("raspberry-pi-4", budget) > book.step_s("laptop", budget)
        assert book.kernel_s("raspberry-pi-4") > book.kernel_s("laptop")

    def test_the_smallest_plan_is_used_to_its_last_byte(self, book: PlanBook) -> None:
        name = book.choose("laptop", book.smallest_bytes)
        assert name is not None
        assert book.needed_bytes(name) <= book.smallest_bytes

    def test_the_smallest_plan_does_only_what_the_recipe_allows(self, prepared: PreparedStep, tmp_path: Path) -> None:
        """Splits sum in another order: where only recomputing is allowed, the smallest plan is exact, too."""
        allowed = {"exact": ("recompute",), "split": ("recompute", "split")}
        smallest = {}
        for name, actions in allowed.items():
            (tmp_path / name).mkdir()
            book = plan_book(prepared, tmp_path / name, planning=PlanOptions(actions=actions))
            smallest[name] = book.program("laptop", "laptop-smallest")
        assert not smallest["exact"].splits
        assert smallest["split"].splits
        assert smallest["split"].peak_bytes < smallest["exact"].peak_bytes

    def test_where_the_solver_finds_nothing_ours_stands_in(
        self, prepared: PreparedStep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Asked for the paper's solver, a device whose budget that cannot meet gets a cheap plan, not the dearest."""
        paper = PlanOptions(
            solver="greedy-mps",
            actions=("recompute", "encode"),
            codecs=("channel-mix",),
            max_gradient_error=math.inf,
        )
        for name in ("paper", "ours"):
            (tmp_path / name).mkdir()
        book = plan_book(prepared, tmp_path / "paper", planning=paper)
        ours = plan_book(prepared, tmp_path / "ours", planning=PlanOptions())
        budgets = [budget_of(book, share) for share in (0.28, 0.45, 0.8)]
        names = [book.choose("laptop", budget) for budget in budgets]
        assert [is_stand_in(name or "") for name in names] == [True, False, False]
        stand_in = book.program("laptop", names[0])
        assert stand_in.key == ours.program("laptop", ours.choose("laptop", budgets[0])).key
        assert stand_in.peak_bytes <= budgets[0]
        assert stand_in.step_time_s < book.program("laptop", "laptop-smallest").step_time_s
        monkeypatch.setattr(PreparedStep, "planned", lambda *given: pytest.fail(f"solved again: {given}"))
        assert plan_book(prepared, tmp_path / "paper", planning=paper).choose("laptop", budgets[0]) == names[0]

    def test_a_stand_in_does_only_what_the_recipe_allows(self, prepared: PreparedStep, tmp_path: Path) -> None:
        book = plan_book(prepared, tmp_path, planning=PlanOptions(solver="checkpoint-blocks", actions=("recompute",)))
        name = book.choose("laptop", budget_of(book, 0.45))
        assert is_stand_in(name or "")
        stand_in = book.program("laptop", name)
        assert stand_in.decisions
        assert not stand_in.splits

    def test_below_the_smallest_plan_nothing_fits(self, book: PlanBook) -> None:
        budget = book.smallest_bytes - 1
        assert book.choose("laptop", budget) is None
        assert math.isinf(book.step_s("laptop", budget))
        assert book.needed_bytes(None) > budget

    def test_clients_of_one_bucket_share_a_plan(self, book: PlanBook) -> None:
        budget = bucket_bytes(budget_of(book, 0.5), eager_peak_bytes=book.eager_peak_bytes)
        assert book.choose("laptop", budget) == book.choose("laptop", budget + 1)

    def test_without_plans_only_the_unplanned_step(self, prepared: PreparedStep, tmp_path: Path) -> None:
        book = plan_book(prepared, tmp_path, enabled=False)
        assert book.smallest_bytes == book.eager_peak_bytes
        assert book.choose("laptop", book.eager_peak_bytes) is None
        assert math.isfinite(book.step_s("laptop", book.eager_peak_bytes))
        assert math.isinf(book.step_s("laptop", book.eager_peak_bytes - 1))
        assert not list((tmp_path / "plans").iterdir())


class TestStore:
    def test_plans_are_read_again_and_not_solved(
        self, prepared: PreparedStep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = plan_book(prepared, tmp_path)
        budget = budget_of(first, 0.5)
        name = first.choose("laptop", budget)
        second = plan_book(prepared, tmp_path)
        monkeypatch.setattr(second, "_planning", None)  # solving would fail at the first call
        assert second.choose("laptop", budget) == name
        assert name is not None
        assert second.program("laptop", name) == first.program("laptop", name)
        assert second.smallest_bytes == first.smallest_bytes

    def test_files_are_called_like_the_plans(self, prepared: PreparedStep, tmp_path: Path) -> None:
        book = plan_book(prepared, tmp_path)
        name = book.choose("laptop", budget_of(book, 0.5))
        assert f"{name}.json" in {path.name for path in (tmp_path / "plans").iterdir()}

    def test_plan_for_another_graph_is_refused(self, prepared: PreparedStep, tmp_path: Path) -> None:
        plan_book(prepared, tmp_path)
        path = tmp_path / "plans/laptop-smallest.json"
        stored = json.loads(path.read_text())
        path.write_text(json.dumps(stored | {"fingerprint": "f" * len(stored["fingerprint"])}))
        with pytest.raises(
            ConfigError, match=r"laptop-smallest\.json was made for graph ffff.*start again with"
        ) as caught:
            plan_book(prepared, tmp_path)
        assert "plan_step" not in str(caught.value)

    @pytest.mark.parametrize("name", ["plans/laptop-smallest.json", "infeasible.json"])
    def test_damaged_file_is_named(self, prepared: PreparedStep, tmp_path: Path, name: str) -> None:
        plan_book(prepared, tmp_path)
        (tmp_path / name).write_text("{")
        with pytest.raises(ConfigError, match="delete the file") as caught:
            plan_book(prepared, tmp_path)
        assert str(tmp_path / name) in str(caught.value)
