"""Parts of TEASQ-Fed: the ladder of strengths and its search, the merge, and downloads as differences."""

from __future__ import annotations

from fedhybrid.methods.teasq.base import AbstractTea
from fedhybrid.methods.teasq.ladder import NO_COMPRESSION, Ladder, Strength, parse_ladder, parse_strength
from fedhybrid.methods.teasq.merging import freshness, merge_problems, merged
from fedhybrid.methods.teasq.returning import packed_tasks, remembered, task_of_difference
from fedhybrid.methods.teasq.searching import Trial, search_strength

__all__ = [
    "NO_COMPRESSION",
    "AbstractTea",
    "Ladder",
    "Strength",
    "Trial",
    "freshness",
    "merge_problems",
    "merged",
    "packed_tasks",
    "parse_ladder",
    "parse_strength",
    "remembered",
    "search_strength",
    "task_of_difference",
]
