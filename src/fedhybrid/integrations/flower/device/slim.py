"""A real device: its own data, one model, programs that another process has made of plans, and nothing else in memory.

It does jobs through `engine.labour.do_job` as every simulated client does, bit for bit; capture, planner and solvers
are never imported (`tests/unit/test_light_imports.py` holds it to that).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from fedhybrid.data import Dataset, load_dataset
from fedhybrid.engine.footprint import give_back_memory
from fedhybrid.engine.labour import Job, do_job
from fedhybrid.engine.runtime import Ask, Workbench, one_thread
from fedhybrid.engine.traffic import Delivery, Traffic
from fedhybrid.errors import ConfigError, FedHybridError, InfeasibleBudgetError
from fedhybrid.executor import PortableStep
from fedhybrid.executor.program import ProgramRunner
from fedhybrid.experiment.config import RunConfig
from fedhybrid.experiment.material import dealt, initial_model, traffic_of
from fedhybrid.integrations.flower.device.compiling import Compiler
from fedhybrid.integrations.flower.device.setting import batch_layout, config_of, method_of, optimizer_of, step_setting
from fedhybrid.planner import Plan
from fedhybrid.records import IntArray
from fedhybrid.tree import Tensors

__all__ = ["SlimDevice", "open_device"]


@final
class SlimDevice:
    """Does the jobs of one client, one at a time.

    Attributes:
        num_samples: Training samples that it holds.
        fingerprint: Of the step; plans of another one are refused.
        resident_bytes: Parameters, buffers, optimizer state and batch (R).
        eager_peak_bytes: Peak of the unplanned step in PyTorch (R + A).
        keep_all_bytes: Planned peak of the program that decides nothing, which runs where a task has no plan.
        first_step_at_s: See `node.Joined`.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, shard: IntArray, home: Path) -> None:
        """Makes the model, and the unplanned program where the home has none yet.

        Args:
            config: Checked (`setting.config_of`).
            dataset: The device's own.
            shard: Its sample numbers.
            home: A folder of this device alone; programs are kept in it.

        Raises:
            ConfigError: The model does not take the data, or the home cannot be used.
            CaptureError: The model's step cannot be captured.
        """
        self._method, self._shard, self._foreign = method_of(config), shard, ":" in config.method
        split, shape, classes = dataset.train, dataset.input_shape, dataset.classes
        model = initial_model(config, input_shape=shape, classes=classes)
        optimizer = optimizer_of(config, self._method)
        example = split.batch(torch.from_numpy(np.resize(shard, config.train.batch_size)))
        setting = step_setting(config, input_shape=shape, classes=classes, batch=batch_layout(example))
        self._compiler = Compiler(home, setting)
        first = self._compiler.programs({"unplanned": None})["unplanned"]
        if isinstance(first, FedHybridError):
            raise first
        self._unplanned = first.plan
        self._plans: dict[str, tuple[str, Plan]] = {}  # text and plan, by the names that jobs call them
        self._step = PortableStep(model, optimizer, first)
        self._bench = Workbench(model=model, step=self._step, split=split)
        down, up = traffic_of(config, differences=self._method.differences)
        self._traffic = Traffic(
            down=down,
            up=up,
            differences=self._method.differences,
            buffers=self._bench.buffers,
            run_seed=config.seed,
        )
        self._busy = False
        self.first_step_at_s: float | None = None
        self.num_samples, self.fingerprint = len(shard), first.fingerprint
        self.resident_bytes, self.eager_peak_bytes = first.plan.resident_bytes, first.plan.eager_peak_bytes
        self.keep_all_bytes = first.plan.peak_bytes

    def compile(self, plans: Mapping[str, str]) -> None:
        """Makes programs of plans that have none yet, all in one workshop; a plan known by its name is not read again.

        Args:
            plans: JSON by the names that jobs call them.

        Raises:
            ConfigError: Something that is no plan for this step.
            PlanMismatchError: A plan for another step.
            InfeasibleBudgetError: A plan needs more here than the budget that it was made for.
        """
        new = {name: text for name, text in plans.items() if self._plans.get(name, ("",))[0] != text}
        read = {name: Plan.from_json(text) for name, text in new.items()}
        wanted = {name: plan for name, plan in read.items() if not self._step.has(plan)}
        for program in self._compiler.programs(wanted).values() if wanted else ():
            if isinstance(program, FedHybridError):
                raise program
            self._step.add(program)
        for name, plan in read.items():
            self._check(plan)
            self._plans[name] = (new[name], plan)

    def _first_step(self) -> None:
        self.first_step_at_s, self._step.on_step = time.perf_counter(), None

    def _measure_unplanned(self) -> None:
        """Has the unplanned step run once, now that a task wants it."""
        if not self._step.has(self._unplanned):
            program = self._compiler.programs({"unplanned": self._unplanned})["unplanned"]
            if isinstance(program, FedHybridError):
                raise program
            self._step.add(program)

    def _check_model(self, weights: Tensors) -> None:
        """Methods of this package send whole models; others may send a part, or tensors of their own."""
        own, problems = self.weights, []
        if weights and not self._foreign:
            problems += [f"the task's model has no tensor {name!r}" for name in own if name not in weights]
            problems += [f"the task's model has a tensor {name!r}" for name in weights if name not in own]
        found = {name: (tuple(t.shape), t.dtype) for name, t in weights.items() if name in own}
        problems += [
            f"the task's tensor {name!r} is {layout[1]} {list(layout[0])}, here it is {own[name].dtype} "
            f"{list(own[name].shape)}"
            for name, layout in found.items()
            if layout != (tuple(own[name].shape), own[name].dtype)
        ]
        if problems:
            raise ConfigError([f"{problem}: server and device must have the same recipe" for problem in problems])

    def _check(self, plan: Plan) -> None:
        self._step.use_plan(plan)
        needed_bytes = self._step.measured_peak_bytes()
        if plan.budget_bytes is not None and needed_bytes > plan.budget_bytes:
            raise InfeasibleBudgetError(needed_bytes=needed_bytes, budget_bytes=plan.budget_bytes, blocker=plan.peak_op)

    @property
    def weights(self) -> Tensors:
        """The model's own parameters and buffers as they are now, sharing its memory."""
        return self._bench.tensors

    def runner(self, plan: str | None) -> ProgramRunner:
        """What runs a plan's steps, for measurements."""
        self._step.use_plan(self.program("", plan))
        return self._step.runner

    def program(self, device: str, plan: str | None) -> Plan:
        """The plan of that name; for None, the one that decides nothing (see `labour.Programs`).

        Raises:
            ConfigError: It has not come.
        """
        if plan is None:
            return self._unplanned
        if plan not in self._plans:
            raise ConfigError(f"the task runs by plan {plan!r}, which has not come with it")
        return self._plans[plan][1]

    def do(self, job: Job, plans: Mapping[str, str], ask: Ask | None = None) -> Delivery:
        """Does a job.

        Args:
            job: For this device's client; its sample numbers are those of this device whatever the job says.
            plans: JSON of those that it names and that have not come before.
            ask: Takes questions to the server, where the method has some.

        Raises:
            ConfigError: A plan that is none, another model than the recipe's, or another task of this device waits for
                its server's answer.
            PlanMismatchError: As `compile`.
            InfeasibleBudgetError: As `compile`.
        """
        if self._busy:
            raise ConfigError("this device is in the middle of another task; it does one at a time")
        self._check_model(job.task.weights)
        self._busy, self.first_step_at_s, self._step.on_step = True, None, self._first_step
        try:
            self.compile(plans)
            if any(leg.plan is None for leg in job.legs):
                self._measure_unplanned()
            with one_thread():
                return do_job(replace(job, shard=self._shard), self._method, self._bench, self, self._traffic, ask=ask)
        finally:
            self._busy = False
            give_back_memory()


def open_device(
    brief: Mapping[str, Any],
    client: int | None,
    home: Path,
    *,
    allow: Collection[str] = (),
    data_root: Path | None = None,
) -> SlimDevice:
    """The device of a server's brief.

    Args:
        brief: A recipe as JSON, as it came from the server (`brief.brief_of`); checked here.
        client: Whose share of the recipe's partition it holds; None: all training samples of the local data set.
        home: A folder of this device alone.
        allow: Names of code (`package.module:factory`) and of data sets ("flwr:...") that the device's user trusts.
        data_root: The folder of a data set that is not embedded. The server's own setting means nothing here.

    Raises:
        ConfigError: Everything that is wrong with the brief or not allowed; data that are missing; no such client.
        CaptureError: The model's step cannot be captured.
    """
    config = config_of(brief, allow=allow)
    dataset = load_dataset(config.dataset, data_root)
    if client is None:
        shard: IntArray = np.arange(len(dataset.train), dtype=np.int64)
    else:
        shards = dealt(config, dataset)
        if not 0 <= client < len(shards):
            raise ConfigError(f"the recipe has clients 0 to {len(shards) - 1}, this device was told to be {client}")
        shard = shards[client]
    device = SlimDevice(config, dataset, shard, home)
    give_back_memory(collect=True)  # what reading and dealing out the data took
    return device
