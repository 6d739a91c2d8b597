"""Runs side by side: some processes, each with one run after the other, which report over pipes and end when we do."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from fedhybrid.engine import Progress
from fedhybrid.experiment.wire import from_wire
from fedhybrid.records import ClientRecord, RoundRecord, Summary

__all__ = ["OnFailure", "run_side_by_side"]

OnFailure = Callable[[str, Exception], object]
_Message = dict[str, Any] | None  # None: the process has closed its pipe
_TAIL_CHARACTERS = 2000


@dataclass(eq=False, kw_only=True)
class _Worker:
    """`label`: the run that it has; None at first, and after its last one."""

    process: subprocess.Popen[str]
    errors: IO[str]
    label: str | None = None

    def give(self, label: str | None, line: str = "") -> None:
        """A run's folder, or the word that there is none left; whether the process hears it is seen at its end."""
        assert self.process.stdin is not None
        self.label = label
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()


def run_side_by_side(
    folders: Mapping[str, Path], at_once: int, progress: Progress, *, on_failure: OnFailure | None = None
) -> None:
    """Runs the configurations that stand in these folders, in their order, `at_once` at a time.

    Args:
        folders: The folder of each run by its label; each has been claimed.
        at_once: Number of processes.
        progress: Is told what all of them do, from this thread.
        on_failure: Is told of a run that fails, and the others go on; without it, the first failure ends all.

    Raises:
        FedHybridError: As the first run to fail reports it; the others are stopped.
        RuntimeError: A process ended without saying why; the message has the end of what it printed.
    """
    waiting = list(folders.items())
    working: list[_Worker] = []
    messages: SimpleQueue[tuple[_Worker, _Message]] = SimpleQueue()

    def failed(label: str, error: Exception) -> None:
        if on_failure is None:
            raise error
        on_failure(label, error)

    try:
        while waiting or working:
            while waiting and len(working) < at_once:
                working.append(_start(messages))
                _give_next(working[-1], waiting)
            worker, message = messages.get()
            if message is None:
                working.remove(worker)
                if worker.label is not None:
                    failed(worker.label, _end_problem(worker))
                else:
                    _close(worker)
                continue
            assert worker.label is not None
            if message["kind"] == "done":
                _give_next(worker, waiting)
            elif message["kind"] == "error":
                failed(worker.label, from_wire(message["content"], worker.label))
            else:
                _dispatch(worker.label, message, progress)
    finally:
        for worker in working:
            worker.process.kill()
            _close(worker)


def _give_next(worker: _Worker, waiting: list[tuple[str, Path]]) -> None:
    if waiting:
        label, folder = waiting.pop(0)
        worker.give(label, json.dumps(str(folder)))
    else:
        worker.give(None)


def _start(messages: SimpleQueue[tuple[_Worker, _Message]]) -> _Worker:
    errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed in _close
    process = subprocess.Popen(
        [sys.executable, "-m", "fedhybrid.experiment.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
    )
    worker = _Worker(process=process, errors=errors)

    def listen() -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError):  # the pipe is closed under the reader when the run is broken off
            for line in process.stdout:
                messages.put((worker, json.loads(line)))
        messages.put((worker, None))

    threading.Thread(target=listen, daemon=True).start()
    return worker


def _dispatch(label: str, message: dict[str, Any], progress: Progress) -> None:
    kind, content = message["kind"], message["content"]
    if kind == "start":
        progress.on_start(label, **content)
    elif kind == "stage":
        progress.on_stage(label, content)
    elif kind == "task":
        progress.on_task(label, ClientRecord(**content))
    elif kind == "round":
        progress.on_round(label, RoundRecord(**content))
    else:
        assert kind == "end", kind
        progress.on_end(label, Summary(**content))


def _end_problem(worker: _Worker) -> RuntimeError:
    """What is to be said of a process that has ended in the middle of its run."""
    exit_code = worker.process.wait()
    worker.errors.seek(0)
    said = worker.errors.read()
    _close(worker)
    ended = f"variant {worker.label!r} ended with exit code {exit_code}"
    if exit_code == -signal.SIGKILL:
        ended += " (killed; often too little memory)"
    tail = said[-_TAIL_CHARACTERS:].strip()
    return RuntimeError(f"{ended}: {tail}" if tail else ended)


def _close(worker: _Worker) -> None:
    worker.process.wait()
    for pipe in (worker.process.stdin, worker.process.stdout, worker.errors):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
