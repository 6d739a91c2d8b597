"""What a run leaves behind: frozen data, JSON objects in files."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ClientRecord", "RoundRecord", "Summary"]


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """One line of `rounds.jsonl`: a round or, in asynchronous runs, one aggregation.

    `virtual_time_s` is the clock at its end; `wall_time_s` is real and differs from run to run (seconds since the run
    began, stops left out), everything else is reproducible.

    Attributes:
        round: Counts from 0.
        virtual_time_s: See above.
        accuracy: Share of correct answers on the test set, 0 to 1; None where this round was not tested.
        loss: Mean cross entropy there; None where it was not tested or is not a finite number.
        train_loss: Mean over the samples that were trained on; None where nobody trained.
        cohort: Clients whose tasks ended in this round, ascending.
        completed: Tasks that came back with an update.
        failed: Tasks that did not, the late ones among them.
        bytes_up: Sent by clients.
        bytes_down: Sent to clients.
        wall_time_s: See above.
        late: Tasks that nobody waited for any longer.
        staleness_mean: Mean number of aggregations between a task's start and its use; None without updates.
        energy_j: Joules of all devices above idle; None where a profile has no figures.
        violations: Steps during which a device had less memory left than the running program needs.
        client_accuracy: Mean over the clients that tested the model on their own data; None where none did.
        task: Of a class-incremental stream: which is on, from 0; `accuracy` and `loss` are then of the classes that
            have come so far.
        task_accuracies: On each task's classes so far; None without a stream, or where this round was not tested.
    """

    round: int
    virtual_time_s: float
    accuracy: float | None
    loss: float | None
    train_loss: float | None
    cohort: list[int]
    completed: int
    failed: int
    bytes_up: int
    bytes_down: int
    wall_time_s: float
    late: int = 0
    staleness_mean: float | None = None
    energy_j: float | None = None
    violations: int = 0
    client_accuracy: float | None = None
    task: int | None = None
    task_accuracies: list[float] | None = None


@dataclass(frozen=True, kw_only=True)
class ClientRecord:
    """One line of `clients.jsonl`: one task.

    Attributes:
        round: The round or aggregation in which it ended.
        client: Who had it.
        tier: The client's tier.
        device: Its device profile.
        outcome: "completed", or the kind of its failure.
        budget_bytes: What it promised for its training step when it was given the task.
        planned_peak_bytes: Of the largest program that it ran; None where it never ran.
        measured_peak_bytes: The same, by the allocator's events.
        plan: Name of the plan that it began with; None for the unplanned step.
        samples: Samples that it went through.
        steps: Steps that it made.
        train_loss: Mean over those samples; None where no usable update came.
        virtual_time_s: From the task's start to its end.
        detail: Of a failure, in words.
        kind: Of the task.
        at_s: The clock at its end.
        staleness: Aggregations between its start and its end.
        bytes_up: Sent by the client.
        bytes_down: Sent to it.
        energy_j: Joules above idle; None where the profile has no figures.
        violations: Steps during which the device had less memory left than the running program needs.
        switches: How often it moved along its ladder of plans.
        accuracy: Of the model on the client's own data, where the task was to test it.
        runtime_bytes: Memory of the device's program beside its training; None where the device is simulated.
        submodel: What of the model it trained; "" is the whole.
    """

    round: int
    client: int
    tier: str
    device: str
    outcome: str
    budget_bytes: int
    planned_peak_bytes: int | None
    measured_peak_bytes: int | None
    plan: str | None
    samples: int
    steps: int
    train_loss: float | None
    virtual_time_s: float
    detail: str = ""
    kind: str = "train"
    at_s: float = 0.0
    staleness: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    energy_j: float | None = None
    violations: int = 0
    switches: int = 0
    accuracy: float | None = None
    runtime_bytes: int | None = None
    submodel: str = ""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """`summary.json`.

    `participation` maps each tier to {"clients": in the fleet, "reached": distinct clients that completed a task,
    "tasks": tasks completed, "failed": tasks failed}; `time_to_accuracy_s` maps accuracy targets ("0.50", "0.60", ...)
    to the virtual time when first reached, None where it never was. `accuracy_by_tier` and `worst_tenth_accuracy` are
    means over clients of the final model's accuracy on data like each client's own; `fairness_clients` says over how
    many. `budget_violations` counts tasks whose measured peak exceeds what the client promised, `violations` steps
    during which a device had less memory left than the running program needs. `clock` says whether seconds are
    "virtual", of simulated devices, or "real", of a deployment. Of a class-incremental stream,
    `average_incremental_accuracy` is the mean over the tasks of the accuracy on all classes so far at the task's end,
    and `forgetting` what the tasks before the last have lost, on average, since each was known best.
    """

    method: str
    policy: str
    dataset: str
    model: str
    seed: int
    rounds: int
    clients: int
    final_accuracy: float
    best_accuracy: float
    virtual_time_s: float
    wall_time_s: float
    time_to_accuracy_s: dict[str, float | None]
    bytes_up: int
    bytes_down: int
    participation: dict[str, dict[str, int]]
    budget_violations: int
    failures: dict[str, int]
    resident_bytes: int
    eager_peak_bytes: int
    runtime_bytes: int
    schedule: str = "rounds"
    energy_j: float | None = None
    violations: int = 0
    staleness_mean: float | None = None
    accuracy_by_tier: dict[str, float | None] = field(default_factory=dict)
    worst_tenth_accuracy: float | None = None
    fairness_clients: int = 0
    clock: str = "virtual"
    average_incremental_accuracy: float | None = None
    forgetting: float | None = None
