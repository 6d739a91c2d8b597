"""The parts of methods whose clients keep exemplars: choosing them, their bytes, steps with a memory, the verbs."""

from __future__ import annotations

from fedhybrid.methods.memory_bank.bank import Bank, room_for
from fedhybrid.methods.memory_bank.clients import ReplayingClient, looked_through
from fedhybrid.methods.memory_bank.herding import herded
from fedhybrid.methods.memory_bank.ledger import Holding, Ledger
from fedhybrid.methods.memory_bank.names import StepName
from fedhybrid.methods.memory_bank.steps import Losses, step_of
from fedhybrid.methods.memory_bank.verbs import AbstractMemory, MemoryRules

__all__ = [
    "AbstractMemory",
    "Bank",
    "Holding",
    "Ledger",
    "Losses",
    "MemoryRules",
    "ReplayingClient",
    "StepName",
    "herded",
    "looked_through",
    "room_for",
    "step_of",
]
