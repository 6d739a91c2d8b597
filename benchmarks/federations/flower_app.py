"""The job by Flower's simulation: FedAvg on Ray, as many actors as cores, started from a script (no daemon, no CLI).

Flower's strategy samples, sends, receives and averages; the only change is which client a sampled node plays, so that
all contenders train the same cohorts. Nothing is sent to anybody: its three network switches are off, its files go
to a folder that is thrown away.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from digits_job import CLIENTS, COHORT, Job, OnRound, accuracy, report
from flower_client import app
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

__all__ = ["play"]


class _SameCohorts(FedAvg):
    """FedAvg that tells each node of its sample which client of the job to play."""

    job: Job

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        messages = list(super().configure_train(server_round, arrays, config, grid))
        cohort = self.job.cohort(server_round - 1)
        for message, client in zip(messages, cohort, strict=True):
            own = ConfigRecord({**config, "client": client, "empty": not self.job.epochs})
            message.content = RecordDict({"arrays": arrays, "config": own})
        return messages


def play(job: Job, rounds: int, on_round: OnRound, cores: int) -> None:
    """All rounds, in one actor a core; ends when Ray has been shut down."""
    server, model = ServerApp(), job.model()
    strategy = _SameCohorts(fraction_train=COHORT / CLIENTS, fraction_evaluate=0.0, min_available_nodes=CLIENTS)
    strategy.job = job

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        found = accuracy(job, model)
        if server_round:
            on_round(found)
        return MetricRecord({"accuracy": found})

    @server.main()
    def _main(grid: Grid, context: Context) -> None:
        strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=rounds, evaluate_fn=evaluate)

    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path[1:]])
    with TemporaryDirectory(prefix="fl", ignore_cleanup_errors=True) as folder:
        os.environ["FLWR_HOME"] = folder
        run_simulation(
            server_app=server,
            client_app=app,
            num_supernodes=CLIENTS,
            backend_config={
                "init_args": {"num_cpus": cores, "_temp_dir": folder},
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            },
        )


if __name__ == "__main__":
    report("flower", play)
