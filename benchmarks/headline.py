"""The headline comparison: five settings, two fleets, sixteen variants, three seeds; one page and one note of all.

    .venv/bin/python benchmarks/headline.py --root DATA --out DIR             # goes on where it was stopped
    .venv/bin/python benchmarks/headline.py --root DATA --out DIR --note      # and a note in results/
    .venv/bin/python benchmarks/headline.py --out DIR --only-note             # of what is there; nothing is run

`--root` is the folder that holds the data sets. Each setting is compared in parts, one for each mixture of its data:
`SETTING-alpha-0.1`, or `SETTING` where there is one mixture only. A part has its own folder below `--out`, as
`fedhybrid compare recipes/headline/SETTING.toml` makes it; `all/` there gets the page of all. A note keeps each part's
records in results/headline/, and a part that is not in `--out` is read from there: runs may be made one part at a time,
on any machine, and the page is made again without any. docs/headline.md says what is compared, and what was claimed
before the runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from comparing import (
    RECIPES,
    SETTINGS,
    Part,
    differs_from_recipe,
    finished_runs,
    keep_records,
    parts_of,
    restore_records,
    settings_named,
)
from showing import RESULTS, claims_table, fleets_table, note_name, write_note

from fedhybrid.errors import ConfigError
from fedhybrid.experiment import config_toml
from fedhybrid.report.comparison import Written, write_comparison

NOT_REPRODUCED = """## What is not reproduced

