"""What every update transform of `TRANSFORMS` obeys, alone and in every chain that can be made of them."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.update_parts import EXAMPLES, bits_of, chain, every_order, updates, with_checksum

from fedhybrid.errors import ConfigError
from fedhybrid.tree import Tensors, detached_copy
from fedhybrid.updates import STATE_PREFIX, TRANSFORMS, Pipeline, Received, parse_pipeline

CHAINS = every_order()
Drawn = tuple[Tensors, Tensors, Tensors]


def chain_with(name: str) -> Pipeline:
    """The transform alone, or with one after it that it cannot be without."""
    return chain(name, "top-k") if TRANSFORMS[name].remembers else chain(name)


def flat_model(seed: int, count: int = 300) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(count, generator=generator), "b": torch.randn((5, 3), generator=generator)}


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
class TestEveryTransform:
    def test_is_called_as_in_the_table(self, name: str) -> None:
        assert TRANSFORMS[name](**EXAMPLES[name]).name == name

    def test_is_frozen_and_takes_keywords_only(self, name: str) -> None:
        part = TRANSFORMS[name](**EXAMPLES[name])
        for option in fields(part):
            with pytest.raises(FrozenInstanceError):
                setattr(part, option.name, None)
        with pytest.raises(TypeError):
            TRANSFORMS[name](*(EXAMPLES[name].values() or [1]))

    @pytest.mark.parametrize("wrong", [True, "much", None, -1, 0, 1e9, float("nan"), [1]])
    def test_refuses_senseless_options(self, name: str, wrong: object) -> None:
        for option in fields(TRANSFORMS[name]):
            if option.name == "max_norm" and wrong == 1e9:
                continue
            with pytest.raises(ConfigError, match=rf"^here\[0\]: {name}: {option.name} must be "):
                parse_pipeline([{"name": name, **EXAMPLES[name], option.name: wrong}], where="here")

    @given(drawn=updates(), seed=st.integers(0, 2**62))
    @settings(max_examples=40)
    def test_round_trip(self, name: str, drawn: Drawn, seed: int) -> None:
        assert_round_trip(chain_with(name), drawn, seed)

    @given(drawn=updates(partial=False), seed=st.integers(0, 2**62))
    @settings(max_examples=40)
    def test_bytes_are_known_beforehand(self, name: str, drawn: Drawn, seed: int) -> None:
        pipeline, (reference, values, _) = chain_with(name), drawn
        sent = pipeline.encode(values, reference=reference, state={}, seed=seed)
        assert sent.num_bytes == len(sent.payload)
        if not pipeline.is_identity:
            assert pipeline.expected_bytes(reference) == sent.num_bytes

    def test_same_seed_same_bytes(self, name: str) -> None:
        reference, values = flat_model(1), flat_model(2)
        for pipeline in (chain_with(name), *(p for key, p in CHAINS.items() if name in key)):
            first, again = (pipeline.encode(values, reference=reference, state={}, seed=5) for _ in range(2))
            assert first.payload == again.payload
            assert bits_of(first.state) == bits_of(again.state)

    def test_state_is_kept_only_by_who_remembers(self, name: str) -> None:
        reference, values = flat_model(1), flat_model(2)
        other = {"method/momentum": torch.ones(3)}
        state = chain_with(name).encode(values, reference=reference, state=other, seed=5).state
        assert state.keys() == ({STATE_PREFIX + n for n in values} if TRANSFORMS[name].remembers else set())


def assert_round_trip(pipeline: Pipeline, drawn: Drawn, seed: int) -> None:
    reference, values, masks = drawn
    before = [bits_of(detached_copy(tensors)) for tensors in drawn]
    state: Tensors = {}
    for _ in range(2):
        sent = pipeline.encode(values, reference=reference, state=state, seed=seed, masks=masks)
        received = pipeline.decode(sent.payload, reference=reference)
        assert {name: (t.dtype, t.shape) for name, t in received.values.items()} == {
            name: (t.dtype, t.shape) for name, t in values.items()
        }
        assert bits_of(received.masks) == bits_of({name: m for name, m in masks.items() if not m.all()})
        for name, tensor in received.values.items():
            mask = masks.get(name, torch.ones(tensor.shape, dtype=torch.bool))
            outside = {"": tensor[~mask]}
            assert bits_of(outside) == bits_of({"": reference[name][~mask]})
            if not tensor.is_floating_point() or pipeline.is_identity:
                assert bits_of({"": tensor[mask]}) == bits_of({"": values[name][mask]})
            assert bool(torch.isfinite(tensor.double()).all())
        state = sent.state
    assert [bits_of(tensors) for tensors in drawn] == before


@pytest.mark.parametrize("names", sorted(CHAINS))
class TestEveryChain:
    @given(drawn=updates(), seed=st.integers(0, 2**62))
    @settings(max_examples=12)
    def test_round_trip(self, names: str, drawn: Drawn, seed: int) -> None:
        assert_round_trip(CHAINS[names], drawn, seed)

    def test_what_is_cut_short_or_too_long_is_refused(self, names: str) -> None:
        reference, values = flat_model(1, 9), flat_model(2, 9)
        mask = {"a": torch.arange(9) % 3 == 0}
        for masks in ({}, mask):
            payload = CHAINS[names].encode(values, reference=reference, state={}, seed=1, masks=masks).payload
            for wrong in [payload[:i] for i in range(len(payload))] + [payload + b"\0"]:
                for told in (wrong, with_checksum(wrong) if len(wrong) >= 12 else wrong):
                    with pytest.raises(ConfigError, match="the update's bytes cannot be read"):
                        CHAINS[names].decode(told, reference=reference)

    @given(data=st.data())
    @settings(max_examples=12)
    def test_damage_on_purpose_is_refused_or_a_whole_update(self, names: str, data: st.DataObject) -> None:
        reference, values, masks = data.draw(updates())
        payload = bytearray(CHAINS[names].encode(values, reference=reference, state={}, seed=1, masks=masks).payload)
        for _ in range(data.draw(st.integers(1, 3))):
            payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
        try:
            received = CHAINS[names].decode(with_checksum(bytes(payload)), reference=reference)
        except ConfigError:
            return
        assert_whole(received, reference)

    def test_one_wrong_bit_is_seen(self, names: str) -> None:
        reference, values = flat_model(1, 9), flat_model(2, 9)
        payload = CHAINS[names].encode(values, reference=reference, state={}, seed=1).payload
        for place in range(8 * len(payload)):
            wrong = bytearray(payload)
            wrong[place // 8] ^= 1 << place % 8
            with pytest.raises(ConfigError):
                CHAINS[names].decode(bytes(wrong), reference=reference)


def assert_whole(received: Received, reference: Tensors) -> None:
    assert received.values
    for name, tensor in received.values.items():
        assert (tensor.shape, tensor.dtype) == (reference[name].shape, reference[name].dtype)
    for name, mask in received.masks.items():
        assert (mask.shape, mask.dtype) == (received.values[name].shape, torch.bool)


def test_examples_are_of_this_table() -> None:
    assert EXAMPLES.keys() == TRANSFORMS.keys()


def test_the_longest_chains_have_all() -> None:
    assert [names for names in CHAINS if len(names.split()) == len(TRANSFORMS)] == [
        "delta clip error-feedback top-k quantise",
        "delta error-feedback clip top-k quantise",
    ]
