"""An asynchronous run's folder: devices of three speeds that train all the time, failures, and a tight memory."""

from __future__ import annotations

import dataclasses
import heapq
from pathlib import Path

import numpy as np
import tomli_w
from tests.unit.report_runs import EAGER_PEAK_BYTES, MIB, RESIDENT_BYTES, budget_bytes

from fedhybrid.records import ClientRecord, RoundRecord, Summary, append_jsonl, as_json

TIERS = {"small": 0.4, "middle": 0.7, "large": 1.0}
SECONDS = {"small": 9.0, "middle": 5.0, "large": 2.0}
KINDS = ("crash", "time_out", "disconnected", "out_of_memory", "corrupt", "non_finite", "stale")


def write_merges(
    folder: Path,
    *,
    merges: int = 30,
    buffer: int = 2,
    in_flight: int = 8,
    clients: int = 12,
    failing: float = 0.1,
    seed: int = 0,
) -> Path:
    """Writes one finished run; every client stays in its tier, a client is never asked twice at once."""
    rng = np.random.default_rng(seed)
    tier_of = [list(TIERS)[client % len(TIERS)] for client in range(clients)]
    version, started_in, rounds, tasks = 0, {}, [], []
    under_way: list[tuple[float, int, float]] = []
    idle = list(range(clients))
    now_s = 0.0
    while version < merges:
        mine: list[ClientRecord] = []
        while sum(task.outcome == "completed" for task in mine) < buffer:
            while len(under_way) < in_flight and idle:
                client = idle.pop(int(rng.integers(len(idle))))
                duration_s = SECONDS[tier_of[client]] * float(rng.uniform(0.8, 1.2))
                heapq.heappush(under_way, (now_s + duration_s, client, duration_s))
                started_in[client] = version
            now_s, client, duration_s = heapq.heappop(under_way)
            idle.append(client)
            failed = rng.random() < failing
            mine.append(
                _task(
                    version, client, tier_of[client], str(rng.choice(KINDS)) if failed else "completed",
                    at_s=now_s, duration_s=duration_s, staleness=version - started_in[client],
                )
            )  # fmt: skip
        tasks += mine
        rounds.append(_round(version, now_s, mine, merges))
        version += 1
    folder.mkdir(parents=True)
    append_jsonl(folder / "rounds.jsonl", rounds)
    append_jsonl(folder / "clients.jsonl", tasks)
    config = {"rounds": merges, "schedule": {"kind": "asynchronous", "in_flight": in_flight, "buffer": buffer}}
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    (folder / "summary.json").write_text(as_json(_summary(rounds, tasks, tier_of, buffer)))
    return folder


def _task(
    round_index: int, client: int, tier: str, outcome: str, *, at_s: float, duration_s: float, staleness: int
) -> ClientRecord:
    tight = tier == "small" and client % 2 == 0
    peak_bytes = budget_bytes(TIERS[tier]) - 30_000
    return ClientRecord(
        round=round_index,
        client=client,
        tier=tier,
        device="phone",
        outcome=outcome,
        budget_bytes=budget_bytes(TIERS[tier]),
        planned_peak_bytes=peak_bytes,
        measured_peak_bytes=peak_bytes,
        plan=None,
        samples=50,
        steps=4,
        train_loss=1.0 if outcome == "completed" else None,
        virtual_time_s=duration_s,
        detail="" if outcome == "completed" else "something went wrong",
        at_s=at_s,
        staleness=staleness,
        bytes_up=MIB,
        bytes_down=MIB,
        violations=2 if tight else 0,
        switches=1 if tight else 0,
    )


def _round(index: int, now_s: float, mine: list[ClientRecord], merges: int) -> RoundRecord:
    done = [task for task in mine if task.outcome == "completed"]
    tested = index % 5 == 0 or index == merges - 1
    return RoundRecord(
        round=index,
        virtual_time_s=now_s,
        accuracy=0.9 - 0.8 * float(np.exp(-index / 8)) if tested else None,
        loss=1.0 if tested else None,
        train_loss=1.0,
        cohort=sorted(task.client for task in mine),
        completed=len(done),
        failed=len(mine) - len(done),
        bytes_up=MIB * len(mine),
        bytes_down=MIB * len(mine),
        wall_time_s=0.1 * index,
        staleness_mean=sum(task.staleness for task in done) / len(done),
        violations=sum(task.violations for task in mine),
    )


def _summary(rounds: list[RoundRecord], tasks: list[ClientRecord], tier_of: list[str], buffer: int) -> Summary:
    accuracies = [record.accuracy for record in rounds if record.accuracy is not None]
    done = [task for task in tasks if task.outcome == "completed"]
    failed = [task.outcome for task in tasks if task.outcome != "completed"]
    base = Summary(
        method="fedbuff",
        policy="uniform",
        dataset="digits",
        model="cnn",
        seed=0,
        rounds=len(rounds),
        clients=len(tier_of),
        final_accuracy=accuracies[-1],
        best_accuracy=max(accuracies),
        virtual_time_s=rounds[-1].virtual_time_s,
        wall_time_s=rounds[-1].wall_time_s,
        time_to_accuracy_s={},
        bytes_up=sum(record.bytes_up for record in rounds),
        bytes_down=sum(record.bytes_down for record in rounds),
        participation={
            tier: {
                "clients": tier_of.count(tier),
                "reached": len({task.client for task in done if task.tier == tier}),
                "tasks": sum(task.tier == tier for task in done),
                "failed": sum(task.tier == tier for task in tasks) - sum(task.tier == tier for task in done),
            }
            for tier in TIERS
        },
        budget_violations=0,
        failures={kind: failed.count(kind) for kind in sorted(set(failed))},
        resident_bytes=RESIDENT_BYTES,
        eager_peak_bytes=EAGER_PEAK_BYTES,
        runtime_bytes=310 * MIB,
    )
    return dataclasses.replace(
        base,
        schedule="semi-asynchronous" if buffer > 1 else "asynchronous",
        violations=sum(task.violations for task in tasks),
        staleness_mean=sum(task.staleness for task in done) / len(done),
        accuracy_by_tier={"small": 0.7, "middle": 0.8, "large": None},
        worst_tenth_accuracy=0.55,
        fairness_clients=len(tier_of),
    )
