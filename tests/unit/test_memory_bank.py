"""Exemplars: herding, lists that lose their tails, bytes to the last one, batches of both, what the server knows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.memory_parts import bank_bytes, bank_of, memory_net, whole_of
from tests.scene_parts import same_tensors, update_of

from fedhybrid.errors import ConfigError
from fedhybrid.methods.knn import Knn
from fedhybrid.methods.memory_bank import Bank, Holding, Ledger, StepName, herded, room_for
from fedhybrid.methods.mtn import Mtn
from fedhybrid.methods.replay import Replay
from fedhybrid.protocols import ServerState
from fedhybrid.tree import tensors_of, total_bytes


def features(count: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn + 1.0, dim=1)


@given(count=st.integers(1, 25), seed=st.integers(0, 50))
@settings(max_examples=30)
def test_herding_takes_what_brings_the_mean_nearest(count: int, seed: int) -> None:
    rows = features(20, seed)
    order = herded(rows, count).tolist()
    assert len(set(order)) == len(order) == min(count, 20)
    wanted = rows.double().mean(dim=0)
    for number in range(1, len(order) + 1):
        before = rows[order[: number - 1]].double().sum(dim=0)
        best = min(
            float((wanted - (before + rows[other].double()) / number).norm())
            for other in range(20)
            if other not in order[: number - 1]
        )
        assert float((wanted - rows[order[:number]].double().mean(dim=0)).norm()) == pytest.approx(best, abs=1e-9)


def test_fewer_are_the_first_of_more() -> None:
    rows = features(50, 7)
    assert herded(rows, 20)[:10].tolist() == herded(rows, 10).tolist()


def test_a_bank_that_shrinks_drops_the_tails() -> None:
    bank = bank_of([4, 4, 4, 7, 7, 2])
    small = bank.first(2)
    assert small.labels.tolist() == [4, 4, 7, 7, 2]
    assert small.inputs[:, 0, 0, 0].tolist() == [0, 1, 3, 4, 5]
    assert small.counts == {2: 1, 4: 2, 7: 2}
    assert bank.first(3).labels.tolist() == bank.labels.tolist()


def test_bytes_are_those_of_the_formula() -> None:
    bank = bank_of([4, 4, 4, 7, 7, 2])
    state = bank.as_state()
    held = total_bytes({n: t for n, t in state.items() if not n.endswith("/at")})
    assert held == 6 * (8 * 8 * 4 + 2 * 8 + 8) == bank_bytes([3, 2, 1], input_bytes=256, width=8)
    again = Bank.of_state(state)
    assert again is not None
    assert same_tensors(again.as_state(), state)
    assert Bank.of_state({}) is None


def test_a_steps_memory_is_the_bank_in_places() -> None:
    bank = bank_of([4, 4, 7, 2])
    places = bank.places([7, 4, 2], 3)
    assert places.tolist() == [3, 4, 0, 6]
    buffers = bank.buffers(places, 9, inputs=True)
    assert buffers["memory.labels"].tolist() == [7, -1, -1, 4, 4, -1, 2, -1, -1]
    assert torch.equal(buffers["memory.features"][places], bank.features)
    assert torch.equal(buffers["memory.inputs"][places], bank.inputs)
    assert total_bytes(buffers) == bank_bytes([3, 3, 3], input_bytes=256, width=8)


@pytest.mark.parametrize(("seen", "each"), [(2, 20), (6, 20), (10, 7)])
def test_the_step_holds_room_for_all_of_them(seen: int, each: int) -> None:
    """Its buffers take what the formula says, beside eight bytes a class and a sample of the batch."""
    method = Mtn(exemplars=each, dim=16)
    net = memory_net()
    for kind, batch in (("look", 0), ("learn", 8)):
        made = method.submodel(whole_of(net), str(StepName(kind=kind, seen=seen, each=each, batch=batch)))
        own = tensors_of(made.module)
        held = {name: tensor for name, tensor in own.items() if name.startswith("memory.")}
        assert total_bytes(held) == bank_bytes([each] * seen, input_bytes=32 * 32 * 4, width=net.width)
    assert own["grown.head"].shape == (seen, net.width)
    assert own["grown.tokens"].shape == (seen, 16)
    assert own["own"].shape == (8,)


def test_a_total_is_shared_out() -> None:
    assert [room_for(20, 0, seen) for seen in (1, 5, 10)] == [20, 20, 20]
    assert [room_for(20, 100, seen) for seen in (1, 3, 10, 200)] == [100, 33, 10, 1]
    assert Replay(exemplars=20, least_exemplars=3).rules.ladder(4) == (20, 10, 5)
    assert Replay(exemplars=20).rules.ladder(4) == (20,)
    assert Replay(total_exemplars=40, least_exemplars=1).rules.ladder(10) == (4, 2, 1)


def test_positions_end_with_their_task() -> None:
    bank = bank_of([4, 7, 7], at=[-1, 3, 9])
    assert bank.forgetting_positions().at.tolist() == [-1, -1, -1]
    assert bank.without([7]).labels.tolist() == [4]
    assert bank.and_also(bank_of([1], at=[5])).at.tolist() == [-1, 3, 9, 5]


@given(
    kind=st.sampled_from(["look", "learn", "keep", "tune"]),
    seen=st.integers(1, 1000),
    each=st.integers(1, 1000),
    batch=st.integers(0, 512),
)
def test_names_are_read_back(kind: str, seen: int, each: int, batch: int) -> None:
    name = StepName(kind=kind, seen=seen, each=each, batch=batch)
    assert StepName.read(str(name)) == name


class TestLedger:
    def test_the_encoder_before_a_task_is_the_one_that_the_task_found(self) -> None:
        def look(task: int, *clients: int) -> list[Any]:
            said = Holding(samples=5, counts={3: 2, 7: 4}, task=task).as_metrics()
            return [replace(update_of({}, client=c), kind="look", metrics=said) for c in clients]

        weights = {"encoder.w": torch.tensor([1.0]), "scale": torch.tensor(2.0)}
        ledger = Ledger().looked(weights, look(0, 1, 2))
        assert ledger.before == {}  # nothing was there before the first
        later = {"encoder.w": torch.tensor([5.0]), "scale": torch.tensor(2.0)}
        ledger = ledger.looked(later, look(1, 2, 3))
        assert ledger.before["w"].item() == 5.0
        assert ledger.holders == {2, 3}
        moved = {"encoder.w": torch.tensor([6.0]), "scale": torch.tensor(2.0)}
        ledger = ledger.looked(moved, look(1, 1)).trained([update_of({}, client=1)])
        assert ledger.before["w"].item() == 5.0
        assert ledger.holders == {1, 2, 3}
        assert ledger.held[1] == Holding(samples=5, counts={3: 2, 7: 4}, task=1)
        again = Ledger.of(ledger.as_extra())
        assert (again.task, again.holders, again.held) == (1, ledger.holders, ledger.held)
        assert same_tensors(again.before_tensors(), {"before.w": torch.tensor([5.0])})

    def test_what_clients_hold_is_known_until_they_look_again(self) -> None:
        """Also of those who were not in the last round, and of who has given up the tails of its lists."""

        def look(client: int, counts: dict[int, int]) -> Any:
            said = Holding(samples=9, counts=counts, task=0).as_metrics()
            return replace(update_of({}, client=client), kind="look", metrics=said)

        ledger = Ledger().looked({}, [look(1, {0: 5, 1: 2}), look(2, {0: 3})]).looked({}, [look(3, {4: 1})])
        gave_up = replace(update_of({}, client=1), metrics=Ledger.cut_to(3))
        held = Ledger.of(ledger.trained([gave_up, update_of({}, client=3)]).as_extra()).held
        assert {client: dict(holding.counts) for client, holding in held.items()} == {
            1: {0: 3, 1: 2}, 2: {0: 3}, 3: {4: 1}
        }  # fmt: skip
        assert [held[1].exemplars(2), held[1].exemplars(9), held[1].exemplars(2, without=[0])] == [4, 5, 2]
        assert held[3].exemplars(9, without=[4]) == 0

    def test_nothing_is_known_at_first(self) -> None:
        assert Ledger.of({}).task == -1


def test_rows_are_averaged_over_those_who_hold_the_class() -> None:
    """A row that nobody holds stays; everything else is averaged over all."""
    before = {"rows.head": torch.zeros(3, 2), "scale": torch.tensor(1.0)}
    mine, other = torch.full((3, 2), 4.0), torch.full((3, 2), 8.0)

    def mask(*rows: int) -> torch.Tensor:
        made = torch.zeros(3, 2, dtype=torch.bool)
        made[list(rows)] = True
        return made

    updates = [
        update_of({"rows.head": mine, "scale": torch.tensor(3.0)}, {"rows.head": mask(0, 1)}, num_samples=10),
        update_of({"rows.head": other, "scale": torch.tensor(7.0)}, {"rows.head": mask(1)}, client=1, num_samples=30),
    ]
    after = Mtn().aggregate(ServerState(weights=before), updates).weights
    assert after["rows.head"].tolist() == [[4.0, 4.0], [7.0, 7.0], [0.0, 0.0]]
    assert after["scale"].item() == 6.0


class TestOptions:
    def test_all_problems_at_once(self) -> None:
        with pytest.raises(ConfigError) as caught:
            Mtn(exemplars=0, least_exemplars=-1, neighbours=-1, dim=6, dropout=1.0, memory_weight=-1.0,
                distillation=math.nan, tune_epochs=-1, tune_lr_ratio=0.0, scale=-3.0)  # fmt: skip
        words = " ".join(caught.value.problems)
        assert len(caught.value.problems) == 10
        for name in ("exemplars", "least_exemplars", "neighbours", "heads", "dropout", "memory_weight", "distillation",
                     "tune_epochs", "tune_lr_ratio", "scale"):  # fmt: skip
            assert name in words

    @pytest.mark.parametrize("options", [{"neighbours": 0}, {"temperature": 0.0}, {"total_exemplars": -1}])
    def test_a_vote_needs_voters(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            Knn(**options)

    def test_replay_has_no_reader(self) -> None:
        with pytest.raises(ConfigError):
            Replay(scale=0.0)
        assert not Replay().is_personal
        assert Mtn().is_personal
        assert not Mtn(neighbours=0).is_personal
