"""A simulated device: the whole engine stands behind it, and it can be any client of the recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import final

from fedhybrid.engine.labour import Job, do_job
from fedhybrid.engine.runtime import Ask, Workbench, one_thread
from fedhybrid.engine.submodels import Submodels
from fedhybrid.engine.traffic import Delivery
from fedhybrid.engine.world import submodels_of, traffic_of
from fedhybrid.errors import ConfigError
from fedhybrid.experiment.build import build_federation
from fedhybrid.experiment.check import load_config
from fedhybrid.planner import Plan

__all__ = ["SimulatedDevice", "SimulatedNode", "simulated_device"]


@final
class _Programs:
    """What a device runs by a plan's name: the plans that have come with its jobs, and the unplanned step."""

    def __init__(self, submodels: Submodels) -> None:
        self._submodels = submodels
        self._known: dict[str, tuple[str, Plan]] = {}

    def learn(self, plans: Mapping[str, str]) -> None:
        """Reads plans; one that is known under its name with the same text is not read again."""
        for name, text in plans.items():
            if name not in self._known or self._known[name][0] != text:
                self._known[name] = (text, Plan.from_json(text))

    def program(self, device: str, plan: str | None, submodel: str = "") -> Plan:
        """The plan of that name; None is the submodel's unplanned step."""
        if plan is None:
            return self._submodels.prepared(submodel).keep_all()
        if plan not in self._known:
            raise ConfigError(f"the task runs by plan {plan!r}, which has not come with it")
        return self._known[plan][1]


@final
class SimulatedDevice:
    """Does the jobs of a recipe's clients.

    Tasks that wait for the server's answer keep the model that they train in, so each has a workbench of its own;
    there are as many as were ever needed at once.
    """

    def __init__(self, brief: Mapping[str, object]) -> None:
        """Loads the data and builds the model; what is captured is captured when a job first asks for it.

        Raises:
            ConfigError: As `build_federation`.
        """
        self._job = job = build_federation(load_config(brief), values=False)
        self._submodels = submodels_of(job)
        self._benches = [self._bench(self._submodels)]
        self._programs = _Programs(self._submodels)
        self._traffic = traffic_of(job)

    def do(self, job: Job, plans: Mapping[str, str], ask: Ask | None) -> Delivery:
        """Does a job.

        Args:
            job: Without its client's sample numbers.
            plans: Those that it names, as JSON.
            ask: Takes questions to the server.

        Raises:
            ConfigError: A plan that is none, or no such client.
            PlanMismatchError: A plan for another step than this device's.
        """
        if not 0 <= job.task.client < len(self._job.shards):
            raise ConfigError(f"the task is for client {job.task.client}, the recipe has {len(self._job.shards)}")
        self._programs.learn(plans)
        job = replace(job, shard=self._job.shards[job.task.client])
        with one_thread(), self._lent() as bench:
            return do_job(job, self._job.method, bench, self._programs, self._traffic, ask=ask)

    def num_samples(self, client: int) -> int:
        """That this client holds."""
        return len(self._job.shards[client])

    @contextmanager
    def _lent(self) -> Iterator[Workbench]:
        bench = self._benches.pop() if self._benches else None
        if bench is None:
            bench = self._bench(self._submodels.apart())
        try:
            yield bench
        finally:
            self._benches.append(bench)

    def _bench(self, submodels: Submodels) -> Workbench:
        return Workbench(model=submodels.whole.module, split=self._job.dataset.train, station=submodels.station)


@lru_cache(maxsize=2)
def simulated_device(brief: str) -> SimulatedDevice:
    """The device of a recipe (`brief_text`); a process makes it once."""
    return SimulatedDevice(json.loads(brief))


@final
class SimulatedNode:
    """A simulated device that is one client: what a real one is to a deployment's server."""

    def __init__(self, brief: Mapping[str, object], client: int) -> None:
        """As `SimulatedDevice`; nodes of one process share it.

        Raises:
            ConfigError: As there.
        """
        self._device, self._client = simulated_device(json.dumps(brief, sort_keys=True)), client

    @property
    def num_samples(self) -> int:
        """That the client holds."""
        return self._device.num_samples(self._client)

    @property
    def first_step_at_s(self) -> float | None:
        """Nobody looks: tasks of other clients run in the same process."""
        return None

    def do(self, job: Job, plans: Mapping[str, str], ask: Ask | None) -> Delivery:
        """Does a job."""
        return self._device.do(job, plans, ask)
