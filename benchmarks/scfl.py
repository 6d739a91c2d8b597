"""Coded training: what noise costs in accuracy and buys in privacy, and what paying for exposure costs.

    .venv/bin/python benchmarks/scfl.py [--json] [--rounds 60] [--seed 3] [--sigmas 0.1 0.3 1 2 4] [--target 0.95]
        [--frozen] [--out DIR]

Runs recipes/methods/scfl.toml at several noise levels, each beside the bits that its ledger says at most, and its
counterparts; then a market of four types of devices, in which a menu of contracts is compared with one price for all,
at several prices of noise. `--out` draws scfl.png. `--frozen` takes another federation: a frozen ResNet-20 of half the
width, pre-trained on the digits 0 to 4, under 300 random Fourier features; five clients with a class of 5 to 9 each, of
which two are often slow.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

from showing import machine

import fedhybrid as fh
from fedhybrid.engine.checkpoint import read_checkpoint
from fedhybrid.methods.coded import Market, best_contract, exposure_bits, ledger, single_price
from fedhybrid.report.figures import LIGHT, themed
from fedhybrid.report.figures.style import new_figure

RECIPE = Path(__file__).parents[1] / "recipes/methods/scfl.toml"
THETAS, COUNTS = (0.2, 0.5, 1.0, 2.0), (3, 3, 2, 2)
LEVELS = [0.05 * 1.25**step for step in range(25)]  # noise of the contracts' grid, relative to features
NOISE_PRICES = (0.1, 0.3, 1.0, 3.0, 10.0)
FROZEN: dict[str, Any] = {
    "method": "scfl",
    "policy": "uniform",
    "model": "resnet20",
    "model_options": {"width": 0.5},
    "dataset": "digits",
    "pretrain": {
        "classes": [0, 1, 2, 3, 4],
        "new_head": True,
        "epochs": 6,
        "batch_size": 32,
        "optimizer": "adamw",
        "lr": 0.001,
    },
    "data": {"classes": [5, 6, 7, 8, 9], "clients": 5, "partition": "shards", "shards_per_client": 1},
    "fleet": {
        "clients_per_round": 5,
        "tiers": [
            {"name": "slow", "budget": "64 MiB", "share": 2, "device": "laptop"},
            {"name": "fast", "budget": "64 MiB", "share": 3, "device": "laptop"},
        ],
        "delays": {"compute_ratio": {"slow": 20.0, "fast": 0.2}, "erasure": 0.05},
    },
    "train": {"batch_size": 16, "steps": 5, "lr": 1.0},
    "schedule": {"deadline_s": 0.13},
    "method_options": {"lift": 300, "coded_rows": 256, "sigma": 0.3},
}


def main() -> int:
    given = _arguments()
    recipe = FROZEN if given.frozen else tomllib.loads(RECIPE.read_text())
    base = {name: table for name, table in recipe.items() if name != "compare"}
    base |= {"rounds": given.rounds, "seed": given.seed}
    rows = {name: value for name, value in base["method_options"].items() if name in {"coded_rows", "lift"}}
    run = partial(_run, target=given.target)
    noise = [run(base, f"scfl, sigma {sigma:g}", {"sigma": sigma}) for sigma in given.sigmas]
    others = [
        run({**base, "method": "codedfedl", "method_options": rows}, "codedfedl", {}),
        run({**base, "schedule": {}}, "wait for all", {"mix": 1.0}),
        run(base, "drop stragglers", {"mix": 1.0, "inverse": False}),
    ]
    contracts = [_contracts(price, rows=base["method_options"]["coded_rows"]) for price in NOISE_PRICES]
    if given.json:
        print(json.dumps({"machine": machine(), "runs": noise + others, "contracts": contracts}))
    else:
        print(_tables(noise + others, contracts))
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        _draw(noise, others, contracts, given.out / "scfl.png")
        print(f"scfl.png is in {given.out}", file=sys.stderr)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.1, 0.3, 1.0, 2.0, 4.0])
    parser.add_argument("--target", type=float, default=0.95, help="accuracy whose first virtual second is printed")
    parser.add_argument("--frozen", action="store_true", help="a frozen ResNet-20 under random features")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _run(recipe: dict[str, Any], label: str, options: dict[str, Any], *, target: float) -> dict[str, Any]:
    """One run; accuracy is the mean of the last five rounds."""
    with tempfile.TemporaryDirectory() as folder:
        raw = recipe | {"method_options": recipe["method_options"] | options}
        run = fh.run(raw, out=Path(folder) / "run")
        entries = ledger(read_checkpoint(Path(folder) / "run/checkpoint.safetensors").server.extra)
    last = [record.accuracy or 0.0 for record in run.rounds[-5:]]
    coded_s = max((task.at_s for task in run.clients if task.kind == "encode"), default=0.0)
    bits = max((entry.bits for entry in entries), default=0.0)
    return {
        "label": label,
        "accuracy": sum(last) / len(last),
        "bits": bits if bits < float("inf") else None,
        "coded_s": coded_s,
        "target_s": next((r.virtual_time_s for r in run.rounds if (r.accuracy or 0.0) >= target), None),
        "virtual_time_s": run.rounds[-1].virtual_time_s,
        "late_ratio": sum(r.late for r in run.rounds) / sum(len(r.cohort) for r in run.rounds),
    }


def _contracts(noise_price: float, *, rows: int) -> dict[str, Any]:
    """The menu and the single price of one market; features have the largest magnitude of random Fourier features."""
    bits = partial(exposure_bits, rows=rows, largest=2**0.5)
    market = Market(thetas=THETAS, counts=COUNTS, bits=bits, noise_price=noise_price)
    menu, price = best_contract(market, LEVELS), single_price(market, LEVELS)
    assert not menu.problems()
    return {
        "noise_price": noise_price,
        "menu_cost": menu.cost,
        "menu_payments": menu.payments,
        "menu_sigmas": [offer.sigma for offer in menu.offers],
        "single_cost": price.cost,
        "single_payments": price.payments,
        "single_sigma": price.offers[0].sigma,
    }


def _tables(runs: list[dict[str, Any]], contracts: list[dict[str, Any]]) -> str:
    lines = [f"{'run':18} {'accuracy':>8} {'bits':>7} {'coded s':>8} {'target s':>8} {'end s':>7} {'late':>6}"]
    for run in runs:
        bits = "no rows" if not run["coded_s"] else "all" if run["bits"] is None else f"{run['bits']:.2f}"
        target = "never" if run["target_s"] is None else f"{run['target_s']:.3f}"
        lines.append(
            f"{run['label']:18} {run['accuracy']:8.3f} {bits:>7} {run['coded_s']:8.3f} {target:>8} "
            f"{run['virtual_time_s']:7.3f} {run['late_ratio']:6.1%}"
        )
    lines += [
        "",
        f"{'noise price':>11} {'menu cost':>10} {'one price':>10} {'saved':>7}  sigmas of the menu / one price",
    ]
    for row in contracts:
        sigmas = " ".join(f"{sigma:.2f}" for sigma in row["menu_sigmas"])
        saved = 1 - row["menu_cost"] / row["single_cost"]
        lines.append(
            f"{row['noise_price']:11g} {row['menu_cost']:10.2f} {row['single_cost']:10.2f} {saved:7.1%}  "
            f"{sigmas} / {row['single_sigma']:.2f}"
        )
    return "\n".join(lines)


def _draw(
    noise: list[dict[str, Any]], others: list[dict[str, Any]], contracts: list[dict[str, Any]], path: Path
) -> None:
    """Accuracy by bits, with the counterparts as lines; costs by the price of noise."""
    with themed(LIGHT):
        figure = new_figure(2.8)
        left, right = figure.subplots(1, 2)
        left.plot([r["bits"] for r in noise], [r["accuracy"] for r in noise], "o-", color=LIGHT.series[0], label="scfl")
        for colour, other in zip(LIGHT.series[1:], others, strict=False):
            left.axhline(other["accuracy"], color=colour, linewidth=1.2, label=other["label"])
        left.set_xlabel("bits of an entry given away, at most")
        left.set_ylabel("accuracy")
        prices = [row["noise_price"] for row in contracts]
        right.plot(prices, [row["menu_cost"] for row in contracts], "o-", color=LIGHT.series[0], label="menu")
        right.plot(prices, [row["single_cost"] for row in contracts], "o-", color=LIGHT.series[1], label="one price")
        right.set_xscale("log")
        right.set_xticks(prices, [f"{price:g}" for price in prices])
        right.set_xticks([], minor=True)
        right.set_xlabel("price of noise")
        right.set_ylabel("the server's cost")
        for axes in (left, right):
            axes.grid(axis="y")
            axes.tick_params(length=0)
            axes.legend(fontsize="small")
        figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
