"""Flower's own `flower-supernode` with an ordinary app on the same superlink: what it and its processes take."""

from __future__ import annotations

import hashlib
import io
import os
import statistics
import subprocess
import sys
import threading
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from devices.processes import cpu_s, descendants, memory
from fedhybrid.data import load_dataset
from fedhybrid.errors import FedHybridError
from fedhybrid.integrations.flower import private
from fedhybrid.integrations.flower.link.control import owner_client, register_nodes
from fedhybrid.integrations.flower.link.grid import RunGrid, open_run_grid
from fedhybrid.integrations.flower.link.keyfiles import read_public_key
from fedhybrid.integrations.flower.link.keys import KeyFolder, make_keys
from fedhybrid.integrations.flower.link.superlink import Superlink
from fedhybrid.integrations.flower.version import OFFLINE
from fedhybrid.models import find_factory

__all__ = ["measure_supernode"]

_APP = """\
[project]
name = "stock"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "fedhybrid"

[tool.flwr.app.components]
serverapp = "stock_app:app"
clientapp = "stock_app:app"
"""
_LIMIT_S = 240.0
_SETTLE_S = 2.0
_SAMPLE_S = 0.02


def measure_supernode(folder: Path, model: str, *, tasks: int, steps: int, batch: int) -> dict[str, Any]:
    """Tasks of one stock node; memory in bytes by process, seconds from its process' start to the first step."""
    keys = make_keys(folder / "keys", nodes=["device"])
    with Superlink(folder / "superlink", keys=keys) as superlink:
        register_nodes(superlink, [read_public_key(keys.node_public_key("device"))])
        with _supernode(folder, superlink, keys) as node, open_run_grid(superlink, _start(superlink)) as grid:
            _wait_for_node(grid, folder / "supernode.log")
            time.sleep(_SETTLE_S)
            idle = _now(node)
            found = [_task(grid, node, model, steps=steps, batch=batch) for _ in range(tasks)]
            while "flwr-clientapp" in (after := _now(node)):
                time.sleep(_SAMPLE_S)
    later = found[1:] or found
    worst = max(later, key=lambda each: each["top_bytes"])
    return {
        "model": model,
        "tasks": tasks,
        "steps": steps,
        "idle_by_process": idle,
        "idle_by_process_after_tasks": after,
        "idle_rss_bytes": sum(sizes["rss_bytes"] for sizes in after.values()),
        "idle_anon_bytes": sum(sizes["anon_bytes"] for sizes in after.values()),
        "top_rss_bytes": worst["top_bytes"],
        "top_anon_bytes": worst["top_anon_bytes"],
        "top_by_process": worst["top_by_process"],
        "start_to_first_step_ms": statistics.median(each["start_to_first_s"] for each in later) * 1000,
        "start_to_first_step_ms_max": max(each["start_to_first_s"] for each in later) * 1000,
        "sent_to_first_step_ms": statistics.median(each["sent_to_first_s"] for each in later) * 1000,
        "round_trip_s": statistics.median(each["round_trip_s"] for each in later),
        "cpu_s_before_first_step": statistics.median(each["cpu_before_first_s"] for each in later),
        "cpu_s_a_task": statistics.median(each["app_cpu_s"] for each in later),
    }


def _task(grid: RunGrid, node: int, model: str, *, steps: int, batch: int) -> dict[str, Any]:
    data = load_dataset("digits").train
    weights = find_factory(model)(input_shape=data.input_shape, classes=10).state_dict()
    config = ConfigRecord({"model": model, "steps": steps, "batch": batch})
    content = RecordDict({"arrays": ArrayRecord(weights), "config": config})
    (node_id,) = grid.get_node_ids()
    with _watching(node) as seen:
        sent_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        replies = grid.send_and_receive([Message(content, node_id, "train")], timeout=_LIMIT_S)
        ended_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    if not replies or replies[0].has_error():
        raise FedHybridError(f"the stock node did not do its task: {replies}")
    told = replies[0].content["metrics"]
    return {
        "top_bytes": seen.top_bytes,
        "top_anon_bytes": seen.top_anon_bytes,
        "top_by_process": dict(seen.by_process),
        "start_to_first_s": told["first-step-s"] - told["process-began-s"],
        "sent_to_first_s": told["first-step-s"] - sent_s,
        "round_trip_s": ended_s - sent_s,
        "cpu_before_first_s": told["cpu-before-first-step-s"],
        "app_cpu_s": told["cpu-s"],
    }


@dataclass
class _Seen:
    """The highest sums over all processes of the node, and the highest of each."""

    top_bytes: int = 0
    top_anon_bytes: int = 0
    by_process: dict[str, int] = field(default_factory=lambda: defaultdict(int))


@contextmanager
def _watching(node: int) -> Iterator[_Seen]:
    seen, stopped = _Seen(), threading.Event()

    def look() -> None:
        while not stopped.wait(_SAMPLE_S):
            now = _now(node)
            seen.top_bytes = max(seen.top_bytes, sum(sizes["rss_bytes"] for sizes in now.values()))
            seen.top_anon_bytes = max(seen.top_anon_bytes, sum(sizes["anon_bytes"] for sizes in now.values()))
            for name, sizes in now.items():
                seen.by_process[name] = max(seen.by_process[name], sizes["rss_bytes"])

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stopped.set()
        thread.join()


def _now(node: int) -> dict[str, dict[str, float]]:
    """Memory and processor seconds of the node's processes by their names; several of a name are added."""
    found: dict[str, dict[str, float]] = {}
    for pid, name in {node: "flower-supernode", **descendants(node)}.items():
        with suppress(OSError, AssertionError):  # it has just ended
            sizes = vars(memory(pid)) | {"cpu_s": cpu_s(pid)}
            before = found.get(name, dict.fromkeys(sizes, 0))
            found[name] = {key: before[key] + size for key, size in sizes.items()}
    return found


def _start(superlink: Superlink) -> int:
    """A run with the ordinary app."""
    files = {"pyproject.toml": _APP.encode(), "stock_app.py": Path(__file__).with_name("stock_app.py").read_bytes()}
    listed = "\n".join(f"{name},{hashlib.sha256(data).hexdigest()},{len(data) * 8}" for name, data in files.items())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, data in (files | {".info/CONTENT": listed.encode()}).items():
            bundle.writestr(zipfile.ZipInfo(name), data)
    app = private.Fab(hash_str=hashlib.sha256(packed.getvalue()).hexdigest(), content=packed.getvalue())
    with owner_client(private.ControlHttpClient, superlink) as client:
        return int(client.StartRun(private.StartRunRequest(fab=app)).run_id)


def _wait_for_node(grid: RunGrid, log: Path) -> None:
    end_s = time.monotonic() + _LIMIT_S
    while not grid.get_node_ids():
        if time.monotonic() > end_s:
            raise FedHybridError(f"the stock node did not connect: {log.read_text()[-2000:]}")
        time.sleep(0.1)


@contextmanager
def _supernode(folder: Path, superlink: Superlink, keys: KeyFolder) -> Iterator[int]:
    home = folder / "node-home"
    home.mkdir()
    scripts = Path(sys.executable).parent
    command = [
        str(scripts / "flower-supernode"),
        "--superlink",
        superlink.endpoint.address,
        "--port",
        str(_free_port()),
    ]
    command += ["--root-certificates", str(keys.ca_certificate), "--auth-supernode-private-key"]
    command += [str(keys.node_key("device"))]
    environment = os.environ | OFFLINE | {"FLWR_HOME": str(home), "PATH": f"{scripts}:{os.environ.get('PATH', '')}"}
    with (folder / "supernode.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process.pid
    finally:
        left = descendants(process.pid)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        for pid in (process.pid, *left):
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        process.wait()


def _free_port() -> int:
    import socket  # noqa: PLC0415

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