FedHybrid's own numbers (K. Tam et al., SenSys 2024, https://arxiv.org/abs/2510.11400: up to 39.1 % more accuracy, up to
15.5 times less time, 5.38 and 15.55 times faster than random selection, 15.3 and 33.7 % over Oort with FedProx): the
mixtures of its data, its numbers of clients, batch sizes, phones and budgets are not public, nor is its code, and what
its text leaves open is reconstructed here (docs/methods.md). These cells are another scale, and their time is virtual.
"""
# Variants that were run again after results had been seen, in which parts, and what had changed; all others were kept.
REPEATED = (
    (
        ("fedhybrid-plus", "plus-selection"),
        ("fashion-mnist-alpha-0.5", "shakespeare-plays-alpha-0.5", "shakespeare-characters"),
        "options of the policy (also in comparison.json)",
    ),
    (
        ("fedhybrid-paper", "paper-plans"),
        (
            *("uci-har", "fashion-mnist-alpha-0.1", "fashion-mnist-alpha-0.5"),
            *("shakespeare-plays-alpha-0.1", "shakespeare-plays-alpha-0.5", "shakespeare-characters"),
        ),
        "the plan that stands in where greedy-mps finds none",
    ),
)
PICTURES = ("accuracy", "time-to-target", "participation", "worst-tier")


def main() -> int:
    given = _arguments()
    try:
        return _made(given)
    except ConfigError as error:
        print("\n".join(f"error: {problem}" for problem in error.problems), file=sys.stderr)
        return 2


def _made(given: argparse.Namespace) -> int:
    recipes = RECIPES / "full" if given.full else RECIPES
    parts = [part for setting in given.settings for part in parts_of(setting, recipes)]
    whole = [part.setting for part in parts if part.name != part.setting and (given.out / part.setting).exists()]
    if whole:
        raise ConfigError(
            f"{given.out / whole[0]} holds all mixtures of its data; here each has a folder of its own, such as "
            f"{parts_of(whole[0], recipes)[0].name}: give another --out"
        )
    failed = [] if given.only_note else [part.name for part in parts if not _compared(given, part)]
    with tempfile.TemporaryDirectory() as unpacked:
        folders = _folders(given, parts, Path(unpacked))
        if not folders:
            print(f"there are neither runs in {given.out} nor records of {', '.join(given.settings)}", file=sys.stderr)
            return 1
        written = write_comparison(*folders.values(), out=given.out / "all")
        there = [part for part in parts if part.name in folders]
        changed = [part.name for part in there if differs_from_recipe(part, folders[part.name])]
    print(written.page)
    if given.note or given.only_note:
        _keep(given, there, changed)
        print(_note(given, recipes, there, changed, written))
    if failed:
        print(f"runs of {', '.join(failed)} failed; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


def _compared(given: argparse.Namespace, part: Part) -> bool:
    """Whether all runs of a part are there now; the command names those that are not."""
    words = [str(part.recipe), f"data.root={given.root}", *part.words]
    words += ["--seeds", str(given.seeds), "--out", str(given.out / part.name)]
    words += [] if given.processes is None else ["--processes", str(given.processes)]
    return subprocess.run([sys.executable, "-m", "fedhybrid", "compare", *words], check=False).returncode == 0


def _records(given: argparse.Namespace, part: Part) -> Path:
    return RESULTS / ("headline-full" if given.full else "headline") / f"{part.name}.tar.xz"


def _folders(given: argparse.Namespace, parts: Sequence[Part], unpacked: Path) -> dict[str, Path]:
    """Where the runs of each part are: in `--out`, or unpacked from the records; a part without either is left out.

    A note is of the records where these have more runs, so that one that is published never tells of fewer.
    """
    found, noting = {}, given.note or given.only_note
    for part in parts:
        own, records = given.out / part.name, _records(given, part)
        here, kept = finished_runs(own), finished_runs(records)
        if kept and (not here or (noting and kept > here)):
            restore_records(records, unpacked / part.name)
            found[part.name] = unpacked / part.name
            more = f", more than the {here} in {own}" if here else ""
            print(f"{part.name}: {kept} runs from {records}{more}", file=sys.stderr)
        elif here:
            found[part.name] = own
            print(f"{part.name}: {here} runs in {own}", file=sys.stderr)
    return found


def _keep(given: argparse.Namespace, parts: Sequence[Part], changed: Sequence[str]) -> None:
    """Records of what has been run, also where runs are missing; never fewer than there were, nor of other settings."""
    for part in parts:
        own, records = given.out / part.name, _records(given, part)
        here, kept = finished_runs(own), finished_runs(records)
        if here and kept and (here < kept or part.name in changed):
            why = "of other settings than the recipe's" if part.name in changed else f"fewer than the {kept} recorded"
            print(f"{part.name}: {here} runs, {why}; the records stay as they are", file=sys.stderr)
        elif here:
            keep_records(own, records)


def _note(
    given: argparse.Namespace, recipes: Path, parts: Sequence[Part], changed: Sequence[str], written: Written
) -> Path:
    """The tables and pictures of the page, with the claims before them and the recipes behind.

    Args:
        given: The arguments.
        recipes: Their folder.
        parts: Those that the page has.
        changed: Names of parts that were run with other settings than their recipes have now.
        written: The page.
    """
    numbers = json.loads((written.page.parent / "table.json").read_text(encoding="utf-8"))
    theme = "headline-full" if given.full else "headline"
    shown = "<details><summary>{0}.toml, complete</summary>\n\n```toml\n{1}```\n\n</details>"
    settings = list(dict.fromkeys(part.setting for part in parts))
    configs = [shown.format(each, config_toml(recipes / f"{each}.toml")) for each in settings]
    seeds = list(dict.fromkeys(seed for cell in numbers["cells"] for seed in cell["seeds"]))
    words = ["--full"] if given.full else []
    words += [] if settings == list(SETTINGS) else [f"--settings {','.join(settings)}"]
    words += [f"--seeds {max(len(cell['seeds']) for cell in numbers['cells'])}", "--note"]
    names = [part.name for part in parts]
    absent = [part.name for each in SETTINGS for part in parts_of(each, recipes) if part.name not in names]
    beware = [f"**Run with other settings than the recipe below has now: {', '.join(changed)}.**\n"] if changed else []
    for variants, where, what in REPEATED:
        if repeated := [name for name in names if name in where and not given.full]:
            beware.append(
                f"{' and '.join(variants)} were run again after results had been seen ({', '.join(repeated)}), since "
                f"{what} had changed (docs/headline.md).\n"
            )
    note = write_note(
        note_name(theme, given.hardware),
        title="The headline comparison" + (" at full scale" if given.full else ""),
        command=f"benchmarks/headline.py --root DATA --out DIR {' '.join(words)}",
        settings={
            "parts": ", ".join(names),
            "seeds": ", ".join(map(str, seeds)),
            "time": "virtual",
            "begun with": ", ".join(f"{name} {each}" for name, each in numbers["versions"].items()),
        },
        body="\n".join(
            [
                *beware,
                claims_table(numbers, absent=absent),
                fleets_table(numbers),
                written.text.read_text(encoding="utf-8"),
                NOT_REPRODUCED,
                *configs,
            ]
        ),
    )
    for name in PICTURES:
        drawn = written.page.parent / "figures" / f"{name}.png"
        kept = note.with_name(f"{note.stem}_{name}.png")
        kept.unlink(missing_ok=True)  # an earlier note's
        if drawn.is_file():
            shutil.copyfile(drawn, kept)
            note.write_text(f"{note.read_text(encoding='utf-8')}\n![{name}]({kept.name})\n", encoding="utf-8")
    return note


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; what is there is not run again")
    parser.add_argument("--settings", type=settings_named, default=list(SETTINGS), help=f"of {', '.join(SETTINGS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="the recipes in full/")
    parser.add_argument(
        "--processes", type=int, default=None, help="runs at a time; as many as processors, if not given"
    )
    parser.add_argument("--note", action="store_true", help="write a note to benchmarks/results/, and keep the records")
    parser.add_argument("--only-note", action="store_true", help="the same, without running anything")
    parser.add_argument("--hardware", default="epyc-2core", help="names the machine in the note's file")
    given = parser.parse_args()
    if given.root is None and not given.only_note:
        parser.error("--root is needed: the folder of the data sets")
    return given


if __name__ == "__main__":
    sys.exit(main())
