"""Memory traces from a file.

CSV with a header; `client` may be left out where there is one. Times are seconds, ascending within a client, and need
not be evenly spaced; `available` is bytes or an amount like 512 MiB:

    client,time_s,available
    kitchen,0,900 MiB
    kitchen,12.5,431000000
    hall,0,1.5 GB

TOML says the same with one table a client:

    [[client]]
    name = "kitchen"
    time_s = [0, 12.5]
    available = ["900 MiB", 431000000]
"""

from __future__ import annotations

import csv
import io
import math
import tomllib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fedhybrid.errors import ConfigError
from fedhybrid.fleet.traces import MemoryTraces
from fedhybrid.units import parse_bytes

__all__ = ["load_traces"]

_MOST_PROBLEMS = 20  # a file that is of another format would otherwise be told line by line
_MOST_SAMPLES = 10**8

Points = dict[str, list[tuple[float, int]]]  # time_s and bytes of each client


def load_traces(path: Path, *, period_s: float = 1.0) -> MemoryTraces:
    """The traces of a `.csv` or `.toml` file (see the module's text), one row a client in the file's order.

    An amount holds until the client's next time, the first also before, the last to the end of the file's time. A
    sample is the least amount that held within its period, so that no fall is lost.

    Raises:
        ConfigError: No such file, another format, times that do not ascend, amounts that are none; all at once.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"memory traces {path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    if not (math.isfinite(period_s) and period_s > 0):
        raise ConfigError(f"memory traces {path}: period_s must be a positive number, got {period_s}")
    problems: list[str] = []
    if path.suffix == ".csv":
        points = _from_csv(text, problems)
    elif path.suffix == ".toml":
        points = _from_toml(text, problems)
    else:
        raise ConfigError(f"memory traces {path}: the name must end in .csv or .toml")
    problems += _order_problems(points)
    if not points and not problems:
        problems.append("has no rows")
    if problems:
        more = [f"and {len(problems) - _MOST_PROBLEMS} more"] if len(problems) > _MOST_PROBLEMS else []
        raise ConfigError([f"memory traces {path}: {problem}" for problem in [*problems[:_MOST_PROBLEMS], *more]])
    start_s = min(times[0][0] for times in points.values())
    end_s = max(times[-1][0] for times in points.values())
    count = math.floor((end_s - start_s) / period_s) + 1
    if count * len(points) > _MOST_SAMPLES:
        raise ConfigError(
            f"memory traces {path}: {count} samples of {len(points)} clients are more than {_MOST_SAMPLES}; use a "
            f"period_s larger than {period_s}"
        )
    rows = [_sampled(times, start_s, period_s, count) for times in points.values()]
    return MemoryTraces(period_s=period_s, available_bytes=np.array(rows, dtype=np.int64))


def _from_csv(text: str, problems: list[str]) -> Points:
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    header = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = header
    if set(header) - {"client"} != {"time_s", "available"} or len(set(header)) != len(header):
        problems.append(f"line 1 must name time_s, available and, for several, client; found {', '.join(header)!r}")
        return {}
    points: Points = {}
    for row in reader:
        where = f"line {reader.line_num}"
        if None in row or None in row.values():
            problems.append(f"{where} must have {len(header)} fields")
            continue
        _add(points, (row.get("client") or "").strip(), row["time_s"], row["available"], where=where, problems=problems)
    return points


def _from_toml(text: str, problems: list[str]) -> Points:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problems.append(f"is not TOML: {error}")
        return {}
    clients = table.get("client")
    if set(table) != {"client"} or not isinstance(clients, list):
        problems.append(f"must hold [[client]] tables and nothing else; found {', '.join(sorted(table)) or 'nothing'}")
        return {}
    points: Points = {}
    for number, client in enumerate(clients, start=1):
        where = f"client {number}"
        if not _is_client(client):
            problems.append(f"{where} must have time_s and available, lists of one length, and may have a name")
            continue
        name = str(client.get("name", number))
        if name in points:
            problems.append(f"{where}: the name {name!r} is given twice")
            continue
        for place, (time_s, amount) in enumerate(zip(client["time_s"], client["available"], strict=True), start=1):
            _add(points, name, time_s, amount, where=f"{where}, entry {place}", problems=problems)
    return points


def _is_client(client: Any) -> bool:
    if not isinstance(client, Mapping) or set(client) - {"name"} != {"time_s", "available"}:
        return False
    times, amounts = client["time_s"], client["available"]
    return isinstance(times, list) and isinstance(amounts, list) and len(times) == len(amounts) > 0


def _add(points: Points, name: str, time: Any, amount: Any, *, where: str, problems: list[str]) -> None:
    try:
        time_s = float(time)
    except (TypeError, ValueError):
        time_s = math.nan
    if not math.isfinite(time_s):
        problems.append(f"{where}: time_s must be a number, got {time!r}")
        return
    try:
        points.setdefault(name, []).append((time_s, parse_bytes(amount)))
    except ConfigError as error:
        problems += [f"{where}: {problem}" for problem in error.problems]


def _order_problems(points: Points) -> Iterable[str]:
    for name, times in points.items():
        whose = f"client {name!r}: " if name else ""
        for (earlier_s, _), (later_s, _) in pairwise(times):
            if later_s <= earlier_s:
                yield f"{whose}time_s must ascend, got {later_s:g} after {earlier_s:g}"


def _sampled(points: list[tuple[float, int]], start_s: float, period_s: float, count: int) -> list[int]:
    """The least amount within each period; `points` ascend in time."""
    samples: list[int] = []
    holding, following = points[0][1], 0
    for number in range(count):
        begin_s, end_s = start_s + number * period_s, start_s + (number + 1) * period_s
        while following < len(points) and points[following][0] <= begin_s:
            holding = points[following][1]
            following += 1
        least = holding
        while following < len(points) and points[following][0] < end_s:
            holding = points[following][1]
            least = min(least, holding)
            following += 1
        samples.append(least)
    return samples
