"""What a run shows: its records read back, figures, and one page that opens from disk."""

from __future__ import annotations

from fedhybrid.report.load import RunRecords, load_records, load_runs
from fedhybrid.report.page import write_report
from fedhybrid.report.sentences import notices

__all__ = ["RunRecords", "load_records", "load_runs", "notices", "write_report"]
