"""What a device or a report imports leaves the tools of planning alone, even when it runs."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch._dynamo",
    "torch._inductor",
    "sympy",
    "highspy",
    "fedhybrid.graph.capture",
    "fedhybrid.graph.torch_tracing",
    "fedhybrid.planner.solvers",
    "fedhybrid.executor.prepared",
    "fedhybrid.engine.plans",
    "fedhybrid.engine.world",
)
LIGHT = (
    "fedhybrid.data",
    "fedhybrid.engine.bundle",
    "fedhybrid.engine.evaluate",
    "fedhybrid.engine.footprint",
    "fedhybrid.engine.labour",
    "fedhybrid.engine.parcels",
    "fedhybrid.engine.runtime",
    "fedhybrid.engine.traffic",
    "fedhybrid.executor.carried",
    "fedhybrid.executor.portable",
    "fedhybrid.experiment.material",
    "fedhybrid.integrations.flower.device.slim",
    "fedhybrid.methods",
    "fedhybrid.models",
    "fedhybrid.report",
    "fedhybrid.report.comparison",
    "fedhybrid.updates",
)


def loaded_after(code: str) -> set[str]:
    """Which of the heavy modules a new process has loaded after this code."""
    ending = f"\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + ending], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


MEASURING = """
import torch
from fedhybrid.executor import SGD, PortableStep
from fedhybrid.graph import BatchSpec, allocator_events, overload, peak_of
with allocator_events() as events:
    torch.ones(1000)
assert peak_of(events) == 4000
"""


def test_light_modules_load_nothing_heavy_nor_does_measuring_allocations() -> None:
    assert loaded_after("import " + ", ".join(LIGHT) + MEASURING) == set()


def test_heavy_modules_come_when_they_are_asked_for() -> None:
    asked = "from fedhybrid.graph import capture_step\nfrom fedhybrid.planner import SOLVERS"
    assert loaded_after(asked) >= {"sympy", "fedhybrid.graph.capture", "highspy", "fedhybrid.planner.solvers"}


@pytest.mark.parametrize("package", ["engine", "executor", "experiment", "graph", "planner"])
def test_no_lazy_name_is_a_module_beside_it(package: str) -> None:
    """Importing such a module would put it in the name's place."""
    names = set(import_module(f"fedhybrid.{package}").__all__)
    modules = {path.stem for path in (ROOT / "src" / "fedhybrid" / package).glob("*.py")}
    eager = {"graph": {"fingerprint", "rewrite"}}.get(package, set())
    assert modules & names == eager
