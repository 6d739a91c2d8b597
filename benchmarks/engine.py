"""The same federated job by FedHybrid, Flower's simulation, pfl-research and a bare loop, in turn on the same cores.

    .venv/bin/python benchmarks/engine.py --env flower=FLOWER/bin/python --env pfl=PFL/bin/python [--note]

The job is in benchmarks/federations/digits_job.py: 20 clients, ten a round, a small CNN; all make the same steps on the
same samples. Whole commands take turns (A B C D A B C D). Then FedHybrid and pfl each share a process with the bare
loop, a round in turn, with the job and with the empty one (weights in, no training, weights averaged): whole commands
drift with the machine by more than what lies between those three.

A contender whose environment is missing is left out, and what would make it is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from federations.commands import CONTENDERS, adopt_orphans, can_run, run_script
from federations.outcome import command_rows, command_table, paired_table
from showing import machine, note_name, write_note

REFERENCE = "ours"
PAIRED = ("ours", "pfl")


def main() -> int:
    given = _arguments()
    adopt_orphans()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    pythons = _found(given)
    if not pythons:
        return 1
    rows = _commands(given, pythons)
    paired = _paired(given, pythons)
    parts = [command_table(rows, REFERENCE) if rows else "", paired_table(paired) if paired else ""]
    body = "\n\n".join(filter(None, parts))
    result = {"machine": machine(), "cores": given.cores, "rounds": given.rounds, "commands": rows, "paired": paired}
    print(json.dumps(result, indent=1) if given.json else body)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "engine.json").write_text(json.dumps(result, indent=1))
        (given.out / "engine.md").write_text(body + "\n")
    if given.note:
        write_note(
            note_name("engine-empty" if given.empty else "engine", given.hardware),
            title="One job by four frameworks" + (", the empty one" if given.empty else ""),
            command=_command(given),
            settings={
                "cores": given.cores,
                "rounds": given.rounds,
                "turns": given.repeats,
                "stored by ours": "records each round, checkpoints as by default",
                "stored by the others": "nothing",
                "load average at the end": f"{os.getloadavg()[0]:.1f}",
            },
            body=body,
        )
    return 0


def _found(given: argparse.Namespace) -> dict[str, Path]:
    """The interpreter of each contender that can run here."""
    found = {}
    for name in given.peers:
        contender, python = CONTENDERS[name], given.env.get(name, Path(sys.executable))
        if can_run(contender, python):
            found[name] = python
        else:
            how = contender.install.format(f"{name.upper()}") or "make setup"
            print(
                f"{name} is left out: {python} has no module {contender.module!r}. Make an environment with: {how}; "
                f"then give --env {name}={name.upper()}/bin/python",
                file=sys.stderr,
            )
    return found


def _commands(given: argparse.Namespace, pythons: dict[str, Path]) -> list[dict[str, Any]]:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in pythons}
    for repeat in range(given.repeats):
        for name, python in pythons.items():
            contender = CONTENDERS[name]
            cores = str(min(contender.cores, given.cores))
            arguments = ["--rounds", str(given.rounds), "--cores", cores, *(["--empty"] if given.empty else [])]
            runs[name].append(run_script(python, contender.script, *arguments))
            print(f"turn {repeat + 1}, {name}: {runs[name][-1]['command_s']:.1f} s", file=sys.stderr, flush=True)
    return command_rows(runs, REFERENCE) if given.repeats else []


def _paired(given: argparse.Namespace, pythons: dict[str, Path]) -> list[dict[str, Any]]:
    results = []
    for job in ((), ("--empty",)) if given.paired_rounds else ():
        for name in filter(pythons.__contains__, PAIRED):
            arguments = ("--with", name, "--rounds", str(given.paired_rounds), *job)
            results.append(run_script(pythons[name], "paired.py", *arguments))
    return results


def _command(given: argparse.Namespace) -> str:
    """The command line for the note: interpreters by name, without the folders of this machine."""
    words = iter(sys.argv[1:])
    kept = []
    for word in words:
        if word == "--env":
            name = next(words).partition("=")[0]
            kept += ["--env", f"{name}={name.upper()}/bin/python"]
        elif word == "--out":
            next(words)
        else:
            kept.append(word)
    return shlex.join([".venv/bin/python", "benchmarks/engine.py", *kept])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5, help="turns of whole commands; 0 leaves them out")
    parser.add_argument("--peers", type=_names, default=list(CONTENDERS), help="some of: " + ",".join(CONTENDERS))
    parser.add_argument(
        "--env", type=_env, action="append", default=[], metavar="NAME=PYTHON", help="a contender's interpreter"
    )
    parser.add_argument("--cores", type=int, default=2, help="all are kept on the first so many cores")
    parser.add_argument("--empty", action="store_true", help="whole commands do the empty job")
    parser.add_argument("--paired-rounds", type=int, default=200, help="rounds in one process; 0 leaves them out")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--out", type=Path, help="folder for engine.json and engine.md")
    parser.add_argument("--note", action="store_true", help="write a note into benchmarks/results/")
    parser.add_argument("--hardware", help="name of the machine in the note's file name")
    given = parser.parse_args()
    given.env = dict(given.env)
    return given


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := sorted(set(names) - CONTENDERS.keys()):
        raise argparse.ArgumentTypeError(f"no such contender: {', '.join(unknown)}; known: {', '.join(CONTENDERS)}")
    return names


def _env(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if name not in CONTENDERS or not path:
        raise argparse.ArgumentTypeError(f"wanted NAME=PYTHON with a name of {', '.join(CONTENDERS)}, found {text!r}")
    return name, Path(path).absolute()  # not resolved: an environment's python is a link


if __name__ == "__main__":
    sys.exit(main())
