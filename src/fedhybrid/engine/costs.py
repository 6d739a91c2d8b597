"""What a method asks about clients before it gives out tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedhybrid.engine.runtime import steps_of
from fedhybrid.engine.world import World
from fedhybrid.protocols import Quote, Submodel
from fedhybrid.records import LocalWork, TensorTimes

__all__ = ["WorldCosts"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class WorldCosts:
    """Implements `protocols.Costs`: what the plan book, the fleet and the driver's clock say now."""

    world: World

    @property
    def whole(self) -> Submodel:
        """The run's own step."""
        return self.world.job.whole

    @property
    def example(self) -> tuple[Tensor, Tensor]:
        """The first samples of the training data."""
        split = self.world.job.dataset.train
        return split.batch(torch.arange(self.world.job.work.batch_size) % len(split))

    def budget_bytes(self, client: int) -> int:
        """What the client promises now."""
        return self.world.promised([client])[0]

    def quote(self, client: int, submodel: str = "") -> Quote:
        """A submodel's step on this client, within what it promises now."""
        shelf, device = self.world.book.shelf(submodel), self.world.device(client).name
        budget_bytes = self.budget_bytes(client)
        plan, step_s = shelf.choose(device, budget_bytes), shelf.step_s(device, budget_bytes)
        fits = budget_bytes >= shelf.needed_bytes(plan)
        peak_bytes = shelf.needed_bytes(plan) if fits else shelf.least_bytes(device)
        return Quote(plan=plan, peak_bytes=peak_bytes, step_s=step_s * self._speed_factor(client))

    def num_samples(self, client: int) -> int:
        """Training samples that the client holds."""
        return self.world.num_samples(client)

    def steps(self, client: int, work: LocalWork) -> int:
        """Training steps of so much work on this client."""
        return steps_of(work, self.num_samples(client))

    def link_s(self, client: int, *, bytes_up: int = 0, bytes_down: int = 0) -> float:
        """Seconds that so many bytes take on the client's link."""
        device = self.world.device(client)
        return bytes_up / device.uplink_bytes_per_s + bytes_down / device.downlink_bytes_per_s

    @property
    def deadline_s(self) -> float | None:
        """Seconds from a round's beginning after which nobody is waited for."""
        return self.world.job.schedule.deadline_s

    def arrival_probability(
        self, client: int, *, steps: int, within_s: float, bytes_up: int, bytes_down: int = 0, submodel: str = ""
    ) -> float:
        """Probability that the client is back in time from a task that begins now."""
        fleet, device = self.world.fleet, self.world.device(client)
        return fleet.delays.arrival_probability(
            int(fleet.tier[client]),
            fixed_s=bytes_down / device.downlink_bytes_per_s,
            compute_s=steps * self.quote(client, submodel).step_s,
            bytes_up=bytes_up,
            uplink_bytes_per_s=device.uplink_bytes_per_s,
            within_s=within_s,
        )

    def step_seconds(self, submodel: str = "") -> tuple[float, ...]:
        """Seconds of the unplanned step on each kind of device of the fleet, whether or not it fits there."""
        shelf = self.world.book.shelf(submodel)
        return tuple(shelf.program(device.name, None).step_time_s for device in self.world.devices())

    def tensor_times(self, client: int, submodel: str = "") -> TensorTimes:
        """Where the seconds of a submodel's unplanned step go on this client's device."""
        times = self.world.book.tensor_times(self.world.device(client).name, submodel)
        factor = self._speed_factor(client)
        return TensorTimes(
            forward_s=factor * times.forward_s,
            pass_s={name: factor * seconds for name, seconds in times.pass_s.items()},
            weight_s={name: factor * seconds for name, seconds in times.weight_s.items()},
            names=times.names,
        )

    def _speed_factor(self, client: int) -> float:
        return self.world.speed_factor(client)
