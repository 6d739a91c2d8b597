"""What clients of different speeds and memories are offered, on the real costs of a small network."""

from __future__ import annotations

import math
from functools import cache

import pytest
from tests.elastic_parts import SLOWNESS, StepCosts

from fedhybrid.errors import ConfigError
from fedhybrid.methods import METHODS, ElasticTrainer, FedEL
from fedhybrid.methods.elastic import AbstractElastic, Offers
from fedhybrid.methods.elastic.offers import Offer
from fedhybrid.models.exits import Layout, layout_of
from fedhybrid.tree import tensors_of

SLOWEST = len(SLOWNESS) - 1
Swept = list[tuple[Offer, Offer]]


@cache
def costs_of(*, window: bool) -> StepCosts:
    """Capturing steps is what takes time: one for all methods of the same submodels."""
    return StepCosts(FedEL() if window else ElasticTrainer())


def offers_of(method: AbstractElastic, budgets: tuple[int, ...] | None = None) -> Offers:
    costs = costs_of(window=method.rules.window)
    if budgets is not None:
        costs = StepCosts(costs.method, budgets, costs.prepared)
    layout = layout_of(tensors_of(costs.whole.module))
    assert layout is not None
    return Offers(rules=method.rules, layout=layout, costs=costs)


def values_of(layout: Layout) -> dict[str, float]:
    """Every tensor is worth the same."""
    return dict.fromkeys(layout.params, 1.0)


def sweep(offers: Offers, client: int, rounds: int) -> Swept:
    """Probe and training of so many rounds, as the server keeps track of them."""
    before, done = (0, 1), []
    for _ in range(rounds):
        probe = offers.probe(client, before)
        assert probe is not None
        training = offers.training(
            client, probe.window, values_of(offers.layout), probe=offers.probe_name(probe.window)
        )
        assert training is not None
        before = probe.window[1], min(offers.layout.params[name] for name in training.trained)
        done.append((probe, training))
    return done


def test_the_fastest_client_trains_everything() -> None:
    offers = offers_of(FedEL())
    for probe, training in sweep(offers, 0, 2):
        assert probe.window == (1, offers.layout.last)
        assert set(training.trained) == set(offers.layout.params)
        assert training.quote.step_s == pytest.approx(offers.limit_s)


@pytest.mark.parametrize("client", [1, 2, SLOWEST])
def test_every_step_keeps_to_the_time(client: int) -> None:
    offers = offers_of(FedEL())
    assert offers.limit_s == offers.costs.quote(0).step_s
    for _, training in sweep(offers, client, 4):
        assert training.quote.step_s <= offers.limit_s * 1.001
        assert training.quote.step_s >= 0.5 * offers.limit_s  # and makes use of it


def test_the_slowest_client_reaches_the_input_by_its_window_and_not_without() -> None:
    """Within one sweep it has updated a tensor in the first third of the parts; ElasticTrainer never does."""

    def reached(method: AbstractElastic) -> set[int]:
        offers = offers_of(method)
        return {offers.layout.params[n] for _, training in sweep(offers, SLOWEST, 4) for n in training.trained}

    third = math.ceil(offers_of(FedEL()).layout.last / 3)
    assert min(reached(FedEL())) <= third
    assert min(reached(ElasticTrainer())) > third


def test_windows_slide_and_begin_again() -> None:
    offers = offers_of(FedEL())
    windows = [probe.window for probe, _ in sweep(offers, 1, 5)]
    assert windows[0][0] == 1
    assert windows[1][1] > windows[0][1]
    assert len(set(windows)) < len(windows)
    behind = offers_of(FedEL(variant="c"))
    for (before, _), (after, _) in zip(sweep(behind, 1, 4), sweep(behind, 1, 4)[1:], strict=False):
        assert after.window[0] in (1, before.window[1] + 1)


def test_a_window_whose_forward_pass_takes_too_long_is_trained_only_if_asked_for() -> None:
    patient, late = offers_of(FedEL()), offers_of(FedEL(overrun=True))
    last = patient.layout.last
    assert max(probe.window[1] for probe, _ in sweep(patient, SLOWEST, 4)) < last
    overrun = [training for probe, training in sweep(late, SLOWEST, 4) if probe.window[1] == last]
    assert overrun
    assert len(overrun[0].trained) == 1
    assert overrun[0].quote.step_s > late.limit_s


