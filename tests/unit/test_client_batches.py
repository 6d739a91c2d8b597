"""Batches, seeds and threads of the clients' side, and the model on the test set."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.federation_parts import shop, small_model, small_split

from fedhybrid.data import load_dataset
from fedhybrid.engine.evaluate import Evaluator
from fedhybrid.engine.runtime import LocalClient, Stretch, Workbench, one_thread, steps_of
from fedhybrid.records import LocalWork
from fedhybrid.tree import detached_copy, tensors_of


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return shop().bench


def client_of(bench: Workbench, samples: int) -> LocalClient:
    stretches = [Stretch(program=shop().prepared.keep_all(), steps=1)]
    return LocalClient(station=bench.station(""), split=bench.split, shard=np.arange(samples), stretches=stretches)


def drawn(bench: Workbench, samples: int, work: LocalWork, seed: int = 3) -> list[list[int]]:
    """The sample numbers of every batch, found by comparing images."""
    split = small_split()
    images = {split.batch(torch.tensor([i]))[0].numpy().tobytes(): i for i in range(samples)}
    assert len(images) == samples  # no two of them are the same picture
    client = client_of(bench, samples)
    return [[images[image.numpy().tobytes()] for image in x] for x, _ in client.batches(work, seed)]


class TestBatches:
    @settings(max_examples=25)
    @given(
        samples=st.integers(1, 30),
        batch_size=st.integers(1, 9),
        epochs=st.integers(1, 3),
        last_batch=st.sampled_from(["wrap", "drop"]),
    )
    def test_all_are_whole_and_as_many_as_foretold(
        self, bench: Workbench, samples: int, batch_size: int, epochs: int, last_batch: str
    ) -> None:
        work = LocalWork(epochs=epochs, batch_size=batch_size, lr=0.1, last_batch=last_batch)
        batches = drawn(bench, samples, work)
        assert len(batches) == steps_of(work, samples)
        assert all(len(batch) == batch_size for batch in batches)

    def test_an_epoch_sees_every_sample_once(self, bench: Workbench) -> None:
        batches = drawn(bench, 24, LocalWork(epochs=1, batch_size=8, lr=0.1))
        assert sorted(i for batch in batches for i in batch) == list(range(24))

    def test_wrap_fills_up_with_samples_once_more(self, bench: Workbench) -> None:
        batches = drawn(bench, 19, LocalWork(epochs=1, batch_size=8, lr=0.1))
        counts = Counter(i for batch in batches for i in batch)
        assert len(counts) == 19
        assert sorted(counts.values()) == [1] * 14 + [2] * 5

    def test_wrap_fills_a_batch_larger_than_the_data(self, bench: Workbench) -> None:
        (batch,) = drawn(bench, 3, LocalWork(epochs=1, batch_size=8, lr=0.1))
        assert sorted(Counter(batch).values()) == [2, 3, 3]

    def test_drop_leaves_out_the_rest(self, bench: Workbench) -> None:
        batches = drawn(bench, 19, LocalWork(epochs=1, batch_size=8, lr=0.1, last_batch="drop"))
        assert len({i for batch in batches for i in batch}) == 16

    def test_order_is_new_each_epoch_and_each_seed(self, bench: Workbench) -> None:
        work = LocalWork(epochs=2, batch_size=8, lr=0.1)
        one, two = drawn(bench, 24, work), drawn(bench, 24, work, seed=4)
        assert one[:3] != one[3:]
        assert one != two
        assert one == drawn(bench, 24, work)


def test_one_thread_gives_the_number_back() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


class TestEvaluator:
    def test_scores_like_the_model_in_evaluation_mode(self) -> None:
        model, test = small_model(), load_dataset("digits").test
        score = Evaluator(model, test).score(tensors_of(model))
        with torch.no_grad():
            x, y = test.batch(slice(None))
            scores = model.eval()(x)
        assert score.accuracy == float((scores.argmax(1) == y).double().mean())
        assert score.loss == pytest.approx(float(torch.nn.functional.cross_entropy(scores, y)), rel=1e-5)

    def test_leaves_the_model_as_it_is(self) -> None:
        model = small_model()
        before = detached_copy(tensors_of(model))
        Evaluator(model, load_dataset("digits").test).score({n: torch.zeros_like(t) for n, t in before.items()})
        assert model.training
        assert all(torch.equal(tensors_of(model)[name], tensor) for name, tensor in before.items())

    def test_a_loss_that_is_no_number_is_none(self) -> None:
        model = small_model()
        broken = {n: torch.full_like(t, 1e30) if t.is_floating_point() else t for n, t in tensors_of(model).items()}
        assert Evaluator(model, load_dataset("digits").test).score(broken).loss is None
