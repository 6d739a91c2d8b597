"""Variants side by side: one process each, which reports over a pipe and ends when its parent does."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from fedhybrid.engine import Progress
from fedhybrid.experiment.wire import from_wire
from fedhybrid.records import ClientRecord, RoundRecord, Summary

__all__ = ["run_side_by_side"]

_Message = dict[str, Any] | None  # None: the process has closed its pipe
_TAIL_CHARACTERS = 2000


@dataclass(frozen=True, kw_only=True)
class _Worker:
    process: subprocess.Popen[str]
    errors: IO[str]


def run_side_by_side(folders: Mapping[str, Path], at_once: int, progress: Progress) -> None:
    """Runs the configurations that stand in these folders, `at_once` at a time.

    Args:
        folders: The folder of each run by its label; each has been claimed.
        at_once: Number of processes.
        progress: Is told what all of them do, from this thread.

    Raises:
        FedHybridError: As the first process to fail reports it; the others are stopped.
        RuntimeError: A process ended without saying why; the message has the end of what it printed.
    """
    waiting = list(folders.items())
    running: dict[str, _Worker] = {}
    messages: SimpleQueue[tuple[str, _Message]] = SimpleQueue()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                label, folder = waiting.pop(0)
                running[label] = _start(label, folder, messages)
            label, message = messages.get()
            if message is not None:
                _dispatch(label, message, progress)
                continue
            worker = running.pop(label)
            _check_end(label, worker)
    finally:
        for worker in running.values():
            worker.process.kill()
            _close(worker)


def _start(label: str, folder: Path, messages: SimpleQueue[tuple[str, _Message]]) -> _Worker:
    errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed in _close
    process = subprocess.Popen(
        [sys.executable, "-m", "fedhybrid.experiment.worker", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
    )

    def listen() -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError):  # the pipe is closed under the reader when the run is broken off
            for line in process.stdout:
                messages.put((label, json.loads(line)))
        messages.put((label, None))

    threading.Thread(target=listen, daemon=True).start()
    return _Worker(process=process, errors=errors)


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
    elif kind == "end":
        progress.on_end(label, Summary(**content))
    else:
        assert kind == "error", kind
        raise from_wire(content, label)


def _check_end(label: str, worker: _Worker) -> None:
    exit_code = worker.process.wait()
    worker.errors.seek(0)
    said = worker.errors.read()
    _close(worker)
    if exit_code != 0:
        raise RuntimeError(f"variant {label!r} ended with exit code {exit_code}: {said[-_TAIL_CHARACTERS:].strip()}")


def _close(worker: _Worker) -> None:
    worker.process.wait()
    for pipe in (worker.process.stdin, worker.process.stdout, worker.errors):
        assert pipe is not None
        pipe.close()
