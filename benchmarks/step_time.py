"""Planned against eager step time and peak, interleaved in one process, batch 32 at 32x32, SGD with momentum.

    .venv/bin/python benchmarks/step_time.py [--json] [--threads 1] [--repeats 9]

Prints one row a case: budget, planned and measured peak, and the ratio of median step times (planned / eager). Ends
with exit code 1 if a ratio is above its limit, a peak above its budget, or a bit differs.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

import fedhybrid as fh
from fedhybrid.executor import TrainStep, prepare_step
from fedhybrid.models import build_model

# model, budget, largest accepted time ratio
CASES = (
    ("mobilenet_v2", "40%", 1.10),
    ("mobilenet_v2", "20%", 1.25),
    ("resnet18", "40%", 1.20),
    ("vit", "40%", 1.25),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 3, 32, 32, generator=generator), torch.randint(0, 10, (32,), generator=generator)
    rows = []
    for model, budget, limit in CASES:
        net = build_model(model, input_shape=(3, 32, 32), classes=10, seed=0, options={})
        prepared = prepare_step(net, F.cross_entropy, (x, y), fh.SGD(lr=0.05, momentum=0.9))
        step = TrainStep(prepared, prepared.plan(budget))
        measured = step.measure(repeats=given.repeats)
        rows.append(
            {
                "model": model,
                "budget": budget,
                "budget_bytes": step.plan.budget_bytes,
                "peak_bytes": step.plan.peak_bytes,
                "measured_peak_bytes": measured.peak_bytes,
                "eager_peak_bytes": measured.eager_peak_bytes,
                "time_ratio": measured.time_ratio,
                "time_ratio_limit": limit,
                "bit_identical": measured.bit_identical,
            }
        )
        if not given.json:
            print(
                f"{model:14} {budget:>4}  planned {step.plan.peak_bytes / 2**20:7.2f} MiB  "
                f"measured {measured.peak_bytes / 2**20:7.2f}  eager {measured.eager_peak_bytes / 2**20:7.2f}  "
                f"time x{measured.time_ratio:.2f} (at most {limit:.2f})  bits equal: {measured.bit_identical}",
                flush=True,
            )
    if given.json:
        print(json.dumps(rows))
    good = all(
        row["time_ratio"] <= row["time_ratio_limit"]
        and row["measured_peak_bytes"] <= row["budget_bytes"]
        and row["bit_identical"]
        for row in rows
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
