"""What every memory predictor of `PREDICTORS` obeys, and what FedHybrid's is worth."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedhybrid.errors import ConfigError
from fedhybrid.fleet import (
    PREDICTORS,
    FixedFraction,
    MemoryTraces,
    Predictor,
    RunningMinimum,
    State,
    TraceSpec,
    equal_fraction,
    make_predictor,
    make_traces,
    promises_at_samples,
    replay,
)

GIB = 2**30


@pytest.fixture(scope="module")
def traces() -> MemoryTraces:
    return make_traces(TraceSpec(duration_s=3600.0), np.full(20, 4 * GIB), seed=5)


def steady(bytes_of: list[int], samples: int = 60) -> MemoryTraces:
    return MemoryTraces(period_s=1.0, available_bytes=np.repeat(np.array(bytes_of)[:, None], samples, axis=1))


def told(predictor: Predictor, traces: MemoryTraces, windows: int, state: State | None = None, skip: int = 0) -> State:
    state = predictor.init(len(traces)) if state is None else state
    for window in range(skip, skip + windows):
        for sample in range(10 * window, 10 * window + 10):
            state = predictor.observe(state, traces.available_bytes[:, sample].astype(float))
        state = predictor.close_window(state)
    return state


@pytest.mark.parametrize("name", sorted(PREDICTORS))
class TestEveryPredictor:
    def test_promises_nothing_before_it_has_seen_anything(self, name: str) -> None:
        predictor = PREDICTORS[name]()
        assert predictor.predict(predictor.init(3)).tolist() == [0, 0, 0]
        assert predictor.predict(predictor.close_window(predictor.init(3))).tolist() == [0, 0, 0]

    def test_promises_are_whole_bytes_between_nothing_and_the_most_ever_seen(
        self, name: str, traces: MemoryTraces
    ) -> None:
        found = replay(PREDICTORS[name](), traces, window_s=60.0)
        assert found.promised_bytes.dtype == np.int64
        assert found.promised_bytes.shape == (20, 60)
        assert (found.promised_bytes > 0).all()
        assert (found.promised_bytes <= traces.available_bytes.max(axis=1, keepdims=True)).all()

    def test_is_not_violated_where_nothing_changes(self, name: str) -> None:
        flat = steady([GIB, 3 * GIB])
        scores = replay(PREDICTORS[name](), flat, window_s=6.0).scores(skip_windows=0)
        assert scores.violation_ratio == 0.0

    def test_state_is_json_and_goes_on_where_it_was(self, name: str, traces: MemoryTraces) -> None:
        predictor = PREDICTORS[name]()
        state = told(predictor, traces, windows=8)
        text = json.dumps({key: array.tolist() for key, array in state.items()}, allow_nan=False)
        again = {key: np.array(numbers) for key, numbers in json.loads(text).items()}
        assert all(array.shape == (20,) for array in state.values())
        went_on = told(predictor, traces, windows=5, state=again, skip=8)
        assert predictor.predict(went_on).tolist() == predictor.predict(told(predictor, traces, windows=13)).tolist()

    def test_clients_do_not_see_each_other(self, name: str, traces: MemoryTraces) -> None:
        predictor = PREDICTORS[name]()
        some = np.array([3, 17])
        part = MemoryTraces(period_s=2.0, available_bytes=traces.available_bytes[some])
        whole = told(predictor, traces, windows=9)
        assert predictor.predict(told(predictor, part, windows=9)).tolist() == predictor.predict(whole)[some].tolist()
        assert predictor.predict({key: array[some] for key, array in whole.items()}).tolist() == (
            predictor.predict(whole)[some].tolist()
        )

    def test_a_missing_sample_changes_nothing(self, name: str, traces: MemoryTraces) -> None:
        predictor = PREDICTORS[name]()
        state = told(predictor, traces, windows=7)
        after = predictor.observe(state, np.full(20, np.nan))
        assert all(after[key].tolist() == state[key].tolist() for key in state)

    def test_what_is_given_is_not_written_to(self, name: str, traces: MemoryTraces) -> None:
        predictor = PREDICTORS[name]()
        state = told(predictor, traces, windows=7)
        before = {key: array.copy() for key, array in state.items()}
        predictor.close_window(predictor.observe(state, np.full(20, 1.0)))
        assert all((state[key] == before[key]).all() for key in before)

    def test_promises_at_samples_are_those_of_somebody_who_watched_from_the_beginning(
        self, name: str, traces: MemoryTraces
    ) -> None:
        """Told sample by sample, and asked at one sample only; windows of 4 do not divide the 18 samples."""
        part = MemoryTraces(period_s=2.0, available_bytes=traces.available_bytes[:5, 300:318])
        found = promises_at_samples(PREDICTORS[name](), part, window_s=8.0)
        assert (found.dtype, found.shape) == (np.int64, (5, 18))
        for asked in range(18):
            predictor = PREDICTORS[name]()
            state = predictor.init(5)
            for told in range(asked + 1):
                state = predictor.observe(state, part.available_bytes[:, told].astype(float))
                if told % 4 == 3:
                    state = predictor.close_window(state)
            assert found[:, asked].tolist() == predictor.predict(state).tolist()
        later = promises_at_samples(PREDICTORS[name](), part, window_s=8.0, history_samples=7)
        assert later.tolist() == found[:, 7:].tolist()

    def test_promises_at_samples_do_not_know_what_comes(self, name: str, traces: MemoryTraces) -> None:
        """Two futures after one past: the promises are the same until they part, and not after it."""
        one, other = (traces.available_bytes[:, :120].copy() for _ in range(2))
        other[:, 70:] = other[:, 70:] // 3
        found = [
            promises_at_samples(
                PREDICTORS[name](), MemoryTraces(period_s=2.0, available_bytes=each), window_s=8.0, history_samples=20
            )
            for each in (one, other)
        ]
        assert found[0][:, :50].tolist() == found[1][:, :50].tolist()
        assert (found[0][:, 50:] != found[1][:, 50:]).any(axis=1).all()

    def test_options_are_checked_by_name_and_type(self, name: str) -> None:
        assert make_predictor(name, {}) == PREDICTORS[name]()
        with pytest.raises(ConfigError, match=f"colour: predictor '{name}' has no such option. Known: "):
            make_predictor(name, {"colour": 3})
        for option, value in vars(PREDICTORS[name]()).items():
            assert make_predictor(name, {option: value}) == PREDICTORS[name]()
            with pytest.raises(ConfigError, match=f"{option} must be a .*number, got 'x'"):
                make_predictor(name, {option: "x"})
            with pytest.raises(ConfigError, match=f"{option} must be .*, got -1"):
                make_predictor(name, {option: -1})

    def test_a_million_clients_are_a_few_floats_each(self, name: str) -> None:
        predictor = PREDICTORS[name]()
        state = predictor.observe(predictor.init(1_000_000), np.full(1_000_000, 1e9))
        state = predictor.close_window(state)
        assert sum(array.nbytes for array in state.values()) <= 10 * 8 * 1_000_000
        assert (predictor.predict(state) > 0).all()


def test_baselines_are_what_they_are_called() -> None:
    falling = MemoryTraces(period_s=1.0, available_bytes=np.array([[100, 80, 60, 40]]))
    promised = {
        name: replay(PREDICTORS[name](), falling, window_s=2.0).promised_bytes.tolist() for name in sorted(PREDICTORS)
    }
    assert promised["last-value"] == [[100, 80]]
    assert promised["fixed-fraction"] == [[80, 64]]
    assert promised["average"] == [[100, 93]], "the first sample is told twice: before the window and in it"
    assert promised["running-minimum"] == [[50, 40]], "cold: half of what is available"


def test_the_margin_follows_the_quantile_of_shortfalls() -> None:
    """One window in ten falls by 40, the others by nothing: the 0.95 quantile of shortfalls is 40."""
    samples = np.full((200, 3000), 1000)
    falls = np.random.default_rng(0).random((200, 300)) < 0.1
    samples[:, 5::10] -= 400 * falls
    predictor = RunningMinimum(widening_gain=0.0, smoothing_ratio=0.0)
    state = told(predictor, MemoryTraces(period_s=1.0, available_bytes=samples), windows=300)
    assert np.median(state["safety"]) == pytest.approx(400, rel=0.25)


def test_broken_promises_widen_the_margin_and_kept_ones_narrow_it_again() -> None:
    predictor = RunningMinimum()
    calm, rough = np.full(100, 1000.0), np.tile([1000.0, 300.0, 1000.0, 1000.0, 900.0], 20)
    state = predictor.init(1)

    def windows(state: State, samples: np.ndarray) -> State:
        for start in range(0, len(samples), 5):
            for sample in samples[start : start + 5]:
                state = predictor.observe(state, np.array([sample]))
            state = predictor.close_window(state)
        return state

    state = windows(state, calm)
    assert state["widening"][0] == 1.0
    worse = windows(state, np.concatenate([rough[:5] - 10 * n for n in range(12)]))
    assert worse["widening"][0] > 1.1
    better = windows(worse, np.tile(calm, 40))
    assert better["widening"][0] == 1.0


@pytest.mark.parametrize("seed", [7, 8])
@pytest.mark.parametrize("window_s", [30.0, 60.0, 120.0])
def test_running_minimum_keeps_its_promise_and_wastes_less_than_a_fixed_fraction(seed: int, window_s: float) -> None:
    """Seeds that no option was chosen on. The rival is tuned on these very traces, with hindsight."""
    traces = make_traces(TraceSpec(duration_s=3 * 3600.0), np.full(100, 4 * GIB), seed=seed)
    ours = replay(RunningMinimum(), traces, window_s=window_s).scores(skip_windows=20)
    share_ratio = equal_fraction(traces, window_s=window_s, skip_windows=20, violation_ratio=ours.violation_ratio)
    rival = replay(FixedFraction(share_ratio=share_ratio), traces, window_s=window_s).scores(skip_windows=20)
    assert 0 < ours.violation_ratio <= 0.05
    assert rival.violation_ratio == pytest.approx(ours.violation_ratio, abs=0.003)
    assert ours.unused_ratio < rival.unused_ratio


def test_where_all_users_are_alike_one_fraction_for_all_is_as_good() -> None:
    """What the predictor learns is how devices differ; where they do not, hindsight wins, though not by much."""
    traces = make_traces(TraceSpec(duration_s=3 * 3600.0, user_spread=0.0), np.full(100, 4 * GIB), seed=7)
    ours = replay(RunningMinimum(), traces, window_s=60.0).scores(skip_windows=20)
    share_ratio = equal_fraction(traces, window_s=60.0, skip_windows=20, violation_ratio=ours.violation_ratio)
    rival = replay(FixedFraction(share_ratio=share_ratio), traces, window_s=60.0).scores(skip_windows=20)
    assert ours.violation_ratio <= 0.05
    assert abs(ours.unused_ratio - rival.unused_ratio) < 0.03


def test_all_options_out_of_range_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        make_predictor("running-minimum", {"smoothing_ratio": 2, "most_widening": 0.5, "widening_gain": float("inf")})
    assert caught.value.problems == (
        "smoothing_ratio must be in [0, 1], got 2",
        "widening_gain must be at least 0, got inf",
        "most_widening must be at least 1, got 0.5",
    )
    with pytest.raises(ConfigError, match=r"unknown predictor 'avarage'. Did you mean 'average'"):
        make_predictor("avarage", {})


def test_windows_that_do_not_fit(traces: MemoryTraces) -> None:
    with pytest.raises(ConfigError, match=r"must hold whole samples \(2 s each\)"):
        replay(RunningMinimum(), traces, window_s=0.5)
    with pytest.raises(ConfigError, match="fit into the traces"):
        replay(RunningMinimum(), traces, window_s=4000.0)
    with pytest.raises(ConfigError, match="none left after the first 60"):
        replay(RunningMinimum(), traces, window_s=60.0).scores(skip_windows=60)
