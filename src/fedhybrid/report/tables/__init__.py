"""The page's tables, as text that is ready to be shown."""

from __future__ import annotations

from fedhybrid.report.tables.base import Table
from fedhybrid.report.tables.failures import failures_table, trouble_table
from fedhybrid.report.tables.fairness import fairness_table
from fedhybrid.report.tables.memory import memory_table, plans_table
from fedhybrid.report.tables.settings import configs, differences_table
from fedhybrid.report.tables.submodels import submodels_table
from fedhybrid.report.tables.summary import summary_table

__all__ = [
    "Table",
    "configs",
    "differences_table",
    "failures_table",
    "fairness_table",
    "memory_table",
    "plans_table",
    "submodels_table",
    "summary_table",
    "trouble_table",
]
