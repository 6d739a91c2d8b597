"""A real device trains narrow and shallow models, and takes statistics, as the full engine does, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.method_recipes import method_recipe

from fedhybrid.engine.folder import RunFolder
from fedhybrid.engine.labour import Job, do_job
from fedhybrid.engine.runtime import Workbench, one_thread
from fedhybrid.engine.walk import Leg
from fedhybrid.engine.world import book_of, submodels_of, traffic_of
from fedhybrid.experiment.build import build_federation
from fedhybrid.experiment.check import load_config, to_table
from fedhybrid.models.narrowed import cut
from fedhybrid.models.shares import kept_shares
from fedhybrid.records import ClientTask, LocalWork
from fedhybrid.tree import detached_copy, tensors_of

pytest.importorskip("flwr")

from fedhybrid.integrations.flower.device.slim import SlimDevice, open_device

CLIENT = 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "submodels"),
    [("heterofl", ("w0.25", "w1.0", "statistics")), ("depthfl", ("d1", "d2", "plain"))],
)
def test_parts_come_out_as_from_the_full_engine(method: str, submodels: tuple[str, ...], tmp_path: Path) -> None:
    config = load_config(method_recipe(method))
    job = build_federation(config)
    brief: dict[str, Any] = json.loads(json.dumps(to_table(config)))
    device: SlimDevice = open_device(brief, CLIENT, tmp_path / "home", allow=[])
    with one_thread():
        steps = submodels_of(job)
        book = book_of(job, RunFolder(tmp_path), steps, 256)
        bench = Workbench(model=job.model, split=job.dataset.train, station=steps.station)
        weights = detached_copy(tensors_of(job.model))
        for submodel in submodels:
            given = weights
            if submodel.startswith("w"):
                held = tensors_of(job.method.submodel(job.whole, submodel).module)
                shares = kept_shares(job.model, float(submodel[1:]))
                given = cut(weights, {name: kept for name, kept in shares.items() if name in held})
            task = ClientTask(
                client=CLIENT,
                round_index=1,
                weights=given,
                work=LocalWork(epochs=1, batch_size=8, lr=0.05),
                seed=77,
                plan=None,
                kind="close" if submodel == "statistics" else "train",
                submodel=submodel,
                options={"head": "head"} if method == "heterofl" else {},
            )
            work = Job(
                task=task,
                device="laptop",
                legs=(Leg(plan=None, steps=5),),
                shard=job.shards[CLIENT],
                state={},
                at_s=0.0,
            )
            expected = do_job(work, job.method, bench, book, traffic_of(job)).update
            found = device.do(work, {}).update
            assert found.weights.keys() == expected.weights.keys()
            assert all(torch.equal(found.weights[name], tensor) for name, tensor in expected.weights.items())
            assert found.masks.keys() == expected.masks.keys()
            assert found.measured_peak_bytes == expected.measured_peak_bytes
