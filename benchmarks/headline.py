"""The headline comparison: five settings, two fleets, fourteen variants, three seeds; one page and one note of all.

    .venv/bin/python benchmarks/headline.py --root DATA --out DIR             # goes on where it was stopped
    .venv/bin/python benchmarks/headline.py --root DATA --out DIR --note      # and a note in results/
    .venv/bin/python benchmarks/headline.py --out DIR --only-note             # of what is there; nothing is run

`--root` is the folder that holds the data sets. Each setting is compared in its own folder below `--out`, as `fedhybrid
compare recipes/headline/SETTING.toml` does it; `all/` there gets the page of all. docs/headline.md says what is
compared, and what was claimed before the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from showing import claims_table, note_name, write_note

from fedhybrid.experiment import config_toml
from fedhybrid.report.comparison import Written, write_comparison

RECIPES = Path(__file__).parents[1] / "recipes/headline"
SETTINGS = ("uci-har", "fashion-mnist", "shakespeare-plays", "shakespeare-characters", "cifar10")
PICTURES = ("accuracy", "time-to-target", "participation", "worst-tier")


def main() -> int:
    given = _arguments()
    recipes = RECIPES / "full" if given.full else RECIPES
    if not given.only_note:
        for setting in given.settings:
            words = [str(recipes / f"{setting}.toml"), f"data.root={given.root}", "--out", str(given.out / setting)]
            words += ["--seeds", str(given.seeds)]
            words += [] if given.processes is None else ["--processes", str(given.processes)]
            # A run that fails is named by the command, and tried again by the next call.
            subprocess.run([sys.executable, "-m", "fedhybrid", "compare", *words], check=False)
    folders = [given.out / setting for setting in given.settings if (given.out / setting).is_dir()]
    written = write_comparison(*folders, out=given.out / "all")
    print(written.page)
    if given.note or given.only_note:
        print(_note(given, recipes, [folder.name for folder in folders], written))
    return 0


def _note(given: argparse.Namespace, recipes: Path, settings: Sequence[str], written: Written) -> Path:
    """The tables and pictures of the page, with the claims before them and the recipes behind."""
    numbers = json.loads((written.page.parent / "table.json").read_text(encoding="utf-8"))
    theme = "headline-full" if given.full else "headline"
    shown = "<details><summary>{0}.toml, complete</summary>\n\n```toml\n{1}```\n\n</details>"
    configs = [shown.format(each, _config(recipes, each)) for each in settings]
    note = write_note(
        note_name(theme, given.hardware),
        title="The headline comparison" + (" at full scale" if given.full else ""),
        command=f"benchmarks/headline.py --root DATA --out DIR{' --full' if given.full else ''} --note",
        settings={"settings": ", ".join(settings), "seeds": given.seeds, "time": "virtual"},
        body="\n".join([claims_table(numbers), written.text.read_text(encoding="utf-8"), *configs]),
    )
    for name in PICTURES:
        drawn = written.page.parent / "figures" / f"{name}.png"
        if drawn.is_file():
            kept = note.with_name(f"{note.stem}_{name}.png")
            shutil.copyfile(drawn, kept)
            note.write_text(f"{note.read_text()}\n![{name}]({kept.name})\n")
    return note


def _config(recipes: Path, setting: str) -> str:
    return config_toml(recipes / f"{setting}.toml")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; what is there is not run again")
    parser.add_argument("--settings", type=lambda text: text.split(","), default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="the recipes in full/")
    parser.add_argument("--processes", type=int, default=None, help=f"runs at a time; now {os.cpu_count()}")
    parser.add_argument("--note", action="store_true", help="write a note to benchmarks/results/")
    parser.add_argument("--only-note", action="store_true", help="the same, without running anything")
    parser.add_argument("--hardware", default="epyc-2core", help="names the machine in the note's file")
    given = parser.parse_args()
    if given.root is None and not given.only_note:
        parser.error("--root is needed: the folder of the data sets")
    return given


if __name__ == "__main__":
    sys.exit(main())
