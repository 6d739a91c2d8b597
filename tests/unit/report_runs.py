"""A realistic run's folder, written through the records' own functions: thirty devices in five tiers, with plans."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from fedhybrid.records import ClientRecord, RoundRecord, Summary, append_jsonl, as_json

MIB = 2**20
RESIDENT_BYTES, EAGER_PEAK_BYTES = 6 * MIB, 102 * MIB
TIERS = {"25%": 0.25, "40%": 0.40, "60%": 0.60, "80%": 0.80, "100%": 1.0}


def budget_bytes(share_ratio: float) -> int:
    return RESIDENT_BYTES + int(share_ratio * (EAGER_PEAK_BYTES - RESIDENT_BYTES))


def timeline(peak_bytes: int, operators: int) -> tuple[list[int], int]:
    """Bytes that rise through the forward pass and fall through the backward pass, with transients on top."""
    backward_at = operators * 2 // 5
    ramp = np.concatenate([np.linspace(0.1, 0.93, backward_at), np.linspace(0.93, 0.05, operators - backward_at)])
    ramp += 0.05 * (np.arange(operators) % 7 == 3)
    ramp[backward_at] = 1.0
    return [RESIDENT_BYTES + int(share * (peak_bytes - RESIDENT_BYTES)) for share in ramp / ramp.max()], backward_at


def plan_json(share_ratio: float) -> dict[str, Any]:
    peak = budget_bytes(share_ratio) - 40_000
    eager, eager_at = timeline(EAGER_PEAK_BYTES, 420)
    planned, planned_at = timeline(peak, 520)
    return {
        "peak_bytes": peak,
        "eager_peak_bytes": EAGER_PEAK_BYTES,
        "keep_all_peak_bytes": EAGER_PEAK_BYTES - 5 * MIB,
        "resident_bytes": RESIDENT_BYTES,
        "step_time_s": 0.6,
        "extra_time_s": 0.05,
        "solver": "greedy",
        "timelines": {"eager": eager, "keep_all": eager, "planned": planned},
        "timeline_marks": {"eager": {"backward_at": eager_at}, "planned": {"backward_at": planned_at}},
    }


def write_run(
    folder: Path,
    *,
    policy: str = "fedhybrid",
    rounds: int = 20,
    tiers: dict[str, float] | None = None,
    per_tier: int = 6,
    cohort: int = 8,
    finished: bool = True,
    failing: float = 0.03,
    best_ratio: float = 0.92,
    seed: int = 0,
    over_budget: bool = False,
    tested_every: int = 1,
    memory: bool = False,
) -> Path:
    """Writes one run; the policy `exclusion` reaches the tiers of 100 % and more only.

    Where not every round is tested, one client of the cohort tests the model on its own data in those that are.
    """
    tiers = TIERS if tiers is None else tiers
    rng = np.random.default_rng(seed)
    names = list(tiers)
    tier_of = rng.permutation(np.repeat(np.arange(len(names)), per_tier))
    fit = [c for c, t in enumerate(tier_of) if policy != "exclusion" or tiers[names[t]] >= 1.0]
    (folder / "plans").mkdir(parents=True)
    if policy != "exclusion":
        for name, share in tiers.items():
            if share < 1.0:
                (folder / "plans" / f"p{name.rstrip('%')}.json").write_text(json.dumps(plan_json(share)))
        (folder / "plans" / "smallest.json").write_text(json.dumps(plan_json(0.2)))  # that no budget asks for
    records: list[RoundRecord] = []
    tasks: list[ClientRecord] = []
    now_s = 0.0
    for index in range(rounds):
        chosen = sorted(rng.choice(fit, min(cohort, len(fit)), replace=False).tolist()) if fit else []
        for client in chosen:
            name = names[tier_of[client]]
            tasks.append(_task(index, client, name, tiers[name], rng=rng, failing=failing))
        if over_budget and index == 0:
            tasks[0] = dataclasses.replace(
                tasks[0], outcome="completed", measured_peak_bytes=tasks[0].budget_bytes + 3 * MIB
            )
        tasks = [
            dataclasses.replace(task, at_s=now_s + task.virtual_time_s) if task.round == index else task
            for task in tasks
        ]
        mine = [task for task in tasks if task.round == index]
        now_s += max((task.virtual_time_s for task in mine), default=0.0)
        done = sum(task.outcome == "completed" for task in mine)
        tested = (index + 1) % tested_every == 0 or index == rounds - 1
        if tested and tested_every > 1 and mine:
            tasks.append(
                dataclasses.replace(mine[0], kind="evaluate", outcome="completed", plan=None, at_s=now_s, accuracy=0.4)
            )
        accuracy = best_ratio - (best_ratio - 0.1) * float(np.exp(-(index + 1) / 5)) + 0.015 * float(rng.normal())
        records.append(
            RoundRecord(
                round=index,
                virtual_time_s=now_s,
                accuracy=min(1.0, max(0.0, accuracy)) if tested else None,
                loss=2.3 * float(np.exp(-index / 8)) if tested else None,
                train_loss=1.5 if done else None,
                cohort=chosen,
                completed=done,
                failed=len(mine) - done,
                bytes_up=3_000_000 * done,
                bytes_down=3_000_000 * len(mine),
                wall_time_s=1.5 * (index + 1),
                staleness_mean=0.0 if done else None,
                energy_j=120.0 * len(mine),
                client_accuracy=0.4 if tested and tested_every > 1 and mine else None,
            )
        )
    append_jsonl(folder / "rounds.jsonl", records)
    append_jsonl(folder / "clients.jsonl", tasks)
    config = {
        "method": "fedhybrid",
        "policy": policy,
        "model": "mobilenet_v2",
        "dataset": "digits",
        "rounds": rounds,
        "seed": seed,
        "data": {"partition": "dirichlet", "alpha": 0.3, "clients": per_tier * len(names)},
        "fleet": {
            "tiers": [
                {"name": n, "budget": f"{100 * s:.0f}%", "device": "phone", "share": 1.0} for n, s in tiers.items()
            ],
            **({"memory": {"window_s": 60.0}} if memory else {}),
        },
        "train": {"lr": 0.05, "batch_size": 16},
    }
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    if finished:
        (folder / "summary.json").write_text(
            as_json(_summary(records, tasks, names, per_tier=per_tier, policy=policy, seed=seed))
        )
    return folder


def _task(
    index: int, client: int, tier: str, share: float, *, rng: np.random.Generator, failing: float
) -> ClientRecord:
    failed = rng.random() < failing
    planned = EAGER_PEAK_BYTES if share >= 1 else budget_bytes(share) - 40_000
    return ClientRecord(
        round=index,
        client=client,
        tier=tier,
        device="phone-2gb" if share < 0.7 else "phone-6gb",
        outcome="out_of_memory" if failed else "completed",
        budget_bytes=budget_bytes(share),
        planned_peak_bytes=None if failed else planned,
        measured_peak_bytes=None if failed else planned - int(rng.integers(0, 20_000)),
        plan=None if share >= 1 else f"p{tier.rstrip('%')}",
        samples=50,
        steps=4,
        train_loss=None if failed else 1.2,
        virtual_time_s=float(rng.uniform(5, 15)) * (1.4 - 0.4 * min(share, 1.0)),
        detail="another application took 12 MiB" if failed else "",
    )


def _summary(
    records: list[RoundRecord], tasks: list[ClientRecord], names: list[str], *, per_tier: int, policy: str, seed: int
) -> Summary:
    def first_s(target: float) -> float | None:
        return next((r.virtual_time_s for r in records if r.accuracy is not None and r.accuracy >= target), None)

    accuracies = [r.accuracy for r in records if r.accuracy is not None]
    participation = {}
    for name in names:
        mine = [t for t in tasks if t.tier == name and t.kind != "evaluate"]
        done = [t for t in mine if t.outcome == "completed"]
        participation[name] = {
            "clients": per_tier,
            "reached": len({t.client for t in done}),
            "tasks": len(done),
            "failed": len(mine) - len(done),
        }
    failed = [t.outcome for t in tasks if t.outcome != "completed"]
    return Summary(
        method="fedhybrid",
        policy=policy,
        dataset="digits",
        model="mobilenet_v2",
        seed=seed,
        rounds=len(records),
        clients=per_tier * len(names),
        final_accuracy=accuracies[-1],
        best_accuracy=max(accuracies),
        virtual_time_s=records[-1].virtual_time_s,
        wall_time_s=records[-1].wall_time_s,
        time_to_accuracy_s={f"{target:.2f}": first_s(target) for target in np.arange(0.5, 1.0, 0.05).tolist()},
        bytes_up=sum(r.bytes_up for r in records),
        bytes_down=sum(r.bytes_down for r in records),
        participation=participation,
        budget_violations=sum((t.measured_peak_bytes or 0) > t.budget_bytes for t in tasks),
        failures={kind: failed.count(kind) for kind in set(failed)},
        resident_bytes=RESIDENT_BYTES,
        eager_peak_bytes=EAGER_PEAK_BYTES,
        runtime_bytes=310 * MIB,
        schedule="synchronous",
        energy_j=sum(r.energy_j or 0.0 for r in records),
        staleness_mean=0.0,
        accuracy_by_tier={
            name: accuracies[-1] * (0.6 + 0.4 * (place + 1) / len(names)) for place, name in enumerate(names)
        },
        worst_tenth_accuracy=0.5 * accuracies[-1],
        fairness_clients=per_tier * len(names),
    )
