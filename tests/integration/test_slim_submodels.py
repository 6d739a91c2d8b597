"""A real device trains submodels as the full engine does, bit for bit, with programs of its own for each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.test_submodels import headed

from fedhybrid.engine.labour import Job, do_job
from fedhybrid.engine.runtime import Workbench, one_thread
from fedhybrid.engine.walk import Leg
from fedhybrid.engine.world import book_of, submodels_of, traffic_of
from fedhybrid.errors import ConfigError
from fedhybrid.experiment.build import build_federation
from fedhybrid.experiment.check import load_config, to_table
from fedhybrid.records import ClientTask, LocalWork
from fedhybrid.tree import detached_copy, tensors_of

pytest.importorskip("flwr")

from fedhybrid.engine.folder import RunFolder
from fedhybrid.integrations.flower.device.slim import SlimDevice, open_device

METHOD = "tests.head_method:HeadFirst"
CLIENT = 3


@pytest.mark.slow
def test_submodels_come_out_as_from_the_full_engine(tmp_path: Path) -> None:
    config = load_config(headed())
    job = build_federation(config)
    brief: dict[str, Any] = json.loads(json.dumps(to_table(config)))
    device: SlimDevice = open_device(brief, CLIENT, tmp_path / "home", allow=[METHOD])
    with one_thread():
        submodels = submodels_of(job)
        book = book_of(job, RunFolder(tmp_path), submodels, 256)
        bench = Workbench(model=job.model, split=job.dataset.train, station=submodels.station)
        weights = detached_copy(tensors_of(job.model))
        for submodel, budget_bytes in (("", 10**9), ("head", 700_000), ("", 10**9)):
            plan = book.choose("laptop", budget_bytes, submodel)
            assert plan is not None
            task = ClientTask(
                client=CLIENT,
                round_index=1,
                weights=weights,
                work=LocalWork(epochs=1, batch_size=8, lr=0.05),
                seed=77,
                plan=plan,
                submodel=submodel,
            )
            work = Job(
                task=task,
                device="laptop",
                legs=(Leg(plan=plan, steps=5),),
                shard=job.shards[CLIENT],
                state={},
                at_s=0.0,
            )
            expected = do_job(work, job.method, bench, book, traffic_of(job)).update
            found = device.do(work, {plan: book.program("laptop", plan).to_json()}).update
            assert found.weights.keys() == expected.weights.keys()
            assert all(torch.equal(found.weights[name], tensor) for name, tensor in expected.weights.items())
            assert found.measured_peak_bytes == expected.measured_peak_bytes == book.needed_bytes(plan)
    incomplete = {name: tensor for name, tensor in weights.items() if name != "head.bias"}
    lacking = replace(work, task=replace(task, weights=incomplete, submodel="head"))
    with pytest.raises(ConfigError, match=r"has no tensor 'head\.bias': server and device must have the same recipe"):
        device.do(lacking, {})
