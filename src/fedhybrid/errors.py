"""Every error that the package raises on purpose.

    FedHybridError
    |-- ConfigError             bad input: recipe, option, data set, message (all problems at once)
    |-- CaptureError            the model's step could not be captured as one program
    |-- InfeasibleBudgetError   no plan fits the budget; carries the smallest budget that some plan fits
    |-- PlanMismatchError       a plan was made for another graph

Exit codes of the command line follow from the type: `ConfigError`, `CaptureError` and `PlanMismatchError` give 2,
`InfeasibleBudgetError` gives 3.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "CaptureError",
    "ConfigError",
    "FedHybridError",
    "InfeasibleBudgetError",
    "PlanMismatchError",
]


class FedHybridError(Exception):
    """Base of every error raised on purpose."""


class ConfigError(FedHybridError):
    """One or more problems in what the user gave; `problems` lists them all."""

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class CaptureError(FedHybridError):
    """The training step could not be captured as one program.

    Attributes:
        operation: Where: the line of the model's code or the operator.
        reason: What was raised there.
        advice: What to do.
    """

    def __init__(self, operation: str, reason: str, advice: str) -> None:
        self.operation, self.reason, self.advice = operation, reason, advice
        super().__init__(f"Could not capture the training step at {operation}: {reason.rstrip('.')}. {advice}")


class InfeasibleBudgetError(FedHybridError):
    """No plan fits the budget.

    Attributes:
        needed_bytes: The smallest peak that any plan found reaches, resident bytes included.
        budget_bytes: The budget that was asked for.
        blocker: The operator at the peak of that smallest plan.
    """

    def __init__(self, *, needed_bytes: int, budget_bytes: int, blocker: str) -> None:
        self.needed_bytes, self.budget_bytes, self.blocker = needed_bytes, budget_bytes, blocker
        super().__init__(
            f"The smallest plan needs {needed_bytes:,} bytes ({needed_bytes / 2**20:.2f} MiB); the budget is "
            f"{budget_bytes:,} ({budget_bytes / 2**20:.2f} MiB). The operator that blocks is {blocker}. "
            "Use a smaller batch or a larger budget."
        )


class PlanMismatchError(FedHybridError):
    """A plan's graph fingerprint differs from the graph it should run on."""

    def __init__(self, *, expected: str, found: str) -> None:
        self.expected, self.found = expected, found
        super().__init__(
            f"The plan was made for graph {found}, this step's graph is {expected}. Model, batch shape, loss, "
            "optimizer kind and torch version must be the same; plan again with fh.plan_step."
        )
