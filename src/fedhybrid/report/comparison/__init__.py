"""What a comparison shows: means and intervals over seeds, ratios to a reference, tables, figures and one page."""

from __future__ import annotations

from fedhybrid.report.comparison.load import Comparison, load_comparison
from fedhybrid.report.comparison.page import Written, write_comparison

__all__ = ["Comparison", "Written", "load_comparison", "write_comparison"]
