"""A real device: its own data, the model, programs that another process has made of plans, and little else in memory.

Where a method's clients train submodels, those that were used last are held beside the global model.

It does jobs through `engine.labour.do_job` as every simulated client does, bit for bit; capture, planner and solvers
are never imported (`tests/unit/test_light_imports.py` holds it to that).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from fedhybrid.data import Dataset, load_dataset
from fedhybrid.engine.footprint import give_back_memory
from fedhybrid.engine.labour import Job, do_job
from fedhybrid.engine.runtime import Ask, Workbench, classification_loss, one_thread
from fedhybrid.engine.traffic import Delivery, Traffic
from fedhybrid.errors import ConfigError
from fedhybrid.executor.program import ProgramRunner
from fedhybrid.experiment.config import RunConfig
from fedhybrid.experiment.material import adapted, dealt, initial_model, traffic_of
from fedhybrid.experiment.samples import federated_data
from fedhybrid.integrations.flower.device.compiling import Compiler
from fedhybrid.integrations.flower.device.places import Place
from fedhybrid.integrations.flower.device.setting import batch_layout, config_of, method_of, optimizer_of, step_setting
from fedhybrid.planner import Plan
from fedhybrid.protocols import Submodel
from fedhybrid.records import ClientTask, IntArray
from fedhybrid.tree import Tensors, buffers_of, tensors_of

__all__ = ["SlimDevice", "open_device"]

_PLACES = 2  # submodels in memory at once


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
        split, shape, classes, tokens = dataset.train, dataset.input_shape, dataset.classes, dataset.tokens
        example = split.batch(torch.from_numpy(np.resize(shard, config.train.batch_size)))
        model = initial_model(config, input_shape=shape, classes=classes, tokens=tokens)
        model = adapted(self._method, model, example[0])
        optimizer = optimizer_of(config, self._method)
        setting = step_setting(config, input_shape=shape, classes=classes, tokens=tokens, batch=batch_layout(example))
        self._home, self._setting, self._places = home, setting, OrderedDict[str, Place]()
        self._whole = Submodel(module=model, loss_fn=classification_loss, optimizer=optimizer)
        first = self._place(self._method.menu(model)[0])
        self._bench = Workbench(model=model, split=split, station=lambda name: self._place(name).station)
        down, up = traffic_of(config, differences=self._method.differences)
        self._traffic = Traffic(
            down=down,
            up=up,
            differences=self._method.differences,
            buffers=buffers_of(model),
            run_seed=config.seed,
            transport=self._method.transport,
        )
        self._busy = False
        self.first_step_at_s: float | None = None
        self.num_samples, self.fingerprint = len(shard), first.fingerprint
        plan = first.unplanned
        self.resident_bytes, self.eager_peak_bytes = plan.resident_bytes, plan.eager_peak_bytes
        self.keep_all_bytes = plan.peak_bytes

    def compile(self, plans: Mapping[str, str], submodel: str = "") -> None:
        """Makes programs of plans that have none yet, all in one workshop; a plan known by its name is not read again.

        Args:
            plans: JSON by the names that jobs call them.
            submodel: That they are for.

        Raises:
            ConfigError: Something that is no plan for this step.
            PlanMismatchError: A plan for another step.
            InfeasibleBudgetError: A plan needs more here than the budget that it was made for.
        """
        self._place(submodel).compile(plans)

    def _place(self, name: str) -> Place:
        """Where a submodel is trained; what has not been asked for longest is given up, to save memory."""
        if name not in self._places:
            while len(self._places) >= _PLACES:
                self._places.popitem(last=False)
            setting = self._setting | ({"submodel": name} if name else {})
            submodel = self._method.submodel(self._whole, name)
            self._places[name] = Place(submodel, Compiler(self._home, setting))
        self._places.move_to_end(name)
        return self._places[name]

    def _first_step(self, place: Place) -> None:
        self.first_step_at_s, place.step.on_step = time.perf_counter(), None

    def _check_model(self, task: ClientTask) -> None:
        """Methods of this package send what a submodel has; others may send a part, or tensors of their own."""
        if task.kind == "evaluate":
            own, weights = tensors_of(self._bench.model), task.weights
        else:
            own, weights = self._place(task.submodel).station.tensors, task.weights
        problems = []
        if weights and (task.submodel or not self._foreign):
            problems += [f"the task's model has no tensor {name!r}" for name in own if name not in weights]
        found = {name: (tuple(t.shape), t.dtype) for name, t in weights.items() if name in own}
        problems += [
            f"the task's tensor {name!r} is {layout[1]} {list(layout[0])}, here it is {own[name].dtype} "
            f"{list(own[name].shape)}"
            for name, layout in found.items()
            if layout != (tuple(own[name].shape), own[name].dtype)
        ]
        if problems:
            raise ConfigError([f"{problem}: server and device must have the same recipe" for problem in problems])

    @property
    def weights(self) -> Tensors:
        """The model's own parameters and buffers as they are now, sharing its memory."""
        return self._place("").station.tensors

    def runner(self, plan: str | None) -> ProgramRunner:
        """What runs a plan's steps of the whole model, for measurements."""
        step = self._place("").step
        step.use_plan(self.program("", plan))
        return step.runner

    def program(self, device: str, plan: str | None, submodel: str = "") -> Plan:
        """The plan of that name; for None, the one that decides nothing (see `labour.Programs`).

        Raises:
            ConfigError: It has not come.
        """
        return self._place(submodel).program(plan)

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
        self._check_model(job.task)
        self._busy, self.first_step_at_s = True, None
        try:
            if job.legs:
                place = self._place(job.task.submodel)
                place.step.on_step = partial(self._first_step, place)
                place.compile(plans)
                if any(leg.plan is None for leg in job.legs):
                    place.measure_unplanned()
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
    dataset = federated_data(config, load_dataset(config.dataset, data_root), held_back=client is not None)
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
