"""A contender and the bare loop in one process, a round in turn, so that both see the machine in the same state.

    PYTHON benchmarks/federations/paired.py [--with ours] [--rounds 100] [--empty] [--json]

The contender's time is all from the end of one `on_round` to the beginning of the next: what it stores counts. With
`--empty` this is the whole empty task: weights in, no training, weights averaged. The first rounds are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from importlib import import_module

import torch
from bare import BareLoop
from digits_job import COHORT, load_job

__all__ = ["main"]

CONTENDERS = {"ours": "ours", "pfl": "pfl_parity"}
LEFT_OUT = 5


def main() -> None:
    given = _arguments()
    torch.set_num_threads(1)
    job = load_job(empty=given.empty)
    loop = BareLoop(job)
    theirs_ms: list[float] = []
    bare_ms: list[float] = []
    accuracies: list[tuple[float, float]] = []
    mark_s = 0.0

    def on_round(accuracy: float) -> None:
        nonlocal mark_s
        theirs_ms.append((time.perf_counter() - mark_s) * 1e3 / COHORT)
        began_s = time.perf_counter()
        accuracies.append((accuracy, loop.play_round(len(bare_ms))))
        mark_s = time.perf_counter()
        bare_ms.append((mark_s - began_s) * 1e3 / COHORT)

    import_module(CONTENDERS[given.contender]).play(job, given.rounds + LEFT_OUT, on_round, 1)
    result = compare(given.contender, theirs_ms[LEFT_OUT:], bare_ms[LEFT_OUT:]) | {
        "job": "empty" if given.empty else "train",
        "accuracies": accuracies,
    }
    words = (
        f"{given.contender} {result['ms_a_task']:.3f} ms a task, bare loop {result['bare_ms_a_task']:.3f}, paired "
        f"difference {result['difference_ms']:+.3f}, paired ratio {result['ratio']:.3f}"
    )
    print(json.dumps(result) if given.json else words)


def compare(contender: str, theirs_ms: list[float], bare_ms: list[float]) -> dict[str, object]:
    """Medians of both and of their paired differences and ratios; quartiles of these two.

    >>> found = compare("x", [2.0, 4.0, 6.0], [1.0, 2.0, 2.0])
    >>> found["difference_ms"], found["ratio"], found["ratio_quartiles"]
    (2.0, 2.0, [2.0, 2.5])
    """
    differences = [theirs - bare for theirs, bare in zip(theirs_ms, bare_ms, strict=True)]
    ratios = [theirs / bare for theirs, bare in zip(theirs_ms, bare_ms, strict=True)]
    return {
        "contender": contender,
        "rounds": len(ratios),
        "ms_a_task": statistics.median(theirs_ms),
        "bare_ms_a_task": statistics.median(bare_ms),
        "difference_ms": statistics.median(differences),
        "difference_quartiles_ms": statistics.quantiles(differences, method="inclusive")[::2],
        "ratio": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, method="inclusive")[::2],
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--with", dest="contender", choices=sorted(CONTENDERS), default="ours")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--empty", action="store_true", help="train nothing")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
