"""When clients are online, from a file.

CSV with the header `client,start_s,end_s`: the intervals in which a client is online, in any order. Seconds count from
the beginning of the run; after the latest end of all, everything repeats.

    client,start_s,end_s
    kitchen,0,3600
    hall,1800,7200
    kitchen,5400,7200
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import final

import numpy as np

from fedhybrid.errors import ConfigError
from fedhybrid.fleet.availability import BoolArray
from fedhybrid.fleet.clock import to_micros, to_seconds
from fedhybrid.records import IntArray

__all__ = ["OnlineIntervals", "load_intervals"]

_MOST_PROBLEMS = 20  # a file that is of another format would otherwise be told line by line
_MOST_US = 2**62


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class OnlineIntervals:
    """Intervals from a file, repeated after the latest end; client i has the file's client i modulo their number.

    Attributes:
        period_us: The latest end.
        rows: Clients of the file.
        start_us, end_us: Row times `period_us` plus the beginning and the end of each interval, both ascending; no two
            intervals of a row overlap or touch, each row has at least one.
    """

    period_us: int
    rows: int
    start_us: IntArray
    end_us: IntArray

    def available(self, clients: IntArray, now_s: float) -> BoolArray:
        """Those that are within an interval of their row."""
        at_us = np.asarray(clients) % self.rows * self.period_us + to_micros(now_s) % self.period_us
        interval = np.searchsorted(self.start_us, at_us, side="right") - 1
        return (interval >= 0) & (at_us < self.end_us[interval])

    def online_until_s(self, client: int, now_s: float) -> float:
        """The end of the interval, or of the row's first one where the two meet at the end of the period."""
        row_us, now_us = client % self.rows * self.period_us, to_micros(now_s)
        at_us = row_us + now_us % self.period_us
        interval = int(np.searchsorted(self.start_us, at_us, side="right")) - 1
        if interval < 0 or at_us >= self.end_us[interval]:
            return now_s
        end_us = int(self.end_us[interval])
        if end_us == row_us + self.period_us:
            first = int(np.searchsorted(self.start_us, row_us))
            if self.start_us[first] == row_us:
                if first == interval:
                    return math.inf
                end_us = int(self.end_us[first]) + self.period_us
        return to_seconds(now_us + end_us - at_us)

    def next_change_s(self, clients: int, now_s: float) -> float:
        """Exact: the earliest beginning of an interval among rows that are away."""
        row = np.arange(min(clients, self.rows))
        row = row[~self.available(row, now_s)]
        if not len(row):
            return math.inf
        row_us, now_us = row * self.period_us, to_micros(now_s)
        at_us = row_us + now_us % self.period_us
        following = np.searchsorted(self.start_us, at_us, side="right")
        first = np.searchsorted(self.start_us, row_us)
        start_us = np.append(self.start_us, np.iinfo(np.int64).max)[following]
        ahead_us = np.where(
            start_us < row_us + self.period_us, start_us - at_us, self.start_us[first] + self.period_us - at_us
        )
        return to_seconds(now_us + ahead_us.min())


def load_intervals(path: Path) -> OnlineIntervals:
    """The intervals of a file (see the module's text), clients in the order of their first lines.

    Raises:
        ConfigError: No such file, another header, times that are none or in the wrong order, intervals of a client that
            overlap; all at once.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    reader = csv.reader(io.StringIO(text), skipinitialspace=True)
    header = [name.strip() for name in next(reader, [])]
    if header != ["client", "start_s", "end_s"]:
        raise ConfigError(f"{path}: line 1 must be client,start_s,end_s; found {','.join(header)!r}")
    found: dict[str, list[tuple[int, int]]] = {}
    problems: list[str] = []
    for line in filter(None, reader):
        try:
            client, start, end = line
            start_us, end_us = round(1e6 * float(start)), round(1e6 * float(end))
        except (ValueError, OverflowError):
            problems.append(f"line {reader.line_num} must be a client and two numbers, got {','.join(line)!r}")
            continue
        if not 0 <= start_us < end_us:
            problems.append(f"line {reader.line_num}: needs 0 <= start_s < end_s, got {start} and {end}")
            continue
        found.setdefault(client.strip(), []).append((start_us, end_us))
    for client, intervals in found.items():
        intervals.sort()
        problems += [
            f"client {client!r} is online from {start / 1e6:g} s on while an earlier interval of it lasts to "
            f"{end / 1e6:g} s"
            for (_, end), (start, _) in pairwise(intervals)
            if start < end
        ]
    if not found and not problems:
        problems.append("has no rows")
    period_us = max((intervals[-1][1] for intervals in found.values()), default=1)
    if len(found) * period_us > _MOST_US:
        problems.append(f"{len(found)} clients and {period_us / 1e6:g} s are too much; split the file")
    if problems:
        more = [f"and {len(problems) - _MOST_PROBLEMS} more"] if len(problems) > _MOST_PROBLEMS else []
        raise ConfigError([f"{path}: {problem}" for problem in [*problems[:_MOST_PROBLEMS], *more]])
    flat = [
        (row * period_us + start, row * period_us + end)
        for row, intervals in enumerate(found.values())
        for start, end in _merged(intervals)
    ]
    start_us, end_us = np.array(flat, dtype=np.int64).T.copy()
    return OnlineIntervals(period_us=period_us, rows=len(found), start_us=start_us, end_us=end_us)


def _merged(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted intervals, with those made one that touch."""
    merged = intervals[:1]
    for start, end in intervals[1:]:
        if start == merged[-1][1]:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged
