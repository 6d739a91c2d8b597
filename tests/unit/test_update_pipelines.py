"""Chains of update transforms against what their papers and docstrings say."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.update_parts import bits_of, chain, with_checksum

from fedhybrid.errors import ConfigError
from fedhybrid.tree import Tensors, total_bytes
from fedhybrid.updates import STATE_PREFIX, Pipeline, Received, Sent, exact_bytes, parse_pipeline
from fedhybrid.updates.bitpack import pack, packed_bytes, unpack
from fedhybrid.updates.top_k import largest_places

TABLE = {"delta": {"name": "delta"}, "feedback": {"name": "error-feedback"}}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def through(pipeline: Pipeline, values: Tensors, reference: Tensors, *, seed: int = 0) -> tuple[Sent, Received]:
    sent = pipeline.encode(values, reference=reference, state={}, seed=seed)
    return sent, pipeline.decode(sent.payload, reference=reference)


def teasq(ratio: float, bits: int, rounding: str = "stochastic") -> Pipeline:
    """Compress(x; p_s, p_q) of the difference."""
    tables = [TABLE["delta"], {"name": "top-k", "ratio": ratio}, {"name": "quantise", "bits": bits}]
    return parse_pipeline([*tables[:2], {**tables[2], "rounding": rounding}], where="up")


class TestTeasqCodec:
    @pytest.mark.parametrize("ratio", [0.01, 0.1, 0.25, 0.5, 0.75])
    @pytest.mark.parametrize("bits", [4, 8, 12, 16])
    @pytest.mark.parametrize("elements", [5_000, 65_537])
    def test_bytes_are_within_2_percent_of_the_formula(self, ratio: float, bits: int, elements: int) -> None:
        sent, _ = through(teasq(ratio, bits), {"w": randn(elements)}, {"w": torch.zeros(elements)})
        kept = math.ceil(ratio * elements)
        formula_bits = kept * bits + min(kept * math.ceil(math.log2(elements)), elements) + 64
        slack_bits = 8 * 12 if kept < 1000 else 0  # the header is more than 2 % of a hundred bytes
        assert abs(8 * sent.num_bytes - formula_bits) <= 0.02 * formula_bits + slack_bits

    def test_everything_in_32_bits_comes_back_bit_for_bit(self) -> None:
        reference = {"w": randn(40, 30, seed=1), "count": torch.tensor(3)}
        values = {"w": randn(40, 30, seed=2) * 1e-3, "count": torch.tensor(9)}
        values["w"][0, :4] = torch.tensor([0.0, -0.0, 1e-42, 3e38])
        pipeline = teasq(1, 32)
        assert pipeline.is_identity
        assert bits_of(through(pipeline, values, reference)[1].values) == bits_of(values)
        assert not teasq(1, 16).is_identity
        assert not teasq(0.9, 32).is_identity

    def test_without_delta_what_is_not_kept_is_zero(self) -> None:
        reference, values = {"w": torch.ones(100)}, {"w": randn(100)}
        pipeline = chain("top-k", top_k={"ratio": 0.2})
        _, received = through(pipeline, values, reference)
        assert int((received.values["w"] == 0).sum()) == 80
        received = through(chain("delta", "top-k", top_k={"ratio": 0.2}), values, reference)[1]
        assert int((received.values["w"] == 1).sum()) == 80


class TestTopK:
    @pytest.mark.parametrize("ratio", [0.001, 0.07, 0.1, 0.5, 0.999])
    @pytest.mark.parametrize("shape", [(1,), (7,), (100,), (33, 3, 3)])
    def test_exactly_k_are_not_zero(self, ratio: float, shape: tuple[int, ...]) -> None:
        values = {"w": randn(*shape)}
        _, received = through(chain("top-k", top_k={"ratio": ratio}), values, values)
        assert int(received.values["w"].count_nonzero()) == math.ceil(round(ratio * values["w"].numel(), 9))

    @given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, -1e-40, math.inf, math.nan]), min_size=2, max_size=30))
    def test_largest_magnitudes_and_of_equal_ones_the_first(self, numbers: list[float]) -> None:
        def size(place: int) -> float:
            return math.inf if math.isnan(numbers[place]) else min(abs(numbers[place]), 1e300)

        for dtype in (torch.float32, torch.float64):
            for count in range(1, len(numbers)):
                ranked = sorted(range(len(numbers)), key=lambda place: (-size(place), place))
                found = largest_places(torch.tensor(numbers, dtype=dtype), count)
                assert found.tolist() == sorted(ranked[:count])

    def test_a_share_is_the_decimal_fraction_that_was_written(self) -> None:
        values = {"w": randn(100)}  # 0.07 * 100 > 7 in binary
        _, received = through(chain("top-k", top_k={"ratio": 0.07}), values, values)
        assert int(received.values["w"].count_nonzero()) == 7

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_floats_come_back_with_their_bits(self, dtype: torch.dtype) -> None:
        values = {"w": randn(50).to(dtype)}
        sent, received = through(chain("top-k", top_k={"ratio": 0.5}), values, values)
        kept = received.values["w"] != 0
        assert bits_of({"": received.values["w"][kept]}) == bits_of({"": values["w"][kept]})
        assert sent.num_bytes == 12 + 7 + 25 * dtype.itemsize


class TestQuantise:
    @pytest.mark.parametrize("bits", range(1, 17))
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-30, 0.0), (1e30, 0.0), (1e-3, 100.0)])
    def test_nearest_is_at_most_half_a_step_away(
        self, bits: int, dtype: torch.dtype, scale: float, shift: float
    ) -> None:
        x = randn(4000).to(dtype) * scale + shift
        pipeline = chain("quantise", quantise={"bits": bits, "rounding": "nearest"})
        y = through(pipeline, {"w": x}, {"w": x})[1].values["w"]
        step = float(x.double().max() - x.double().min()) / (2**bits - 1)
        own_rounding = float(x.double().abs().max()) * torch.finfo(dtype).eps / 2
        assert float((y.double() - x.double()).abs().max()) <= step / 2 * (1 + 1e-9) + own_rounding
        assert len(y.unique()) <= 2**bits
        assert float(y.min()) == float(x.min())
        assert float(y.max()) <= float(x.max())
        assert float(y.max()) == pytest.approx(float(x.max()), rel=1e-15)

    @pytest.mark.parametrize("bits", [1, 3, 8, 12])
    def test_stochastic_is_less_than_a_step_away_and_right_on_average(self, bits: int) -> None:
        x, draws = randn(200).double(), 2000
        pipeline = chain("quantise", quantise={"bits": bits})
        step, total = float(x.max() - x.min()) / (2**bits - 1), torch.zeros(200, dtype=torch.float64)
        for seed in range(draws):
            y = through(pipeline, {"w": x}, {"w": x}, seed=seed)[1].values["w"]
            assert float((y - x).abs().max()) < step * (1 + 1e-9)
            total += y - x
        # Each draw's variance is at most step**2 / 4; six standard deviations of the mean.
        assert float((total / draws).abs().max()) <= 6 * step / 2 / math.sqrt(draws)

    def test_another_seed_gives_other_bytes(self) -> None:
        x = {"w": randn(100)}
        first, second = (through(chain("quantise"), x, x, seed=seed)[0].payload for seed in (1, 2))
        assert first != second

    def test_tensors_that_would_not_get_smaller_stay_exact(self) -> None:
        values = {"scalar": torch.tensor(0.1), "bias": randn(2), "half": randn(500).half(), "wide": randn(500)}
        pipeline = chain("quantise", quantise={"bits": 16})
        received = through(pipeline, values, values)[1].values
        assert [name for name in values if bits_of(received)[name] != bits_of(values)[name]] == ["wide"]

    @pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
    def test_what_is_not_finite_cannot_be_overlooked(self, wrong: float) -> None:
        values = {"w": randn(100), "v": randn(100)}
        values["w"][3] = wrong
        for pipeline in (chain("quantise"), teasq(0.5, 8), chain("delta", "clip", "top-k")):
            received = through(pipeline, values, {"w": torch.zeros(100), "v": torch.zeros(100)})[1].values
            assert not bool(torch.isfinite(received["w"]).all())
            assert bool(torch.isfinite(received["v"]).all())

    def test_all_equal_or_nearly(self) -> None:
        for x in (torch.full((50,), 0.1), torch.zeros(50), torch.arange(50) * 1e-45, torch.tensor([5e-324, 0.0] * 50)):
            y = through(chain("quantise"), {"w": x}, {"w": x})[1].values["w"]
            assert float((y - x).abs().max()) <= 1e-43


class TestErrorFeedback:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("names", [("top-k",), ("quantise",), ("top-k", "quantise")])
    def test_what_was_sent_approaches_what_was_meant(self, names: tuple[str, ...], dtype: torch.dtype) -> None:
        reference = {"w": torch.zeros(400, dtype=dtype), "count": torch.tensor(0)}
        options = {"top_k": {"ratio": 0.1}, "quantise": {"bits": 3}}
        pipeline = chain("delta", "error-feedback", *names, **options)
        plain = chain("delta", *names, **options)
        meant, sent_sum, plain_sum, rounding = (torch.zeros(400, dtype=torch.float64) for _ in range(4))
        state: Tensors = {}
        for i in range(200):
            update = {"w": (randn(400) + 0.1 * randn(400, seed=i)).to(dtype), "count": torch.tensor(i)}
            sent = pipeline.encode(update, reference=reference, state=state, seed=i)
            state = sent.state
            received = pipeline.decode(sent.payload, reference=reference).values["w"]
            meant += update["w"]
            sent_sum += received
            plain_sum += through(plain, update, reference, seed=i)[1].values["w"]
            rounding += received.abs() * torch.finfo(dtype).eps / 2 + 2**-22 * (received.abs() + meant.abs() / (i + 1))
            rounding += 2**-22 * state[STATE_PREFIX + "w"].abs()
        # What is missing is the error that the client still keeps, and no more.
        error = state[STATE_PREFIX + "w"]
        assert bool(((meant - sent_sum - error).abs() <= rounding).all())
        assert float((meant - sent_sum).norm() / meant.norm()) < 0.08
        if "top-k" in names:
            assert float((meant - plain_sum).norm() / meant.norm()) > 0.4
        assert state.keys() == {STATE_PREFIX + "w"}
        assert error.dtype == torch.float32

    def test_errors_wait_while_a_tensor_or_an_element_is_not_sent(self) -> None:
        reference = {"a": torch.zeros(50), "b": torch.zeros(50)}
        update, pipeline = {"a": randn(50), "b": randn(50, seed=1)}, chain("error-feedback", "top-k")
        first = pipeline.encode(update, reference=reference, state={}, seed=0).state
        part = pipeline.encode({"a": update["a"]}, reference=reference, state=first, seed=0).state
        assert torch.equal(part[STATE_PREFIX + "b"], first[STATE_PREFIX + "b"])
        assert not torch.equal(part[STATE_PREFIX + "a"], first[STATE_PREFIX + "a"])
        mask = {"a": torch.arange(50) < 20}
        masked = pipeline.encode(update, reference=reference, state=first, seed=0, masks=mask).state
        assert torch.equal(masked[STATE_PREFIX + "a"][20:], first[STATE_PREFIX + "a"][20:])
        assert not torch.equal(masked[STATE_PREFIX + "a"][:20], first[STATE_PREFIX + "a"][:20])

    def test_an_update_that_is_not_finite_does_not_spoil_the_later_ones(self) -> None:
        reference, pipeline = {"w": torch.zeros(50)}, chain("error-feedback", "top-k")
        first = pipeline.encode({"w": randn(50)}, reference=reference, state={}, seed=0).state
        wrong = {"w": torch.full((50,), math.nan)}
        assert bits_of(pipeline.encode(wrong, reference=reference, state=first, seed=0).state) == bits_of(first)

    def test_a_state_of_another_model_is_refused(self) -> None:
        state = {STATE_PREFIX + "w": torch.zeros(3)}
        with pytest.raises(ConfigError, match=r"has shape \[3\], the model's tensor \[50\]"):
            chain("error-feedback", "top-k").encode(
                {"w": randn(50)}, reference={"w": torch.zeros(50)}, state=state, seed=0
            )


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 1e9])
def test_clip_bounds_the_norm_of_the_whole_difference(max_norm: float) -> None:
    reference = {"a": randn(60), "b": randn(5, 5, seed=1), "count": torch.tensor(4)}
    values = {"a": randn(60, seed=2), "b": randn(5, 5, seed=3), "count": torch.tensor(1000)}
    received = through(chain("delta", "clip", clip={"max_norm": max_norm}), values, reference)[1].values
    moved = torch.cat([(received[n] - reference[n]).double().flatten() for n in "ab"])
    meant = torch.cat([(values[n] - reference[n]).double().flatten() for n in "ab"])
    expected = meant * min(1.0, max_norm / float(meant.norm()))
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-6)
    assert int(received["count"]) == 1000


@given(
    bits=st.integers(0, 64), count=st.integers(0, 40), seed=st.integers(0, 2**32)
)  # fmt: skip
@settings(max_examples=200)
def test_numbers_of_any_width_are_packed_without_gaps(bits: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = [int(n) & ((1 << bits) - 1) for n in rng.integers(0, 2**64, count, dtype=np.uint64, endpoint=False)]
    packed = pack(np.array(numbers, dtype=np.uint64), bits)
    assert packed == sum(n << bits * i for i, n in enumerate(numbers)).to_bytes(packed_bytes(count, bits), "little")
    assert unpack(packed, count, bits).tolist() == numbers


class TestBytesFromOutside:
    def test_those_of_another_model_or_pipeline_are_refused(self) -> None:
        reference, pipeline = {"w": torch.zeros(20)}, chain("delta", "top-k")
        payload = through(pipeline, {"w": randn(20)}, reference)[0].payload
        for other in ({"v": torch.zeros(20)}, {"w": torch.zeros(4, 5)}, {"w": torch.zeros(20).half()}, {}):
            with pytest.raises(ConfigError, match="made for other tensors"):
                pipeline.decode(payload, reference=other)
        with pytest.raises(ConfigError, match="or by other transforms than the receiver's"):
            chain("delta", "quantise").decode(payload, reference=reference)

    def test_what_cannot_be_is_refused(self) -> None:
        """300 elements: three of them by indices of 9 bits, or a mask of two bytes of count and indices."""

        def forged(pipeline: Pipeline, at: int, raw: bytes, masks: Tensors) -> bytes:
            payload = pipeline.encode(values, reference=values, state={}, seed=0, masks=masks).payload
            return with_checksum(payload[:at] + raw + payload[at + len(raw) :])

        def indices(*numbers: int) -> bytes:
            return pack(np.array(numbers), 9)

        values, three = {"w": randn(300)}, {"w": torch.arange(300) % 100 == 0}
        top_k = chain("top-k", top_k={"ratio": 0.01})
        quantise = chain("quantise", quantise={"bits": 8})
        floats = np.array([math.nan, math.inf, 1, 0], dtype="<f4")
        for pipeline, at, raw, masks, message in [
            (top_k, 12, indices(0, 1, 300), {}, "its indices are not in ascending order from 0 to 299"),
            (top_k, 12, indices(5, 5, 9), {}, "its indices are not in ascending order"),
            (top_k, 12, indices(5, 4, 9), {}, "its indices are not in ascending order"),
            (chain("top-k"), 12, b"\xff" * 38, {}, "its bit map has 300 elements where 90 are meant"),
            (Pipeline(), 12, b"\x03", three, "it names a kind of tensor that does not exist"),
            (Pipeline(), 12, b"\x00", three, "bytes are left at the end"),
            (Pipeline(), 13, (301).to_bytes(2, "little"), three, "it says that 301 of a tensor's 300 elements are"),
            (Pipeline(), 15, indices(0, 1, 511), three, "its indices are not in ascending order"),
            (quantise, 12, floats[:1].tobytes(), {}, "its levels go from nan to"),
            (quantise, 16, floats[1:2].tobytes(), {}, "to inf"),
            (quantise, 12, floats[2:].tobytes(), {}, "its levels go from 1.0 to 0.0"),
            (Pipeline(), 0, b"xx", {}, "it does not begin like one of version 1"),
            (Pipeline(), 2, b"\x02", {}, "it does not begin like one of version 1"),
        ]:
            with pytest.raises(ConfigError, match=f"the update's bytes cannot be read: .*{message}"):
                pipeline.decode(forged(pipeline, at, raw, masks), reference=values)
        unchanged = forged(top_k, 12, b"", {})
        assert top_k.decode(unchanged, reference=values).values["w"].count_nonzero() == 3

    def test_a_sender_must_hold_to_the_model(self) -> None:
        reference = {"w": torch.zeros(20)}
        wrongs: list[tuple[Tensors, Tensors, str]] = [
            ({"v": torch.zeros(20)}, {}, "'v', which the model does not have"),
            ({"w": torch.zeros(4, 5)}, {}, r"float32 of shape \[4, 5\] in the update, float32 of shape \[20\]"),
            ({"w": torch.zeros(20)}, {"w": torch.ones(20)}, "the mask of 'w' is float32"),
            ({}, {}, "is empty"),
        ]
        for values, masks, message in wrongs:
            with pytest.raises(ConfigError, match=f"the update cannot be sent: .*{message}"):
                Pipeline().encode(values, reference=reference, state={}, seed=0, masks=masks)


class TestIdentity:
    def test_bytes_are_those_of_the_tensors(self) -> None:
        values = {"a": randn(10, 10), "b": torch.tensor(3), "c": randn(3).double()}
        for pipeline in (Pipeline(), chain("delta"), teasq(1, 32)):
            assert pipeline.is_identity
            assert exact_bytes(values) == pipeline.expected_bytes(values) == total_bytes(values) == 432
        mask = {"a": torch.arange(100).view(10, 10) < 50, "b": torch.tensor(True)}
        assert exact_bytes(values, mask) == 232 + 1 + 13

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
    def test_they_agree_with_a_payload_but_for_its_header(self, share: float) -> None:
        values = {"a": randn(50, 50), "b": randn(30)}
        masks = {"a": torch.rand((50, 50), generator=torch.Generator().manual_seed(1)) < share}
        sent = Pipeline().encode(values, reference=values, state={}, seed=0, masks=masks)
        kinds_bytes = 0 if share == 1 else 1
        assert sent.num_bytes == exact_bytes(values, masks) + 12 + kinds_bytes


class TestParsing:
    @pytest.mark.parametrize(
        ("tables", "messages"),
        [
            ("top-k", ["up must be a list of tables"]),
            ([1], [r"up\[0\]: must be a table with the name of an update transform"]),
            ([{"ratio": 1}], [r"up\[0\]: must be a table with the name"]),
            ([{"name": "topk"}], [r"up\[0\]: unknown update transform 'topk'. Did you mean 'top-k'\?"]),
            ([{"name": "delta", "x": 1}], [r"up\[0\]: delta has no option 'x'. It has none."]),
            ([{"name": "top-k", "ration": 1}], [r"Did you mean 'ratio'\? Known: ratio", "needs the option 'ratio'"]),
            ([{"name": "quantise", "bits": 17, "rounding": "up"}], ["bits must be a whole", "rounding must be 'st"]),
            ([{"name": "quantise", "bits": 8}] * 2, [r"up\[1\]: quantise is there twice"]),
            ([{"name": "quantise", "bits": 8}, {"name": "clip", "max_norm": 1}], ["clip must stand before quantise"]),
            ([{"name": "top-k", "ratio": 1}, {"name": "delta"}], [r"up\[1\]: delta must stand before top-k"]),
            ([{"name": "delta"}, {"name": "error-feedback"}], [r"up\[1\]: error-feedback needs a transform after it"]),
            ([{"name": "no"}, {"name": "clip"}], [r"up\[0\]: unknown", r"up\[1\]: clip needs the option 'max_norm'"]),
        ],
    )
    def test_problems_are_told_all_at_once_with_their_place(self, tables: Any, messages: list[str]) -> None:
        with pytest.raises(ConfigError) as caught:
            parse_pipeline(tables, where="up")
        assert len(caught.value.problems) == len(messages)
        for problem, message in zip(caught.value.problems, messages, strict=True):
            assert re.search(message, problem), problem

    def test_a_pipeline_made_by_hand_is_checked_too(self) -> None:
        delta, top_k = chain("delta", "top-k").parts
        with pytest.raises(ConfigError, match="part 1 of the pipeline: delta must stand before top-k"):
            Pipeline(parts=(top_k, delta))
