"""How a step is to be planned: actions, solver, limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedhybrid.errors import ConfigError
from fedhybrid.planner import LOSSY, MENU, SOLVERS
from fedhybrid.planner.solvers import NEEDED_ACTIONS
from fedhybrid.registry import nearest_hint

__all__ = ["ACTIONS", "LOSS_FREE", "PlanOptions"]

# Loss-free and in memory: the default. Masks as bits come with every plan.
LOSS_FREE = ("recompute", "split")
ACTIONS = (*LOSS_FREE, "encode", "offload")


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """How to plan; see `PreparedStep.plan`.

    Raises:
        ConfigError: An option that is none, or a solver that cannot do without an action that is not allowed; all of
            them at once.
    """

    actions: Sequence[str] = LOSS_FREE
    solver: str = "auto"
    max_gradient_error: float = 0.0
    time_limit_s: float | None = None
    codecs: Sequence[str] = MENU

    def __post_init__(self) -> None:
        problems = []
        if isinstance(self.actions, str) or not isinstance(self.actions, Sequence):
            problems.append(f"actions must be a sequence of names, such as {LOSS_FREE}, got {self.actions!r}")
        else:
            known = ", ".join(ACTIONS)
            problems += [f"unknown action {a!r}; known: {known}" for a in self.actions if a not in ACTIONS]
        solver: object = self.solver
        if not isinstance(solver, str):
            problems.append(f"solver must be a name, got {solver!r}")
        elif self.solver != "auto" and self.solver not in SOLVERS:
            hint = nearest_hint(self.solver, SOLVERS)
            problems.append(f"unknown solver {self.solver!r}.{hint} Known: auto, {', '.join(sorted(SOLVERS))}.")
        elif not problems:
            missing = [action for action in NEEDED_ACTIONS.get(self.solver, ()) if action not in self.actions]
            problems += [
                f"the solver {self.solver!r} needs the action {action!r}, but actions are {tuple(self.actions)}; "
                "allow it, or let solver='auto' choose"
                for action in missing
            ]
        if not _is_number(self.max_gradient_error) or not (
            0 <= self.max_gradient_error < 1 or self.max_gradient_error == math.inf
        ):
            problems.append(
                f"max_gradient_error must be a number in [0, 1), or inf for no cap, got {self.max_gradient_error!r}"
            )
        elif isinstance(self.actions, Sequence) and "encode" in self.actions and self.max_gradient_error == 0:
            problems.append('the action "encode" is lossy and needs a max_gradient_error above 0; 0.02 is a good start')
        if isinstance(self.codecs, str) or not isinstance(self.codecs, Sequence) or not self.codecs:
            problems.append(f"codecs must be a sequence of names, such as {MENU}, got {self.codecs!r}")
        else:
            known = ", ".join(LOSSY)
            problems += [f"unknown lossy codec {c!r}; known: {known}" for c in self.codecs if c not in LOSSY]
        if self.time_limit_s is not None and not (_is_number(self.time_limit_s) and self.time_limit_s > 0):
            problems.append(f"time_limit_s must be positive or None, got {self.time_limit_s!r}")
        if problems:
            raise ConfigError(problems)


def _is_number(given: object) -> bool:
    return isinstance(given, (int, float)) and not isinstance(given, bool)
