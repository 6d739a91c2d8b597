"""The same methods on Flower: simulated on several machines, and deployed on real devices.

Where to find what:

- `simulated/`: Flower's nodes under the engine's virtual clock, by Ray or in memory alone (`simulate`, `on_grid`);
- `deployed/`: the server of real devices, in real time (`serve`);
- `device/`: a device's program (`join`);
- `link/`: keys, the SuperLink as a process, both ends of the connection;
- `strategy/`: `FedHybridStrategy` for people who have a Flower app already;
- `messages` and `brief`: what both sides say to each other; `private`: names that Flower does not publish; `version`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedhybrid.lazy import lazily

if TYPE_CHECKING:
    from fedhybrid.integrations.flower.deployed.serving import serve
    from fedhybrid.integrations.flower.device.joining import join
    from fedhybrid.integrations.flower.link.endpoint import Endpoint
    from fedhybrid.integrations.flower.link.keys import make_keys
    from fedhybrid.integrations.flower.simulated.local_grid import LocalGrid
    from fedhybrid.integrations.flower.simulated.simulation import on_grid, simulate
    from fedhybrid.integrations.flower.strategy.client_side import answer_query, planned_step, step_metrics
    from fedhybrid.integrations.flower.strategy.planned import FedHybridStrategy
else:
    __getattr__ = lazily(
        __name__,
        {
            "Endpoint": "link.endpoint",
            "FedHybridStrategy": "strategy.planned",
            "LocalGrid": "simulated.local_grid",
            "answer_query": "strategy.client_side",
            "join": "device.joining",
            "make_keys": "link.keys",
            "on_grid": "simulated.simulation",
            "planned_step": "strategy.client_side",
            "serve": "deployed.serving",
            "simulate": "simulated.simulation",
            "step_metrics": "strategy.client_side",
        },
    )

__all__ = [
    "Endpoint",
    "FedHybridStrategy",
    "LocalGrid",
    "answer_query",
    "join",
    "make_keys",
    "on_grid",
    "planned_step",
    "serve",
    "simulate",
    "step_metrics",
]
