"""A short-lived process that captures a device's step and makes programs of plans: `python -m ...workshop HOME ORDER`.

Capture, planner and measurement take some 90 MB that a device should not hold between rounds, so they are done here.
The order is a file of JSON, the outcome one line of JSON on standard output; programs go to the home's folder of
programs. The process ends at once when its standard input does: that is how it notices that whoever started it is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from fedhybrid.engine.runtime import classification_loss
from fedhybrid.engine.submodels import captured_step
from fedhybrid.errors import FedHybridError
from fedhybrid.executor import TrainStep, export_program
from fedhybrid.experiment.config import RunConfig
from fedhybrid.experiment.material import adapted, initial_model
from fedhybrid.experiment.wire import to_wire
from fedhybrid.integrations.flower.device.programs import ProgramFolder
from fedhybrid.integrations.flower.device.setting import example_batch, method_of, optimizer_of
from fedhybrid.planner import Plan
from fedhybrid.protocols import Submodel

__all__ = ["made", "main"]


def made(home: Path, order: dict[str, Any]) -> dict[str, Any]:
    """Does an order: `{"setting": step_setting(...), "plans": {file name: plan as JSON or null}}`.

    Returns:
        What went wrong with each plan that has no program now, by file name (`experiment.wire`).
    """
    setting = order["setting"]
    config = RunConfig.model_validate(setting["recipe"])
    torch.set_num_threads(1)
    folder = ProgramFolder(home)
    method, example = method_of(config), example_batch(setting["batch"])
    shape, classes, tokens = tuple(setting["input_shape"]), setting["classes"], setting["tokens"]
    model = initial_model(config, input_shape=shape, classes=classes, tokens=tokens)
    whole = Submodel(
        module=adapted(method, model, example[0]),
        loss_fn=classification_loss,
        optimizer=optimizer_of(config, method),
    )
    submodel = method.submodel(whole, setting.get("submodel", ""))
    prepared = captured_step(submodel, example, lambda work: 1.0)  # nothing is planned here, so no time matters
    step = TrainStep(prepared, prepared.keep_all())
    wrong: dict[str, Any] = {}
    for name, text in order["plans"].items():
        try:
            plan = prepared.keep_all() if text is None else Plan.from_json(text)
            # The unplanned step may need more than this device has: it is run when a task asks for it, not before.
            folder.write(name, export_program(step, plan, measure=text is not None))
        except FedHybridError as error:
            wrong[name] = to_wire(error)
    return wrong


def main(home: Path, order: Path) -> int:
    """One order; what goes wrong with the whole of it is told, too."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not mix with the outcome
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        outcome: dict[str, Any] = {"wrong": made(home, json.loads(order.read_text(encoding="utf-8")))}
    except FedHybridError as error:
        outcome = {"error": to_wire(error)}
    print(json.dumps(outcome), file=out, flush=True)
    return 0


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
