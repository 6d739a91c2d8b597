"""The strength of compression that TEASQ-Fed begins with, searched in short runs of a recipe.

    .venv/bin/python benchmarks/teasq.py recipes/methods/teasq-fed.toml --variant static --out DIR

A trial is the recipe itself (`--variant` of it), made shorter (`--rounds`), at one strength that does not change; its
accuracy is the mean over the last third of its tests and over all seeds. Trials go from the strongest rung of the
ladder to weaker ones until one loses at most `--most-loss` against the trial without compression. What is printed is
the `[method_options]` to go on with; what is in `--out` is not run again.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path
from statistics import mean
from typing import Any

import fedhybrid as fh
from fedhybrid.methods import TeasqFed
from fedhybrid.methods.teasq import NO_COMPRESSION, Strength, parse_ladder, search_strength


def main() -> int:
    given = _arguments()
    recipe: dict[str, Any] = tomllib.loads(given.recipe.read_text(encoding="utf-8"))
    variants = recipe.pop("compare", {}).get("variants", {})
    if given.variant is not None and given.variant not in variants:
        print(f"error: {given.recipe} has no variant {given.variant!r}; it has {', '.join(variants)}", file=sys.stderr)
        return 2
    settings: dict[str, Any] = {} if given.variant is None else variants[given.variant]
    settings = settings | {"method": "teasq-fed", "rounds": given.rounds}

    def accuracy_of(strength: Strength) -> float:
        found = [_trial(recipe, settings, strength, seed, given.out) for seed in range(1, given.seeds + 1)]
        print(f"{strength}: accuracy {mean(found):.3f}", file=sys.stderr, flush=True)
        return mean(found)

    rungs = parse_ladder(given.ladder)
    trials = search_strength(rungs, accuracy_of, most_loss=given.most_loss)
    print("| strength | accuracy | loss |\n|---|---|---|")
    for trial in trials:
        print(f"| {trial.strength} | {trial.accuracy:.3f} | {trial.loss:+.3f} |")
    if trials[-1].loss > given.most_loss:
        print(f"\nNo rung loses at most {given.most_loss:g}; the weakest one is the last.")
    print(f'\n[method_options]\nladder = "{given.ladder}"\nstart = "{trials[-1].strength}"')
    return 0


def _trial(recipe: dict[str, Any], settings: dict[str, Any], strength: Strength, seed: int, out: Path) -> float:
    """The accuracy of one short run."""
    options = {"ladder": str(strength), "start": str(strength), "weaker_every": 0}
    folder = out / f"{str(strength).replace('/', '-')}-seed-{seed}"
    run = fh.run(
        recipe,
        out=folder,
        overrides=settings | {f"method_options.{name}": value for name, value in options.items()} | {"seed": seed},
        resume=folder.exists(),
    )
    tested = [record.accuracy for record in run.rounds if record.accuracy is not None]
    return mean(tested[-max(len(tested) // 3, 1) :])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="a TOML file, with the schedule that the run shall have")
    parser.add_argument("--out", type=Path, required=True, help="folder of the trials")
    parser.add_argument("--variant", help="of the recipe's [compare.variants]")
    parser.add_argument("--ladder", default=TeasqFed.ladder, help="strengths from strong to weak, as ratio/bits")
    parser.add_argument("--rounds", type=int, default=30, help="merges of a trial")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--most-loss", type=float, default=0.02, help=f"accuracy (0 to 1) that may be lost against {NO_COMPRESSION}"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
