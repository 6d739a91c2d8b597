"""What travels between the parts of a federation while it runs: frozen data, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhybrid.tree import Tensors

__all__ = [
    "COMPLETED",
    "Candidates",
    "ClientTask",
    "Failure",
    "LocalWork",
    "Outcome",
    "TaskCost",
    "TaskEvent",
    "TensorTimes",
    "Update",
]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

COMPLETED = "completed"  # `ClientRecord.outcome` of a task that came back with an update


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The clients that may be selected now, as parallel arrays of one length (a fleet may be a million devices).

    Attributes:
        client: Client numbers, ascending.
        tier: Index of each client's budget tier.
        budget_bytes: Memory budget of each client for the coming round.
        num_samples: Training samples that each client holds.
        label_counts: Training samples of each class that each client holds, (clients, classes); no column where that is
            not known.
        unplanned_bytes: Peak of the step without any plan (PyTorch eager); the paper's M_G.
        smallest_bytes: Smallest peak that the method can run the step in; the paper's M_min. Equals
            `unplanned_bytes` for a method without plans.
        step_s: Predicted seconds of one step as each client would run it; infinity where it cannot.
        kernel_s: Sum over the model's distinct operators of their mean seconds on each client's device.
        round_s: Predicted seconds of each client's whole task: download, all steps, upload; infinity where it cannot.
            Where clients train submodels, the steps are theirs, the transfers still those of the whole model.
    """

    client: IntArray
    tier: IntArray
    budget_bytes: IntArray
    num_samples: IntArray
    label_counts: IntArray
    unplanned_bytes: int
    smallest_bytes: int
    step_s: FloatArray
    kernel_s: FloatArray
    round_s: FloatArray

    def __len__(self) -> int:
        return len(self.client)

    def sample(self, count: int, rng: np.random.Generator) -> IntArray:
        """At most `count` of the clients without replacement, all alike, in ascending order."""
        return np.sort(rng.choice(self.client, size=min(count, len(self.client)), replace=False, shuffle=False))


@dataclass(frozen=True, kw_only=True)
class LocalWork:
    """How much a client trains: whole epochs or, where one of the two is given, so many steps or samples.

    Attributes:
        epochs: Passes over the client's data; read where neither `steps` nor `samples` is given.
        batch_size: Samples of a step, always as many.
        lr: Learning rate.
        last_batch: Of an epoch that is no whole number of batches: "wrap" fills it up from one more shuffle, "drop"
            skips it. Work by steps or samples goes from one shuffle to the next and wraps always.
        steps: So many steps, whatever the client holds.
        samples: At least so many samples, rounded up to whole steps.
    """

    epochs: int
    batch_size: int
    lr: float
    last_batch: str = "wrap"
    steps: int | None = None
    samples: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClientTask:
    """One piece of work for one client.

    Attributes:
        round_index: How many times the server had aggregated when the task was given out: its version.
        client: Who does it.
        weights: The model to start from.
        work: How much to train.
        plan: Names a plan of the run's plan book; None means the unplanned step.
        seed: Everything that is random in the task derives from it.
        kind: "train", "evaluate" (the model on the client's data, nothing learnt), "query" (what the client is and
            has), "close" (`Method.closes`), or one of the method's own `preparations` and `stages`.
        options: The method's own; JSON.
        submodel: Names what of the model is trained (`Method.submodel`); "" is the whole.
        sent: Names in `weights` that travel to the client; None: all. The others it has from earlier tasks.
        sent_bytes: What the download takes on the link, where the client makes a part of `weights` from what it has;
            None: what those names take.
        classes: Only the client's samples of these classes take part; None: all. The engine fills it in (`[stream]`).
    """

    round_index: int
    client: int
    weights: Tensors
    work: LocalWork
    plan: str | None
    seed: int
    kind: str = "train"
    options: Mapping[str, Any] = field(default_factory=dict)
    submodel: str = ""
    sent: tuple[str, ...] | None = None
    sent_bytes: int | None = None
    classes: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Update:
    """What a client sends back.

    Attributes:
        client: Who sends it.
        round_index: Of its task: the server's version that it started from.
        weights: Tensors by the model's names; fewer than the model has where the update is partial.
        num_samples: Training samples that the client holds.
        samples_seen: Samples that it went through, each as often as it did.
        steps: Training steps that it made.
        loss_mean: Over the samples seen.
        squared_loss_sum: Over the samples seen.
        measured_peak_bytes: Largest peak of its steps by the allocator's events.
        kind: Of its task.
        masks: For some names in `weights` a bool tensor of the same shape: where it is False nothing is sent.
        metrics: Figures of the client's own, such as those of an evaluation.
        state: What the client keeps for its next task; None leaves what it had. It is never sent.
    """

    client: int
    round_index: int
    weights: Tensors
    num_samples: int
    samples_seen: int
    steps: int
    loss_mean: float
    squared_loss_sum: float
    measured_peak_bytes: int
    kind: str = "train"
    masks: Tensors = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    state: Tensors | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A task that did not come back with an update that can be used.

    Attributes:
        client: Who had it.
        round_index: Of its task.
        kind: One word, such as "out_of_memory", "no_data", "crash", "time_out", "disconnected", "corrupt",
            "non_finite"; "late" where nobody waited for it any longer.
        detail: What happened, in words.
        ran: What the client did and sent all the same; None where nothing came.
    """

    client: int
    round_index: int
    kind: str
    detail: str
    ran: Update | None = None


@dataclass(frozen=True, kw_only=True)
class TaskCost:
    """What a task took, whether or not its update came.

    Attributes:
        bytes_down: Sent to the client.
        bytes_up: Sent by it.
        compute_s: Seconds that its device computed.
        energy_j: Joules above idle; None where the device's profile has no energy figures.
        violations: Steps during which the device had less memory left than the running program needs.
        switches: How often the client moved along its ladder of plans.
        runtime_bytes: Memory of its program beside training, as it says; None where it is simulated.
    """

    bytes_down: int = 0
    bytes_up: int = 0
    compute_s: float = 0.0
    energy_j: float | None = None
    violations: int = 0
    switches: int = 0
    runtime_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class TensorTimes:
    """Where the seconds of a training step go on one device.

    Attributes:
        forward_s: Of the forward pass and the loss.
        pass_s: For each trained parameter the seconds that its layer takes to pass the gradient on to its input.
        weight_s: For each trained parameter the seconds of its own gradient and of its update.
        names: Those parameters, in the order in which the forward pass reads them.
    """

    forward_s: float
    pass_s: Mapping[str, float]
    weight_s: Mapping[str, float]
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TaskEvent:
    """A task's end, as a driver reports it.

    Attributes:
        ticket: Of its submission.
        at_s: The driver's clock then.
        duration_s: From submission to end.
        result: What came of it.
        cost: What it took.
        budget_bytes: What the client promised for its training step when it was given the task.
        planned_peak_bytes: Of the largest program that it ran; None where none ran.
    """

    ticket: int
    at_s: float
    duration_s: float
    result: Update | Failure
    cost: TaskCost = field(default_factory=TaskCost)
    budget_bytes: int = 0
    planned_peak_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a selection policy learns of a finished task.

    Attributes:
        client: Who had it.
        round_index: Number of the selection that it was chosen in.
        squared_loss_mean: Over the samples seen; None where no update came.
        num_samples: Training samples of the client.
        duration_s: From submission to end.
        kind: "completed", or the kind of its failure.
    """

    client: int
    round_index: int
    squared_loss_mean: float | None
    num_samples: int
    duration_s: float
    kind: str = COMPLETED
