"""TEASQ-Fed's parts: the merge and its limits, the codec at each rung, downloads as differences, ladder and search."""

from __future__ import annotations

import dataclasses
import math
from typing import cast

import pytest
import torch
from tests.scene_parts import same_tensors, small_task, update_of

from fedhybrid.engine.traffic import Traffic
from fedhybrid.errors import ConfigError
from fedhybrid.methods import METHODS, FedAsync, FedAvg, TeaFed, TeasqFed
from fedhybrid.methods.teasq import NO_COMPRESSION, Strength, parse_ladder, search_strength
from fedhybrid.models import build_model
from fedhybrid.protocols import Costs, RoundPlan, ServerState
from fedhybrid.records import ClientTask, LocalWork, Update
from fedhybrid.tree import Tensors, buffers_of, tensors_of, total_bytes
from fedhybrid.updates import Pipeline, parse_pipeline

SHAPES = {"conv.weight": (64, 32, 3, 3), "conv.bias": (1000,), "head.weight": (10, 4096)}
STATISTICS = "norm.running_var"
RUNGS = ("0.1/4", "0.25/8", "0.5/8", "0.75/16")


def model(seed: int, *, scale: float = 1.0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def near(weights: Tensors, seed: int, by: float = 0.01) -> Tensors:
    return {name: tensor + by * model(seed)[name] for name, tensor in weights.items()}


def updates_of(count: int, *, ages: tuple[int, ...] = (0,), version: int = 10) -> list[Update]:
    return [
        update_of(model(7 + n), client=n, num_samples=10 + 7 * n, round_index=version - ages[n % len(ages)])
        for n in range(count)
    ]


def links_of(method: TeasqFed) -> Traffic:
    return Traffic(
        down=Pipeline(), up=Pipeline(), differences=method.differences, run_seed=1, transport=method.transport
    )


def static(start: str, **options: object) -> TeasqFed:
    return TeasqFed(start=start, weaker_every=0, **options)  # type: ignore[arg-type]


class TestMerge:
    def test_by_hand(self) -> None:
        """Two models, one of them three merges old: s = 1 and 1/2, samples 3 and 2, alpha_t = 0.6 / sqrt(2.5)."""
        server = ServerState(weights={"w": torch.tensor([2.0])}, version=5)
        sent = [
            update_of({"w": torch.tensor([6.0])}, num_samples=3, round_index=5),
            update_of({"w": torch.tensor([-2.0])}, client=1, num_samples=2, round_index=2),
        ]
        cached, share = (3 * 6.0 - 1 * 2.0) / 4, 0.6 / math.sqrt(2.5)
        for method in (TeaFed(), TeasqFed()):
            found = method.aggregate(server, sent).weights["w"].item()
            assert found == pytest.approx((1 - share) * 2.0 + share * cached, rel=1e-6)

    @pytest.mark.parametrize("age", [0, 1, 4, 9])
    def test_one_cached_model_is_fedasync_to_the_bit(self, age: int) -> None:
        server = ServerState(weights=model(1), version=10)
        (update,) = updates_of(1, ages=(age,))
        expected = FedAsync(mixing=0.6, staleness="polynomial", exponent=0.5).aggregate(server, [update]).weights
        for method in (TeaFed(), TeasqFed()):
            assert same_tensors(method.aggregate(server, [update]).weights, expected)

    @pytest.mark.parametrize("age", [0, 3])
    def test_all_models_of_one_age_with_full_weight_are_fedavg(self, age: int) -> None:
        server, sent = ServerState(weights=model(1), version=10), updates_of(6, ages=(age,))
        expected = FedAvg().aggregate(server, sent).weights
        for method in (TeaFed(mixing=1.0, exponent=0.0), TeasqFed(mixing=1.0, exponent=0.0)):
            found = method.aggregate(server, sent).weights
            assert all((found[name] - expected[name]).abs().max() < 1e-6 for name in expected)

    def test_older_models_count_less(self) -> None:
        server = ServerState(weights={"w": torch.zeros(1)}, version=10)
        fresh = [update_of({"w": torch.tensor([v])}, client=n, round_index=10) for n, v in enumerate((1.0, -1.0))]
        stale = [fresh[0], dataclasses.replace(fresh[1], round_index=2)]
        assert TeaFed().aggregate(server, fresh).weights["w"].item() == pytest.approx(0.0, abs=1e-7)
        assert TeaFed().aggregate(server, stale).weights["w"].item() > 0.05


@pytest.mark.parametrize("start", RUNGS)
class TestCodec:
    """What a rung of the ladder does to an upload, seen at the engine's links."""

    def sent(self, start: str, *, rounding: str = "nearest") -> tuple[Tensors, Tensors, int]:
        """What was meant to be sent, what came (both as differences), and the bytes."""
        links = links_of(static(start, rounding=rounding, up="raw"))
        task = small_task(0, weights=model(1))
        meant = model(2)
        delivery = links.packed(update_of(meant), task, {})
        return meant, links.unpacked(delivery, task).weights, links.bytes_up(delivery)

    def test_exactly_so_many_are_not_zero(self, start: str) -> None:
        meant, came, _ = self.sent(start)
        ratio = parse_ladder(start)[0].ratio
        for name, tensor in came.items():
            kept = math.ceil(ratio * tensor.numel())
            # A value at the level zero would count as none; these tensors have no kept value so small.
            assert int(tensor.count_nonzero()) == kept
            least = meant[name].abs().flatten().sort(descending=True).values[kept - 1]
            assert bool((meant[name].abs()[tensor != 0] >= least).all())

    def test_error_is_at_most_half_a_step(self, start: str) -> None:
        meant, came, _ = self.sent(start)
        bits = parse_ladder(start)[0].bits
        for name, tensor in came.items():
            there = tensor != 0
            values = meant[name][there].double()
            step = float(values.max() - values.min()) / (2**bits - 1)
            rounding = 1e-6 * float(values.abs().max())  # of 32-bit floats
            assert float((tensor[there].double() - values).abs().max()) <= step / 2 + rounding

    def test_bytes_are_those_of_the_formula(self, start: str) -> None:
        _, _, num_bytes = self.sent(start)
        ratio, bits = parse_ladder(start)[0].ratio, parse_ladder(start)[0].bits
        formula_bits = 0.0
        for shape in SHAPES.values():
            total = math.prod(shape)
            kept = math.ceil(ratio * total)
            formula_bits += kept * bits + min(kept * math.ceil(math.log2(total)), total) + 64
        assert num_bytes == pytest.approx(formula_bits / 8, rel=0.02)

    def test_stochastic_rounding_is_within_a_step_and_right_on_average(self, start: str) -> None:
        bits = parse_ladder(start)[0].bits
        meant, came, _ = self.sent(start, rounding="stochastic")
        name = "head.weight"
        there = came[name] != 0
        values, off = meant[name][there].double(), (came[name] - meant[name])[there].double()
        step = float(values.max() - values.min()) / (2**bits - 1)
        assert float(off.abs().max()) <= step + 1e-6 * float(values.abs().max())
        assert abs(float(off.mean())) <= 5 * step / math.sqrt(len(off))


@pytest.mark.parametrize("way", [{"up": "raw", "down": "raw"}, {}, {"error_feedback": True}])
def test_without_compression_every_bit_arrives(way: dict[str, object]) -> None:
    links = links_of(static("1/32", **way))
    task = small_task(0, weights=model(1))
    assert links.sent_down(task.weights, version=0) == (task.weights, total_bytes(task.weights))
    delivery = links.packed(update_of(model(2)), task, {})
    assert links.bytes_up(delivery) == total_bytes(task.weights)
    assert same_tensors(links.unpacked(delivery, task).weights, model(2))


class TestDownloads:
    def assigned(self, method: TeasqFed, server: ServerState, *clients: int) -> list[ClientTask]:
        plan = RoundPlan(
            round_index=server.version,
            cohort=clients,
            plans=dict.fromkeys(clients),
            work=LocalWork(epochs=1, batch_size=4, lr=0.1),
            run_seed=3,
            draw=server.version,
            costs=cast(Costs, None),
        )
        return method.assign(server, plan)

    def after_one(self, method: TeasqFed) -> tuple[ServerState, Update]:
        """Client 2 has uploaded something; statistics are among the tensors."""
        weights = {**model(1), STATISTICS: torch.rand(32)}
        server = dataclasses.replace(method.init(weights), buffers=frozenset({STATISTICS}))
        update = update_of({**near(model(1), 2), STATISTICS: torch.rand(32)}, client=2, round_index=0)
        after = method.aggregate(server, [update])
        return dataclasses.replace(after, version=1, buffers=server.buffers), update

    def test_newcomers_get_the_whole_model_as_it_is(self) -> None:
        server, _ = self.after_one(static("0.25/8"))
        one, other = self.assigned(static("0.25/8"), server, 0, 5)
        assert one.weights is other.weights is server.weights
        assert one.sent_bytes is None

    def test_others_get_the_difference_to_what_they_have_uploaded(self) -> None:
        method = static("0.25/8")
        server, update = self.after_one(method)
        (task,) = self.assigned(method, server, 2)
        for name, shape in SHAPES.items():
            changed = task.weights[name] != update.weights[name]
            assert int(changed.sum()) <= math.ceil(0.25 * math.prod(shape))
            before = (server.weights[name] - update.weights[name]).norm()
            assert (server.weights[name] - task.weights[name]).norm() < 0.7 * before
        assert torch.equal(task.weights[STATISTICS], server.weights[STATISTICS])

    def test_their_bytes_are_those_of_an_upload_and_the_statistics(self) -> None:
        method = static("0.25/8")
        server, _ = self.after_one(method)
        (task,) = self.assigned(method, server, 2)
        trained = {name: server.weights[name] for name in SHAPES}
        assert task.sent_bytes == links_of(method).expected_bytes(trained)[1] + 4 * 32
        assert task.sent_bytes < total_bytes(server.weights) / 8

    def test_at_the_ladders_end_they_get_the_model_to_the_bit(self) -> None:
        server, _ = self.after_one(TeasqFed(start="0.75/16", weaker_every=1))
        (task,) = self.assigned(TeasqFed(start="0.75/16", weaker_every=1), server, 2)
        assert task.weights is server.weights
        assert task.sent_bytes is None

    @pytest.mark.parametrize("down", ["raw", "whole"])
    def test_other_ways_remember_nothing(self, down: str) -> None:
        method = static("0.25/8", down=down)
        server, _ = self.after_one(method)
        assert server.extra == {}
        task, other = self.assigned(method, server, 2, 4)
        assert task.weights is other.weights, "packed once for everybody"
        assert (task.weights is server.weights) == (task.sent_bytes is None) == (down == "whole")
        assert (int(task.weights["head.weight"].count_nonzero()) == 10240) == (down == "raw")

    @pytest.mark.parametrize("down", ["raw", "difference"])
    def test_statistics_of_batch_norm_go_down_as_they_are(self, down: str) -> None:
        net = build_model("resnet20", input_shape=(1, 32, 32), classes=10, seed=0, options={"width": 0.25})
        generator = torch.Generator().manual_seed(5)
        weights = {
            name: 0.5 + torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor + 3
            for name, tensor in tensors_of(net).items()
        }
        buffers = buffers_of(net)
        assert any("running_var" in name for name in buffers)
        method = static("0.1/4", down=down)
        server = dataclasses.replace(method.init(weights), buffers=buffers)
        sent = {name: tensor + 0.25 if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
        after = method.aggregate(server, [update_of(sent, client=2)])
        server = dataclasses.replace(after, version=1, buffers=buffers)
        (task,) = self.assigned(method, server, 2)
        assert all(torch.equal(task.weights[name], server.weights[name]) for name in buffers)
        assert not any(torch.equal(task.weights[name], server.weights[name]) for name in weights.keys() - buffers)
        trained = {name: server.weights[name] for name in weights.keys() - buffers}
        packed = parse_pipeline(method.strengths.at(1).tables(rounding="nearest"), where="down").expected_bytes(trained)
        assert task.sent_bytes == packed + total_bytes({name: weights[name] for name in buffers})


class TestLadder:
    def test_compression_decays_by_a_rung_every_few_merges(self) -> None:
        method = TeasqFed(start="0.25/8", weaker_every=20)
        found = [str(method.strengths.at(version)) for version in (0, 19, 20, 40, 59, 60, 10_000)]
        assert found == ["0.25/8", "0.25/8", "0.5/8", "0.75/16", "0.75/16", "1/32", "1/32"]
        sizes = [links_of(method).expected_bytes(model(1), version=version)[1] for version in range(0, 80, 20)]
        assert sizes == sorted(sizes)
        assert sizes[-1] == total_bytes(model(1)) > 9 * sizes[0]

    @pytest.mark.parametrize("start", ["0.250/8", ".25/8", "25e-2/08"])
    def test_the_start_is_found_by_its_value(self, start: str) -> None:
        assert static(start).strengths == static("0.25/8").strengths

    def test_static_stays(self) -> None:
        assert str(static("0.1/4").strengths.at(10_000)) == "0.1/4"

    def test_options_are_checked_together(self) -> None:
        with pytest.raises(ConfigError) as caught:
            TeasqFed(
                mixing=0.0,
                exponent=-1.0,
                mu=math.nan,
                ladder="0.1/4 2/8 0.5 1/33",
                weaker_every=-1,
                up="weights",
                down="delta",
                rounding="up",
            )
        told = "\n".join(caught.value.problems)
        assert len(caught.value.problems) == 10, told
        for part in ("mixing", "exponent", "mu", "2/8", "'0.5'", "1/33", "weaker_every", "up", "down", "rounding"):
            assert part in told

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"start": "0.3/8"}, "start must be one of the ladder's strengths, 0.1/4, 0.25/8, 0.5/8, 0.75/16, 1/32"),
            ({"start": "strong"}, "start: a strength is ratio/bits such as 0.25/8, got 'strong'"),
            ({"ladder": ""}, "ladder needs at least one strength"),
            ({"ladder": "0.5/8 0.25/8"}, "from strong to weak"),
            ({"up": "raw", "error_feedback": True}, "error_feedback is for differences"),
        ],
    )
    def test_each_wrong_option_is_told(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            TeasqFed(**options)  # type: ignore[arg-type]

    def test_tea_fed_has_the_same_merge_options(self) -> None:
        with pytest.raises(ConfigError) as caught:
            METHODS["tea-fed"](mixing=1.5, exponent=math.inf, mu=-1.0)
        assert len(caught.value.problems) == 3


class TestSearch:
    RUNGS = parse_ladder("0.1/4 0.25/8 0.5/8 1/32")

    def found(self, accuracies: dict[str, float], most_loss: float) -> tuple[list[str], list[str]]:
        asked: list[str] = []

        def accuracy_of(strength: Strength) -> float:
            asked.append(str(strength))
            return accuracies[str(strength)]

        trials = search_strength(self.RUNGS, accuracy_of, most_loss=most_loss)
        return [str(trial.strength) for trial in trials], asked

    def test_stops_at_the_first_that_is_good_enough(self) -> None:
        accuracies = {"0.1/4": 0.5, "0.25/8": 0.79, "0.5/8": 0.8, "1/32": 0.81}
        assert self.found(accuracies, 0.03) == (["0.1/4", "0.25/8"], ["1/32", "0.1/4", "0.25/8"])

    def test_ends_without_compression_where_nothing_else_will_do(self) -> None:
        accuracies = {"0.1/4": 0.5, "0.25/8": 0.6, "0.5/8": 0.7, "1/32": 0.81}
        found, asked = self.found(accuracies, 0.03)
        assert found[-1] == str(NO_COMPRESSION)
        assert asked.count("1/32") == 1

    def test_a_trial_that_gains_is_good_enough(self) -> None:
        assert self.found({"0.1/4": 0.9, "1/32": 0.8}, 0.0)[0] == ["0.1/4"]
