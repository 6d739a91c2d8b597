"""Contenders as commands: which there are, how their environments are made, how one is run, timed and cleaned up."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

__all__ = ["CONTENDERS", "Contender", "adopt_orphans", "can_run", "run_script"]

HERE = Path(__file__).parent
LIMIT_S = 1800
_ADOPT_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
_PARENT = 1  # of what stands behind the name in /proc/<pid>/stat


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A script beside this file.

    Attributes:
        script: Its file.
        cores: Processes that train at the same time, where there are as many cores.
        module: What its environment must have.
        install: What makes such an environment, where it is not this one.
    """

    script: str
    cores: int
    module: str
    install: str = ""


_BASE = "{0}/bin/pip install torch==2.13.0 numpy==2.4.6 scikit-learn==1.9.1"
CONTENDERS = {
    "bare": Contender(script="bare.py", cores=1, module="sklearn"),
    "ours": Contender(script="ours.py", cores=1, module="fedhybrid"),
    "ours-2": Contender(script="ours.py", cores=2, module="fedhybrid"),
    "pfl": Contender(
        script="pfl_parity.py",
        cores=1,
        module="pfl",
        install=f"python3.11 -m venv {{0}} && {_BASE} && {{0}}/bin/pip install pfl==0.6.0",
    ),
    "flower": Contender(
        script="flower_app.py",
        cores=2,
        module="flwr",
        install=f"python3.11 -m venv {{0}} && {_BASE} && {{0}}/bin/pip install 'flwr[simulation]==1.41.*'",
    ),
}


def can_run(contender: Contender, python: Path) -> bool:
    """Whether this interpreter has what the contender needs."""
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({contender.module!r}) is None)"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def adopt_orphans() -> None:
    """Makes this process the parent of what its commands leave behind, so that it can be stopped, and its time counted.

    Linux only; elsewhere nothing happens.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_ADOPT_ORPHANS, 1, 0, 0, 0)


def run_script(python: Path, script: str, *arguments: str) -> dict[str, Any]:
    """Runs a script of this folder with one thread a process and a home folder that is thrown away.

    Returns:
        What it printed as JSON, with `command_s` (from its start until it and all that it started has ended) and
        `cpu_s` of all of it.

    Raises:
        RuntimeError: It failed; the end of what it wrote is in the message.
    """
    with TemporaryDirectory(prefix="job", ignore_cleanup_errors=True) as home:
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HOME": home, "PYTHONPATH": path}
        before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        command = [str(python), str(HERE / script), *arguments, "--json"]
        process = subprocess.Popen(
            command, cwd=home, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            printed, complaints = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()  # only does something after a time-out or an interrupt
            process.wait()
            _end_orphans()
        command_s, after = time.monotonic() - began_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise RuntimeError(f"{script} ended with {process.returncode}:\n{complaints[-2000:]}")
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return result | {"command_s": command_s, "cpu_s": cpu_s}


def _end_orphans() -> None:
    """Ends what the command has left running: all children of this process, and theirs, which then become its own."""
    while children := _children():
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)


def _children() -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[_PARENT])
        except OSError:  # it has ended meanwhile
            continue
        if parent == os.getpid():
            found.append(int(stat.parent.name))
    return found