@pytest.mark.parametrize("variant", ["", "c"])
def test_a_slide_that_begins_again_keeps_to_the_time_too(variant: str) -> None:
    offers = offers_of(FedEL(time_ratio=0.5, variant=variant))
    for client in (2, SLOWEST):
        swept = sweep(offers, client, 3)
        assert swept[1][0].window == (1, 1)  # a part more would be too late
        assert all(training.quote.step_s <= offers.limit_s * 1.001 for _, training in swept)


def test_with_no_window_in_time_the_shortest_is_trained_late() -> None:
    offers = offers_of(FedEL(time_ratio=0.01))
    for probe, training in sweep(offers, SLOWEST, 2):
        assert probe.window == (1, 1)
        assert len(training.trained) == 1


def test_a_device_that_never_has_the_time_for_a_further_part_stays_at_the_input() -> None:
    offers = offers_of(FedEL())
    windows = {probe.window for probe, _ in sweep(offers, SLOWEST, 3)}
    assert len(windows) == 1
    first, last = windows.pop()
    assert first == 1
    further = offers.costs.tensor_times(SLOWEST, offers.probe_name((last + 1, last + 1)))
    assert further.forward_s > offers.limit_s


def test_tensors_that_do_not_fit_are_left_out_the_lowest_first() -> None:
    roomy = offers_of(FedEL())
    probe, training = sweep(roomy, 0, 1)[0]
    budget_bytes = int(0.7 * roomy.costs.quote(0, training.submodel).peak_bytes)
    tight = offers_of(FedEL(), (budget_bytes,) * len(SLOWNESS))
    held = tight.training(0, probe.window, values_of(tight.layout), probe=tight.probe_name(probe.window))
    assert held is not None
    assert held.quote.peak_bytes <= budget_bytes
    order = [name for name in tight.costs.tensor_times(0).names if name in training.trained]
    assert list(held.trained) == [name for name in order[-len(held.trained) :] if name in held.trained]


def test_who_can_hold_nothing_gets_nothing() -> None:
    offers = offers_of(FedEL(), (1000,) * len(SLOWNESS))
    assert offers.probe(0, (0, 1)) is None
    window = (1, offers.layout.last)
    assert offers.training(0, window, values_of(offers.layout), probe=offers.probe_name(window)) is None


def test_a_probe_that_does_not_fit_begins_later() -> None:
    whole = offers_of(ElasticTrainer()).probe(0, (0, 1))
    assert whole is not None
    assert whole.window[0] == 1
    tight = offers_of(ElasticTrainer(), (int(0.6 * whole.quote.peak_bytes),) * len(SLOWNESS))
    held = tight.probe(0, (0, 1))
    assert held is not None
    assert 1 < held.window[0] <= held.window[1] == tight.layout.last
    assert held.quote.peak_bytes <= tight.costs.budget_bytes(0)


def test_full_scope_asks_through_the_whole_depth() -> None:
    offers = offers_of(FedEL(importance_scope="full"))
    probe = offers.probe(SLOWEST, (0, 1))
    assert probe is not None
    assert set(probe.trained) == set(offers.layout.params)
    assert probe.window[1] < offers.layout.last


def test_a_longer_time_lets_slow_clients_train_more() -> None:
    short, long = (sweep(offers_of(FedEL(time_ratio=ratio)), 2, 1)[0][0].window[1] for ratio in (0.8, 2.0))
    assert short < long


def test_options_are_checked_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        FedEL(beta=1.5, time_ratio=0.0, variant="d", importance_scope="all", mu=-1.0)
    assert [problem.split()[0] for problem in caught.value.problems] == [
        "beta",
        "time_ratio",
        "variant",
        "importance_scope",
        "mu",
    ]
    with pytest.raises(ConfigError, match="time_ratio"):
        METHODS["elastic-trainer"](time_ratio=-1.0)  # type: ignore[call-arg]
