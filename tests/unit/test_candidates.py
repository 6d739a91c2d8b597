"""The fleet by columns, against a loop over clients; and that nobody pays for a column that nobody asked for."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from tests.federation_parts import DEVICES, SHARDS, WORK, shop
from tests.scene_parts import scene, small_task

from fedhybrid.data import DealtShards
from fedhybrid.engine.budgets import Budgets
from fedhybrid.engine.candidates import FleetCosts, FleetView
from fedhybrid.engine.plans import PlanBook
from fedhybrid.engine.runtime import steps_of
from fedhybrid.engine.traffic import Traffic
from fedhybrid.fleet import AvailabilitySpec, Fleet, MemorySpec, TierSpec, TraceSpec, make_fleet
from fedhybrid.records import Update
from fedhybrid.updates import Pipeline, parse_pipeline

CLIENTS = 60
DEALT = DealtShards.of([np.arange(3 * client, 3 * client + client % 7) for client in range(CLIENTS)])
SPREAD = {"distribution": "uniform", "low": "55%", "high": "110%"}
UP = parse_pipeline([{"name": "top-k", "ratio": 0.2}], where="up")

FLEETS: dict[str, tuple[list[TierSpec], MemorySpec | None, AvailabilitySpec | None]] = {
    "two tiers": (
        [
            TierSpec(name="weak", budget="80%", device="raspberry-pi-4"),
            TierSpec(name="strong", budget="100%", device="laptop"),
        ],
        None,
        None,
    ),
    "each its own": (
        [
            TierSpec(name="weak", budget=SPREAD, device="raspberry-pi-4", speed_spread=0.4),
            TierSpec(name="strong", budget=SPREAD, device="laptop"),
        ],
        None,
        AvailabilitySpec(kind="random", on_ratio=0.6, slot_s=10.0),
    ),
    "moving": (
        [TierSpec(name="all", budget="200%", device="laptop"), TierSpec(name="odd", budget=SPREAD, device="laptop")],
        MemorySpec(trace=TraceSpec(duration_s=600.0, period_s=5.0, stay_s=20.0, apps_per_h=600.0), window_s=20.0),
        AvailabilitySpec(kind="duty", on_s=30.0, off_s=10.0),
    ),
}


def made(name: str, book: PlanBook, up: Pipeline) -> tuple[Fleet, Budgets, FleetCosts]:
    tiers, memory, availability = FLEETS[name]
    fleet = make_fleet(tiers, CLIENTS, 3, memory=memory, availability=availability)
    budgets = Budgets(fleet, resident_bytes=book.resident_bytes, eager_peak_bytes=book.eager_peak_bytes)
    traffic = Traffic(down=Pipeline(), up=up, differences=False, run_seed=1)
    costs = FleetCosts(
        fleet, shards=DEALT, book=book, budgets=budgets, work=WORK, traffic=traffic, model=shop().weights
    )
    return fleet, budgets, costs


@pytest.mark.parametrize("plans", [True, False])
@pytest.mark.parametrize("name", sorted(FLEETS))
@pytest.mark.parametrize(("now_s", "busy"), [(0.0, set()), (47.5, {0, 3, 59})])
def test_columns_are_those_of_a_loop(name: str, plans: bool, now_s: float, busy: set[int]) -> None:
    book = shop().ladder if plans else shop().plain
    fleet, budgets, costs = made(name, book, UP)
    view = FleetView(costs, now_s, busy)
    down_bytes, up_bytes = Pipeline().expected_bytes(shop().weights), UP.expected_bytes(shop().weights)
    clients = [c for c in range(CLIENTS) if c not in busy and bool(fleet.available(np.array([c]), now_s)[0])]
    assert view.client.tolist() == clients
    assert 0 < len(clients) <= len(view)
    for at, client in enumerate(clients):
        tier = fleet.tiers[int(fleet.tier[client])]
        device, budget_bytes = tier.device, budgets.promised_one(client, now_s)
        step_s = book.step_s(device.name, budget_bytes) * budgets.speed_factor(client)
        steps = steps_of(WORK, len(DEALT[client]))
        transfer_s = down_bytes / device.downlink_bytes_per_s + up_bytes / device.uplink_bytes_per_s
        assert fleet.tiers[view.tier[at]] is tier
        assert view.budget_bytes[at] == budget_bytes
        assert view.num_samples[at] == len(DEALT[client])
        assert view.step_s[at] == step_s
        assert view.kernel_s[at] == book.kernel_s(device.name)
        assert view.round_s[at] == pytest.approx(step_s * steps + transfer_s if steps else math.inf, rel=1e-12)
    assert (view.unplanned_bytes, view.smallest_bytes) == (book.eager_peak_bytes, book.smallest_bytes)
    some_can, some_cannot = np.isfinite(view.step_s).any(), np.isinf(view.step_s).any()
    assert some_can
    assert some_cannot or name != "each its own"


def test_predicted_seconds_are_those_of_the_task(tmp_path: Path) -> None:
    fleet = make_fleet([TierSpec(name="all", budget="100%", device="laptop", speed_spread=0.5)], 3, 3)
    world = scene(tmp_path, fleet, up=UP)
    book = world.book
    budgets = Budgets(fleet, resident_bytes=book.resident_bytes, eager_peak_bytes=book.eager_peak_bytes)
    costs = FleetCosts(
        fleet, shards=SHARDS, book=book, budgets=budgets, work=WORK, traffic=world.traffic, model=shop().weights
    )
    predicted_s = FleetView(costs, 0.0, set()).round_s
    driver = world.driver()
    for client in range(3):
        driver.submit(client, small_task(client))
    for _ in range(3):
        event = driver.next_event()
        assert event is not None
        assert isinstance(event.result, Update)
        assert event.duration_s == pytest.approx(predicted_s[event.result.client], rel=1e-12)


class _Watched:
    """A plan book or a fleet of which every use is written down."""

    def __init__(self, inner: object) -> None:
        self.inner, self.used = inner, []

    def __getattr__(self, name: str) -> object:
        self.used.append(name)
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]


class TestOnDemand:
    def view(self) -> tuple[FleetView, _Watched, _Watched]:
        fleet, budgets, _ = made("two tiers", shop().ladder, UP)
        seen_fleet, seen_book = _Watched(fleet), _Watched(shop().ladder)
        costs = FleetCosts(
            seen_fleet,  # type: ignore[arg-type]
            shards=DEALT,
            book=seen_book,  # type: ignore[arg-type]
            budgets=budgets,
            work=WORK,
            traffic=Traffic(down=Pipeline(), up=UP, differences=False, run_seed=1),
            model=shop().weights,
        )
        seen_fleet.used.clear()
        return FleetView(costs, 0.0, {1}), seen_fleet, seen_book

    def test_a_sample_looks_at_no_column(self) -> None:
        view, _, book = self.view()
        found = view.sample(5, np.random.default_rng(0))
        assert len(found) == 5
        assert 1 not in found
        assert book.used == []
        assert not {"client", "tier", "budget_bytes", "step_s", "round_s"} & vars(view).keys()

    def test_who_is_there_needs_no_prices(self) -> None:
        view, fleet, book = self.view()
        assert len(view.client) == CLIENTS - 1
        assert view.num_samples.sum() == DEALT.sizes.sum() - len(DEALT[1])
        assert book.used == []
        assert fleet.used == ["available"]

    def test_each_kind_of_client_is_priced_once(self) -> None:
        view, _, book = self.view()
        for _ in range(3):
            assert len(view.step_s) == CLIENTS - 1
            assert len(view.round_s) == CLIENTS - 1
        assert book.used.count("step_s") == 2


def test_devices_of_the_tests_differ() -> None:
    assert len({shop().ladder.kernel_s(name) for name in DEVICES}) == 2
