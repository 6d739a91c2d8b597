"""Everything that a run needs at work: the captured step, the plan book, the simulated fleet, the test set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedhybrid.engine.driver import InProcessDriver
from fedhybrid.engine.evaluate import Evaluator
from fedhybrid.engine.federation import Federation
from fedhybrid.engine.folder import RunFolder
from fedhybrid.engine.plans import PlanBook
from fedhybrid.engine.runtime import Workbench, classification_loss
from fedhybrid.executor import TrainStep, prepare_step
from fedhybrid.fleet import VirtualClock
from fedhybrid.protocols import Driver
from fedhybrid.records import Candidates, FloatArray, IntArray

__all__ = ["World", "assemble"]


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """What the loop works with. `candidates` holds every client; budgets do not change during a run."""

    driver: Driver
    book: PlanBook
    candidates: Candidates
    evaluator: Evaluator


def assemble(job: Federation, folder: RunFolder, *, now_s: float) -> World:
    """Captures the step, plans for every device and budget of the fleet, and starts the clock at `now_s`."""
    devices = {tier.device.name: tier.device for tier in job.fleet.tiers}
    split = job.dataset.train
    example = split.batch(torch.arange(job.work.batch_size) % len(split))
    any_device = next(iter(devices.values()))  # so that nothing is timed here; the book prices for each device
    prepared = prepare_step(job.model, classification_loss, example, job.optimizer, op_seconds=any_device.op_time_s)
    book = PlanBook(prepared, devices, folder.path, enabled=job.plans, codec=job.codec, planning=job.planning)
    budgets_bytes = job.fleet.budgets(resident_bytes=book.resident_bytes, eager_peak_bytes=book.eager_peak_bytes)
    evaluator = Evaluator(job.model, job.dataset.test)
    step = TrainStep(prepared, prepared.keep_all())
    driver = InProcessDriver(
        fleet=job.fleet,
        budgets_bytes=budgets_bytes,
        shards=job.shards,
        method=job.method,
        book=book,
        bench=Workbench(model=job.model, step=step, split=split),
        clock=VirtualClock(now_s=now_s),
    )
    step_s, kernel_s = _costs(job, book, budgets_bytes)
    candidates = Candidates(
        client=driver.clients(),
        tier=job.fleet.tier,
        budget_bytes=budgets_bytes,
        num_samples=job.num_samples,
        unplanned_bytes=book.eager_peak_bytes,
        smallest_bytes=book.smallest_bytes,
        step_s=step_s,
        kernel_s=kernel_s,
    )
    return World(driver=driver, book=book, candidates=candidates, evaluator=evaluator)


def _costs(job: Federation, book: PlanBook, budgets_bytes: IntArray) -> tuple[FloatArray, FloatArray]:
    """Seconds of a step and of the model's distinct operators for each client; asked once for each kind of client."""
    kinds, kind_of = np.unique(np.stack([job.fleet.tier, budgets_bytes]), axis=1, return_inverse=True)
    names = [job.fleet.tiers[tier].device.name for tier in kinds[0]]
    step_s = [book.step_s(name, int(budget)) for name, budget in zip(names, kinds[1], strict=True)]
    kernel_s = [book.kernel_s(name) for name in names]
    return np.array(step_s)[kind_of.reshape(-1)], np.array(kernel_s)[kind_of.reshape(-1)]
