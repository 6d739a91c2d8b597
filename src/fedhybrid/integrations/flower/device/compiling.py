"""From plans to programs on a device: from its folder, or made by a workshop of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from fedhybrid.errors import ConfigError, FedHybridError
from fedhybrid.executor import PortableProgram
from fedhybrid.experiment.wire import from_wire
from fedhybrid.integrations.flower.device.programs import ProgramFolder, program_name
from fedhybrid.planner import Plan

__all__ = ["Compiler"]

_WORKSHOP = "fedhybrid.integrations.flower.device.workshop"


@final
class Compiler:
    """Programs of one step's plans.

    Attributes:
        visits: How many workshops were started so far.
    """

    def __init__(self, home: Path, setting: Mapping[str, Any]) -> None:
        """For the step that `setting.step_setting` describes; see `ProgramFolder` for the home.

        Raises:
            ConfigError: As `ProgramFolder`.
        """
        self._folder, self._setting = ProgramFolder(home), setting
        self.visits = 0

    def programs(self, plans: Mapping[str, Plan | None]) -> dict[str, PortableProgram | FedHybridError]:
        """The program of each plan, or why it has none; None is the plan that decides nothing.

        What no file of the folder holds is made by one workshop, which takes some seconds.

        Args:
            plans: By any name.

        Raises:
            CaptureError: The model's step cannot be captured.
            ConfigError: The workshop fails altogether.
        """
        files = {name: program_name(self._setting, None if plan is None else plan.key) for name, plan in plans.items()}
        found: dict[str, PortableProgram | FedHybridError] = {}
        missing = {}
        for name, file in files.items():
            program = self._folder.read(file)
            if program is None:
                missing[file] = plans[name]
            else:
                found[name] = program
        wrong = self._made(missing) if missing else {}
        for name, file in files.items():
            if name not in found:
                found[name] = from_wire(wrong[file], f"plan {name}") if file in wrong else self._read_back(file)
        return found

    def _read_back(self, file: str) -> PortableProgram:
        program = self._folder.read(file)
        if program is None:
            raise ConfigError(f"{self._folder.home}: a program that was just written there cannot be read again")
        return program

    def _made(self, plans: Mapping[str, Plan | None]) -> dict[str, Any]:
        self.visits += 1
        texts = {file: None if plan is None else plan.to_json() for file, plan in plans.items()}
        with (
            tempfile.TemporaryDirectory(prefix="order-", dir=self._folder.home) as made,
            tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints,
        ):
            order = Path(made, "order.json")
            order.write_text(json.dumps({"setting": self._setting, "plans": texts}), encoding="utf-8")
            command = [sys.executable, "-m", _WORKSHOP, str(self._folder.home.absolute()), str(order.absolute())]
            # Nothing is written to its input: that it ends tells the workshop that nobody waits.
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True
            ) as workshop:
                _free_of_limits(workshop.pid)
                assert workshop.stdout is not None
                try:
                    said = workshop.stdout.read()
                finally:
                    workshop.kill()  # it has ended, or nobody waits for it any more
            complaints.seek(0)
            complaint = complaints.read()
        try:
            outcome = json.loads(said)
        except json.JSONDecodeError as error:
            lines = complaint.strip().splitlines() or ["it said nothing"]
            raise ConfigError(f"the process that makes programs of plans failed: {lines[-1]}") from error
        if "error" in outcome:
            raise from_wire(outcome["error"], "this device's step")
        wrong: dict[str, Any] = outcome["wrong"]
        return wrong


def _free_of_limits(pid: int) -> None:
    """A limit that a device has set itself (`join --hard-limit`) counts what it holds itself; a child inherits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft != hard:
        resource.prlimit(pid, resource.RLIMIT_DATA, (hard, hard))
