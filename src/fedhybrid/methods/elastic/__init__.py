"""What methods share that train few tensors at a time: windows, importance, the choice of tensors, the verbs."""

from __future__ import annotations

from fedhybrid.methods.elastic.choosing import choose_tensors
from fedhybrid.methods.elastic.importance import blended, change_of, importance_of
from fedhybrid.methods.elastic.names import Choice, choice_name, read_choice
from fedhybrid.methods.elastic.notes import Notes
from fedhybrid.methods.elastic.offers import Offers, Rules
from fedhybrid.methods.elastic.verbs import AbstractElastic
from fedhybrid.methods.elastic.windows import first_window, next_window

__all__ = [
    "AbstractElastic",
    "Choice",
    "Notes",
    "Offers",
    "Rules",
    "blended",
    "change_of",
    "choice_name",
    "choose_tensors",
    "first_window",
    "importance_of",
    "next_window",
    "read_choice",
]
