"""The work behind `fedhybrid plan`: checks the request, builds the step, plans it, and measures it if asked to."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedhybrid.cli.arguments import attempt, parse_assignments, parse_shape
from fedhybrid.cli.output import notes, stage
from fedhybrid.errors import ConfigError
from fedhybrid.executor import ACTIONS, SGD, Adam, AdamW, Measurement, TrainStep, prepare_step
from fedhybrid.models import build_model
from fedhybrid.planner import SOLVERS, Plan
from fedhybrid.protocols import Optimizer
from fedhybrid.registry import lookup
from fedhybrid.units import parse_budget

__all__ = ["PlanRequest", "Planned", "carry_out"]

DEFAULT_LR = {"adam": 1e-3, "adamw": 1e-3, "sgd": 0.05}


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What was asked for, as typed on the command line."""

    model: str
    options: tuple[str, ...]
    batch: int
    input_text: str
    budget: str | None
    classes: int
    optimizer: str
    lr: float | None
    actions: tuple[str, ...]
    max_gradient_error: float
    solver: str
    time_limit_s: float
    plan_file: Path | None
    measure: bool
    threads: int | None


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The answer. `measurement` and `mode` (how the step runs) are None where no step was compiled."""

    title: str
    plan: Plan
    measurement: Measurement | None = None
    mode: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Step:
    model: nn.Module
    batch: tuple[Tensor, Tensor]
    optimizer: Optimizer
    plan: Plan | None


def carry_out(request: PlanRequest) -> Planned:
    """Plans the requested step and measures it if asked to.

    Raises:
        ConfigError: Something about the request is wrong; everything that is, at once.
        InfeasibleBudgetError: No plan fits the budget.
        PlanMismatchError: The given plan is for another graph.
    """
    step = _build(request)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    title = " ".join((request.model, *request.options))
    with stage(notes(), "capturing the step and timing its operators"), _logs_silent():
        prepared = prepare_step(step.model, cross_entropy, step.batch, step.optimizer)
    plan = step.plan
    if plan is None:
        assert request.budget is not None
        with stage(notes(), "planning"):
            plan = prepared.plan(
                request.budget,
                actions=request.actions,
                solver=request.solver,
                max_gradient_error=request.max_gradient_error,
                time_limit_s=request.time_limit_s,
            )
        if not request.measure:
            return Planned(title=title, plan=plan)
    with stage(notes(), "compiling"):
        compiled = TrainStep(prepared, plan)  # refuses a plan of another graph
    if not request.measure:
        return Planned(title=title, plan=plan, mode=compiled.mode)
    with stage(notes(), "running real steps, planned and eager"):
        return Planned(title=title, plan=plan, measurement=compiled.measure(), mode=compiled.mode)


@contextmanager
def _logs_silent() -> Iterator[None]:
    """Where a model cannot be captured, torch logs a traceback of the error that then ends the command anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    """The loss of every step that the command plans."""
    return functional.cross_entropy(output, y)


def _build(request: PlanRequest) -> _Step:
    problems = _number_problems(request)
    shape = attempt(problems, lambda: parse_shape(request.input_text))
    options = attempt(problems, lambda: parse_assignments(request.options))
    attempt(problems, lambda: lookup("optimizer", DEFAULT_LR, request.optimizer))
    attempt(problems, lambda: lookup("solver", {"auto": None, **SOLVERS}, request.solver))
    problems += _budget_problems(request)
    problems += [
        f"--actions: unknown action {name!r}; known: {', '.join(ACTIONS)}"
        for name in request.actions
        if name not in ACTIONS
    ]
    plan = attempt(problems, lambda: _plan_of(request.plan_file))
    # A wrong shape must not hide a wrong model: the model is then built for some other shape and thrown away.
    model = attempt(problems, lambda: _model_of(request, shape or (3, 32, 32), options or {}))
    if problems:
        raise ConfigError(problems)
    assert shape is not None
    assert model is not None
    draw = torch.Generator().manual_seed(0)
    x = torch.randn((request.batch, *shape), generator=draw)
    y = torch.randint(request.classes, (request.batch,), generator=draw)
    return _Step(model=model, batch=(x, y), optimizer=_optimizer_of(request), plan=plan)


def _model_of(request: PlanRequest, shape: tuple[int, int, int], options: Mapping[str, Any]) -> nn.Module:
    return build_model(request.model, input_shape=shape, classes=max(request.classes, 1), seed=0, options=options)


def _optimizer_of(request: PlanRequest) -> Optimizer:
    lr = DEFAULT_LR[request.optimizer] if request.lr is None else request.lr
    makers: Mapping[str, Optimizer] = {
        "adam": Adam(lr=lr),
        "adamw": AdamW(lr=lr),
        "sgd": SGD(lr=lr, momentum=0.9),
    }
    return makers[request.optimizer]


def _budget_problems(request: PlanRequest) -> list[str]:
    if request.budget is None:
        missing = '--budget is missing; give bytes like "96 MiB", or a share like "40%"'
        return [missing] if request.plan_file is None else []
    problems: list[str] = []
    attempt(problems, lambda: parse_budget(request.budget or ""))
    if request.plan_file is not None:
        problems.append("--budget and --plan exclude each other: a plan was made for its own budget")
    return problems


def _plan_of(path: Path | None) -> Plan | None:
    if path is None:
        return None
    try:
        return Plan.from_json(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--plan {path}: cannot be read ({error})") from error


def _number_problems(request: PlanRequest) -> list[str]:
    limits = [
        ("--batch", request.batch, request.batch >= 1, "at least 1"),
        ("--classes", request.classes, request.classes >= 1, "at least 1"),
        ("--lr", request.lr, request.lr is None or request.lr >= 0, "0 or more"),
        ("--max-gradient-error", request.max_gradient_error, 0 <= request.max_gradient_error < 1, "from 0 to below 1"),
        ("--time-limit", request.time_limit_s, request.time_limit_s > 0, "above 0"),
        ("--threads", request.threads, request.threads is None or request.threads >= 1, "at least 1"),
    ]
    return [f"{option} must be {rule}, got {value}" for option, value, holds, rule in limits if not holds]
