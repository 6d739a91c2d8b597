"""What the server takes from clients that send more, or other, than they were asked for."""

from __future__ import annotations

import sys

import pytest
import torch
from tests.elastic_parts import StepCosts
from tests.scene_parts import same_tensors, update_of
from torch import nn

from fedhybrid.methods import FedEL
from fedhybrid.methods.elastic import Notes
from fedhybrid.models.exits import exit_names, layout_of
from fedhybrid.protocols import RoundPlan, ServerState
from fedhybrid.records import LocalWork
from fedhybrid.tree import Tensors, tensors_of

HUGE = sys.float_info.max
FIRST, LAST = 1, 2  # the window of client 0; the model has three parts


@pytest.fixture
def server() -> ServerState:
    """After a probe of client 0."""
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(2)]
    model = FedEL().adapt(nn.Sequential(*parts, nn.Linear(4, 2)), torch.randn(2, 4))
    probe = update_of({}, kind="probe", metrics={"window/first": float(FIRST), "window/last": float(LAST)})
    return FedEL().aggregate(FedEL().init(tensors_of(model)), [probe])


def moved(server: ServerState) -> Tensors:
    """Every tensor of the model, the layout as zeros."""
    return {n: torch.zeros_like(t) if n == "exits.layout" else t + 1 for n, t in server.weights.items()}


def test_only_what_a_task_asks_for_is_averaged(server: ServerState) -> None:
    after = FedEL().aggregate(server, [update_of(moved(server))])
    layout = layout_of(server.weights)
    assert layout is not None
    assert layout_of(after.weights) == layout
    changed = {name for name, tensor in after.weights.items() if not torch.equal(tensor, server.weights[name])}
    buffers = {name for name, part in layout.buffers.items() if part <= LAST}
    assert changed == {*layout.within(FIRST, LAST), *exit_names(LAST), *buffers}
    assert buffers
    assert Notes.read(after.extra, list(layout.params)).trained == {0: (LAST, FIRST)}


def test_an_update_of_nothing_that_was_asked_for_changes_nothing(server: ServerState) -> None:
    layout = layout_of(server.weights)
    assert layout is not None
    everything = moved(server)
    behind = {name: everything[name] for name in ("exits.layout", "2.weight", *exit_names(1))}
    masks = {"2.weight": torch.ones(2, 4, dtype=torch.bool)}
    uninvited = update_of(everything, client=5)  # was not probed
    after = FedEL().aggregate(server, [update_of(behind, masks), uninvited])
    assert same_tensors(after.weights, server.weights)
    assert Notes.read(after.extra, list(layout.params)).trained == {}


@pytest.mark.parametrize("told", [(0.0, 2.0), (-1.0, 2.0), (2.0, 1.0), (1.0, HUGE), (-HUGE, HUGE), (1.0, 99.0)])
def test_a_window_that_is_none_is_not_believed(server: ServerState, told: tuple[float, float]) -> None:
    figures = {"window/first": told[0], "window/last": told[1]}
    after = FedEL().aggregate(server, [update_of({}, kind="probe", metrics=figures)])
    layout = layout_of(server.weights)
    assert layout is not None
    assert Notes.read(after.extra, list(layout.params)).probed == {}


def test_huge_importance_of_one_client_decides_for_no_other() -> None:
    """Client 3 tells the largest numbers there are; what client 2 trains is the same without them."""
    method = FedEL()
    costs = StepCosts(method)
    start = method.init(tensors_of(costs.whole.module))
    layout = layout_of(start.weights)
    assert layout is not None

    def chosen(**figures: float) -> dict[int, tuple[str, ...]]:
        window = {"window/first": 1.0, "window/last": 3.0}
        modest = dict.fromkeys(layout.params, 0.5)
        probes = [
            update_of({}, client=client, kind="probe", metrics={**modest, **more, **window})
            for client, more in ((2, {}), (3, figures))
        ]
        plan = RoundPlan(
            round_index=0,
            cohort=(2, 3),
            plans={},
            work=LocalWork(batch_size=16, lr=0.05, epochs=1),
            run_seed=1,
            draw=0,
            costs=costs,
        )
        tasks = method.assign(method.aggregate(start, probes), plan)
        return {task.client: tuple(task.options["trained"]) for task in tasks}

    plain = chosen()
    names = layout.within(1, 3)
    for sign in (1.0, -1.0):
        spoilt = chosen(**dict.fromkeys(names, sign * HUGE))
        assert spoilt[2] == plain[2]
        assert spoilt[3]
