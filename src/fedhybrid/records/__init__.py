"""What travels between the parts of a federation, and what a run leaves behind: frozen data, no behaviour.

Stored records (`RoundRecord`, `ClientRecord`, `Summary`) are JSON objects; `as_json` and `from_json` are the only way
in and out. Times are seconds, sizes are bytes, as the names say.
"""

from __future__ import annotations

from fedhybrid.records.exchange import (
    COMPLETED,
    Candidates,
    ClientTask,
    Failure,
    FloatArray,
    IntArray,
    LocalWork,
    Outcome,
    TaskCost,
    TaskEvent,
    TensorTimes,
    Update,
)
from fedhybrid.records.files import COMPARISON, append_jsonl, as_json, from_json, read_jsonl, read_record
from fedhybrid.records.stored import ClientRecord, RoundRecord, Summary
from fedhybrid.records.streams import StreamTask

__all__ = [
    "COMPARISON",
    "COMPLETED",
    "Candidates",
    "ClientRecord",
    "ClientTask",
    "Failure",
    "FloatArray",
    "IntArray",
    "LocalWork",
    "Outcome",
    "RoundRecord",
    "StreamTask",
    "Summary",
    "TaskCost",
    "TaskEvent",
    "TensorTimes",
    "Update",
    "append_jsonl",
    "as_json",
    "from_json",
    "read_jsonl",
    "read_record",
]
