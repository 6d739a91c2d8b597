"""The work behind `fedhybrid plan`: checks the request, builds the step, plans it, measures and limits it if asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from fedhybrid.cli.arguments import attempt
from fedhybrid.cli.hardlimit import HardLimit, limit_problems, under_hard_limit
from fedhybrid.cli.output import notes, stage
from fedhybrid.cli.subject import Built, Subject, build, capture
from fedhybrid.errors import ConfigError
from fedhybrid.executor import ACTIONS, LOSS_FREE, Measurement, PreparedStep, TrainStep
from fedhybrid.planner import LOSSY, MENU, SOLVERS, Plan
from fedhybrid.registry import lookup
from fedhybrid.units import parse_budget, parse_bytes

__all__ = ["PlanRequest", "Planned", "Search", "carry_out", "read_plan", "search_problems"]


@dataclass(frozen=True, kw_only=True)
class Search:
    """How to look for a plan, as typed on the command line; no actions means the engine's default ones."""

    actions: tuple[str, ...]
    max_gradient_error: float
    codecs: tuple[str, ...]
    solver: str
    time_limit_s: float

    def plan(self, prepared: PreparedStep, budget: str | int) -> Plan:
        """The plan for a budget.

        Raises:
            InfeasibleBudgetError: No plan fits it.
        """
        return prepared.plan(
            budget,
            actions=self.actions or LOSS_FREE,
            solver=self.solver,
            max_gradient_error=self.max_gradient_error,
            time_limit_s=self.time_limit_s,
            codecs=self.codecs or MENU,
        )


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What was asked for, as typed on the command line. `margin` is None where no hard limit was asked for."""

    subject: Subject
    search: Search
    budget: str | None
    plan_file: Path | None
    measure: bool
    margin: str | None


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The answer. `measurement` and `mode` (how the step runs) are None where no step was compiled."""

    title: str
    plan: Plan
    measurement: Measurement | None = None
    mode: str | None = None
    hard_limit: HardLimit | None = None


def carry_out(request: PlanRequest) -> Planned:
    """Plans the requested step, measures it and runs it under a hard limit if asked to.

    Raises:
        ConfigError: Something about the request is wrong; everything that is, at once.
        InfeasibleBudgetError: No plan fits the budget.
        PlanMismatchError: The given plan is for another graph.
    """
    built, plan = _checked(request)
    if request.subject.threads is not None:
        torch.set_num_threads(request.subject.threads)
    prepared = capture(built)
    given = plan is not None
    if plan is None:
        assert request.budget is not None
        with stage(notes(), "planning"):
            plan = request.search.plan(prepared, request.budget)
    mode, measurement, limited = None, None, None
    if request.measure or given:
        with stage(notes(), "compiling"):
            compiled = TrainStep(prepared, plan)  # refuses a plan of another graph
        plan, mode = compiled.plan, compiled.mode
        if request.measure:
            with stage(notes(), "running real steps, planned and eager"):
                measurement = compiled.measure()
    if request.margin is not None:
        with stage(notes(), "running steps in processes with a hard limit"):
            limited = under_hard_limit(request.subject, plan, margin_bytes=parse_margin(request.margin))
    return Planned(title=request.subject.title, plan=plan, measurement=measurement, mode=mode, hard_limit=limited)


def search_problems(search: Search) -> list[str]:
    """Everything that is wrong with how to search."""
    problems: list[str] = []
    attempt(problems, lambda: lookup("solver", {"auto": None, **SOLVERS}, search.solver))
    problems += [
        f"--actions: unknown action {name!r}; known: {', '.join(ACTIONS)}"
        for name in search.actions
        if name not in ACTIONS
    ]
    problems += [
        f"--codecs: unknown lossy codec {name!r}; known: {', '.join(LOSSY)}"
        for name in search.codecs
        if name not in LOSSY
    ]
    if not (0 <= search.max_gradient_error < 1 or search.max_gradient_error == math.inf):
        problems.append(f"--max-gradient-error must be from 0 to below 1, or inf, got {search.max_gradient_error}")
    if not search.time_limit_s > 0:
        problems.append(f"--time-limit must be above 0, got {search.time_limit_s}")
    return problems


def parse_margin(text: str) -> int:
    """Bytes of a margin, which may be zero.

    Raises:
        ConfigError: Not an amount of bytes.

    >>> parse_margin("8 MiB"), parse_margin("0")
    (8388608, 0)
    """
    if text.strip() in ("0", "0 MiB"):
        return 0
    try:
        return parse_bytes(text)
    except ConfigError as error:
        raise ConfigError(f'--margin must be bytes like "8 MiB", got {text!r}') from error


def read_plan(path: Path, where: str) -> Plan:
    """The plan in a file; `where` is how the user named it.

    Raises:
        ConfigError: It cannot be read, or holds no plan of this version.
    """
    try:
        return Plan.from_json(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where} {path}: cannot be read ({error})") from error


def _checked(request: PlanRequest) -> tuple[Built, Plan | None]:
    problems = search_problems(request.search)
    built = build(request.subject, problems)
    problems += _budget_problems(request)
    path = request.plan_file
    plan = None if path is None else attempt(problems, lambda: read_plan(path, "--plan"))
    if (margin := request.margin) is not None:
        attempt(problems, lambda: parse_margin(margin))
        problems += limit_problems()
    if problems:
        raise ConfigError(problems)
    assert built is not None
    return built, plan


def _budget_problems(request: PlanRequest) -> list[str]:
    if request.budget is None:
        missing = '--budget is missing; give bytes like "96 MiB", or a share like "40%"'
        return [missing] if request.plan_file is None else []
    problems: list[str] = []
    attempt(problems, lambda: parse_budget(request.budget or ""))
    if request.plan_file is not None:
        problems.append("--budget and --plan exclude each other: a plan was made for its own budget")
    return problems
