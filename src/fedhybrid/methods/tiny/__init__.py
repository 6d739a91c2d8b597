"""The parts of training under 256 KB: sparse update schemes, what they need, how they are found, integer updates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedhybrid.lazy import lazily
from fedhybrid.methods.tiny.memory import FLOAT, INTEGER, UpdateMemory, flash_bytes, sram_bytes, update_memory
from fedhybrid.methods.tiny.rounding import IntegerSteps, WithinGrid
from fedhybrid.methods.tiny.schemes import DENOMINATORS, Scheme, is_scheme, parse_scheme
from fedhybrid.methods.tiny.search import Contributions, Evolution, find_scheme, last_layers
from fedhybrid.methods.tiny.weights import for_device, for_server, submodel_of, trained_part

if TYPE_CHECKING:
    from fedhybrid.methods.tiny.analysis import Task, measured_contributions, trained_accuracy
else:  # it captures steps, which devices cannot
    __getattr__ = lazily(
        __name__, {"Task": "analysis", "measured_contributions": "analysis", "trained_accuracy": "analysis"}
    )

__all__ = [
    "DENOMINATORS",
    "FLOAT",
    "INTEGER",
    "Contributions",
    "Evolution",
    "IntegerSteps",
    "Scheme",
    "Task",
    "UpdateMemory",
    "WithinGrid",
    "find_scheme",
    "flash_bytes",
    "for_device",
    "for_server",
    "is_scheme",
    "last_layers",
    "measured_contributions",
    "parse_scheme",
    "sram_bytes",
    "submodel_of",
    "trained_accuracy",
    "trained_part",
    "update_memory",
]
