"""Runs in a process of its own, one after the other: `python -m fedhybrid.experiment.worker`, started by `parallel`.

Each line of standard input is a run's folder as JSON, an empty line is the end. The process reads the folder's
config.toml and tells its progress as lines of JSON on standard output. It ends at once when its standard input does:
that is how it notices that whoever started it is gone, even by `kill -9`.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO, final

from fedhybrid.engine import RunFolder, process_resident_bytes, run_federation
from fedhybrid.engine.footprint import keep_freed_memory
from fedhybrid.errors import FedHybridError
from fedhybrid.experiment.build import Datasets, build_federation
from fedhybrid.experiment.check import load_config
from fedhybrid.experiment.pretraining import keep_pretrained
from fedhybrid.experiment.wire import to_wire
from fedhybrid.records import ClientRecord, RoundRecord, Summary

__all__ = ["main"]


@final
class _Teller:
    """Progress as lines of JSON; the label is left to the reader, who knows which process it reads."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def tell(self, kind: str, content: Any) -> None:
        print(json.dumps({"kind": kind, "content": content}), file=self._out, flush=True)

    def on_start(self, label: str, *, first_round: int, rounds: int) -> None:
        self.tell("start", {"first_round": first_round, "rounds": rounds})

    def on_stage(self, label: str, stage: str) -> None:
        self.tell("stage", stage)

    def on_task(self, label: str, record: ClientRecord) -> None:
        self.tell("task", dataclasses.asdict(record))

    def on_round(self, label: str, record: RoundRecord) -> None:
        self.tell("round", dataclasses.asdict(record))

    def on_end(self, label: str, summary: Summary) -> None:
        self.tell("end", dataclasses.asdict(summary))


def main() -> int:
    """Runs what the folders' configurations say; the exit code is 0 also where errors have been told."""
    keep_freed_memory()
    runtime_bytes = process_resident_bytes()
    teller = _Teller(os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not mix with the messages
    lines: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    datasets: Datasets = {}  # each is loaded once
    while line := lines.get():
        folder = Path(json.loads(line))
        try:
            job = build_federation(load_config(folder / "config.toml"), datasets, folder=folder)
            keep_pretrained(folder, job.pretrained)
            run_federation(job, RunFolder(folder), teller, runtime_bytes=runtime_bytes)
            del job
        except FedHybridError as error:
            teller.tell("error", to_wire(error))
        gc.collect()  # a federation's parts refer to each other, and the next one needs the room
        teller.tell("done", None)
    return 0


def _listen(lines: SimpleQueue[bytes]) -> None:
    rest = b""
    while read := os.read(sys.stdin.fileno(), 4096):  # not sys.stdin, whose lock would be held at the interpreter's end
        *whole, rest = (rest + read).split(b"\n")
        for line in whole:
            lines.put(line)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
