"""The verbs of methods whose clients keep exemplars; what sets them apart is how the memory is read.

A round has two stages. In "look" each client runs the encoder over its exemplars and its samples of the task: their
features go into its memory, and exemplars of the task's classes are chosen anew. In "train" it trains on its samples
and on the exemplars of earlier tasks together; in a task's last round on all exemplars, with the encoder frozen. Only
the network travels: exemplars and their features stay where they are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.methods.averaging import AbstractFederated, averaged_by_samples, tasks_for_cohort
from fedhybrid.methods.local import train_locally
from fedhybrid.methods.memory_bank.bank import Bank, room_for
from fedhybrid.methods.memory_bank.clients import ReplayingClient, looked_through
from fedhybrid.methods.memory_bank.ledger import ENCODER, Holding, Ledger
from fedhybrid.methods.memory_bank.names import KEEP, LEARN, LOOK, TUNE, StepName
from fedhybrid.methods.memory_bank.steps import BEFORE, GROWN, MEMORY, OWN, ROW_OF, Losses, step_of
from fedhybrid.models.memory_transformer import MemoryNet, ReaderSizes
from fedhybrid.protocols import ClientRuntime, Optimizer, Quote, RoundPlan, ServerState, Submodel
from fedhybrid.records import ClientTask, LocalWork, StreamTask, Update
from fedhybrid.tree import Tensors, load_into, tensors_of

__all__ = ["AbstractMemory", "MemoryRules"]

_ROWS = "rows."  # of the global model's tensors
_SEEN, _TASK, _CLASSES = "seen", "task", "classes"  # options of tasks
_CHUNK = 256  # samples whose features are worked out at once for a test


@final
@dataclass(frozen=True, kw_only=True)
class MemoryRules:
    """What a method with a memory is.

    Attributes:
        exemplars: Of a class, on each client.
        total: Of all classes, on each client; above 0 it replaces `exemplars`.
        least: A client whose memory does not hold as many keeps half, a quarter and so on, down to this; 0: never
            fewer.
        losses: Of its steps.
        tune_epochs: Passes over the exemplars in a task's last round; 0: that round is like the others.
        tune_lr_ratio: Of the learning rate, then.
        scale: Of the cosines, to begin with.
        neighbours: That are read; 0: the memory is for replay alone.
        sizes: Of the reader; None: there is none.
        temperature: Of a vote of the neighbours; 0: there is none.
    """

    exemplars: int
    total: int
    least: int
    losses: Losses
    tune_epochs: int
    tune_lr_ratio: float
    scale: float
    neighbours: int = 0
    sizes: ReaderSizes | None = None
    temperature: float = 0.0

    def problems(self) -> list[str]:
        """What is wrong with it, in words."""
        found = []
        if self.total < 0 or (self.exemplars < 1 and not self.total):
            found.append(
                f"exemplars must be at least 1 and total at least 0 (no total), got {self.exemplars} and {self.total}"
            )
        if self.least < 0:
            found.append(f"least_exemplars must be at least 0 (never fewer than wanted), got {self.least}")
        if not (math.isfinite(self.losses.distillation) and self.losses.distillation >= 0):
            found.append(f"distillation must be at least 0, got {self.losses.distillation}")
        if self.tune_epochs < 0:
            found.append(f"tune_epochs must be at least 0, got {self.tune_epochs}")
        for name, value in (("tune_lr_ratio", self.tune_lr_ratio), ("scale", self.scale)):
            if not (math.isfinite(value) and value > 0):
                found.append(f"{name} must be above 0, got {value}")
        return found

    def ladder(self, seen: int) -> tuple[int, ...]:
        """Exemplars of a class that a step may have room for, the most first."""
        most = room_for(self.exemplars, self.total, seen)
        sizes = [most]
        while self.least and sizes[-1] // 2 >= max(1, self.least):
            sizes.append(sizes[-1] // 2)
        return tuple(sizes)

    def entries(self, classes: int) -> int:
        """Of the largest memory that an answer may be read from."""
        if not self.neighbours:
            return 0
        return max(classes * room_for(self.exemplars, self.total, classes), self.total)


@dataclass(frozen=True, kw_only=True)
class AbstractMemory(AbstractFederated):
    """Methods whose clients keep exemplars of the classes that they have seen.

    Attributes:
        exemplars: Of a class, on each client.
        total_exemplars: Of all classes, on each client; above 0 it replaces `exemplars`.
        least_exemplars: A client whose memory does not hold as many keeps half, and so on down to this; 0: never.
        distillation: Weight of 1 - cosine of the features to those of the encoder before the task.
        scale: Of the cosines, to begin with; it is trained.
        tune_epochs: Passes over all exemplars, with the encoder frozen, in a task's last round; 0: none.
        tune_lr_ratio: Of the learning rate, then.
    """

    exemplars: int = 20
    total_exemplars: int = 0
    least_exemplars: int = 0
    distillation: float = 5.0
    scale: float = 10.0
    tune_epochs: int = 20
    tune_lr_ratio: float = 0.1

    def __post_init__(self) -> None:
        if problems := self._problems():
            raise ConfigError(problems)

    def _problems(self) -> list[str]:
        """What is wrong with the options; a method adds its own."""
        return self.rules.problems()

    @property
    def rules(self) -> MemoryRules:
        """What it is; a method adds how the memory is read."""
        return MemoryRules(
            exemplars=self.exemplars,
            total=self.total_exemplars,
            least=self.least_exemplars,
            losses=Losses(distillation=self.distillation),
            tune_epochs=self.tune_epochs,
            tune_lr_ratio=self.tune_lr_ratio,
            scale=self.scale,
        )

    @property
    def plans(self) -> bool:
        """The memory takes from the device's budget what plans give back."""
        return True

    @property
    def asynchronous(self) -> bool:
        """False: tasks come round by round."""
        return False

    @property
    def is_personal(self) -> bool:
        """Each client answers with its own memory, where the method reads it."""
        return self.rules.neighbours > 0

    @property
    def stages(self) -> tuple[str, ...]:
        """First features and exemplars, then training."""
        return (LOOK, "train")

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured optimizer itself."""
        return base

    def adapt(self, model: nn.Module, sample: Tensor) -> nn.Module:
        """The model with a cosine head and a memory, which is empty at the server.

        Raises:
            ConfigError: It does not end in a linear layer of its features, or has another width than the reader takes.
        """
        rules = self.rules
        return MemoryNet(
            model,
            sample,
            entries=rules.entries,
            neighbours=rules.neighbours,
            sizes=rules.sizes,
            temperature=rules.temperature,
            scale=rules.scale,
        )

    def menu(self, model: nn.Module) -> tuple[str, ...]:
        """Steps with all classes and as many exemplars as there may be, then half and so on: who holds none of them is
        not asked. What a client really runs in a round is smaller until all classes have come.
        """
        if not isinstance(model, MemoryNet):  # before adapt()
            return ("",)
        kind = KEEP if self.rules.losses.distillation else LEARN
        seen = model.classes
        return tuple(str(StepName(kind=kind, seen=seen, each=each)) for each in self.rules.ladder(seen))

    def submodel(self, whole: Submodel, name: str) -> Submodel:
        """The step of that name; "" is the network without anything to train it on but a batch."""
        return step_of(whole, name, self.rules.losses) if name else whole

    def tested_names(self, weights: Tensors) -> tuple[str, ...]:
        """All but the server's memory, which is empty."""
        return tuple(name for name in weights if not name.startswith(MEMORY))

    def personal(self, model: nn.Module, weights: Tensors, state: Tensors) -> Tensors:
        """The global model with the client's exemplars in its memory, their features worked out anew."""
        bank = Bank.of_state(state)
        if bank is None or not len(bank):
            return weights
        net = copy.deepcopy(model)
        assert isinstance(net, MemoryNet)
        load_into(tensors_of(net), weights)
        with torch.no_grad():
            parts = [net.eval().features(inputs).half() for inputs in torch.split(bank.inputs, _CHUNK)]
        bank = replace(bank, features=torch.cat(parts))
        entries = len(net.memory.labels)
        return {**weights, **bank.buffers(torch.arange(len(bank)), entries, inputs=False)}

    def assign(self, server: ServerState, plan: RoundPlan) -> list[ClientTask]:
        """To each client the encoder to look with, and then the step of the round with room for its exemplars."""
        ledger, stream = Ledger.of(server.extra), _stream_of(server, plan)
        options = {_SEEN: list(stream.seen), _TASK: stream.index, _CLASSES: list(stream.classes)}
        tasks = tasks_for_cohort(server, plan)
        if plan.phase == LOOK:
            encoder = {name: tensor for name, tensor in server.weights.items() if name.startswith(ENCODER)}
            return [
                self._to_look(replace(task, weights=encoder, options=options), plan, ledger, stream) for task in tasks
            ]
        weights = _grown(server.weights, ledger, stream)
        options[_CLASSES] = len(server.weights[f"{_ROWS}head"])
        return [self._to_train(replace(task, weights=weights, options=options), plan, ledger, stream) for task in tasks]

    def _kind(self, stream: StreamTask) -> str:
        if self.rules.tune_epochs and stream.ends and not stream.begins:
            return TUNE
        return KEEP if stream.index and self.rules.losses.distillation else LEARN

    def _step_for(self, client: int, plan: RoundPlan, stream: StreamTask) -> tuple[StepName, Quote]:
        """The round's training step with the largest memory that the client can hold, or with the smallest there is.

        It looks with as large a memory. Who has no room left for the few bytes that say which entry is a sample's own
        trains without them, and so reads that entry, too: the menu, which does not know the batch, promised as much.
        """
        kind, seen, ladder = self._kind(stream), len(stream.seen), self.rules.ladder(len(stream.seen))
        batch = plan.work.batch_size if self.rules.sizes is not None else 0
        rungs = [(each, batch) for each in ladder] + ([(ladder[-1], 0)] if batch else [])
        for each, size in rungs:
            name = StepName(kind=kind, seen=seen, each=each, batch=size)
            quote = plan.costs.quote(client, str(name))
            if quote.fits and plan.costs.quote(client, str(_look_of(name))).fits:
                break
        return name, quote

    def _to_look(self, task: ClientTask, plan: RoundPlan, ledger: Ledger, stream: StreamTask) -> ClientTask:
        """With as many steps as its exemplars and samples make batches."""
        name, _ = self._step_for(task.client, plan, stream)
        look, known, seen = _look_of(name), ledger.held.get(task.client), plan.costs.num_samples(task.client)
        seen += known.exemplars(name.each, without=stream.classes) if known is not None else 0
        work = replace(task.work, steps=math.ceil(seen / task.work.batch_size), samples=None)
        return replace(task, submodel=str(look), plan=plan.costs.quote(task.client, str(look)).plan, work=work)

    def _to_train(self, task: ClientTask, plan: RoundPlan, ledger: Ledger, stream: StreamTask) -> ClientTask:
        """With as many steps as its samples and the exemplars that it trains on make batches."""
        name, quote = self._step_for(task.client, plan, stream)
        holding, kind = ledger.held[task.client], name.kind
        earlier = holding.exemplars(name.each, without=stream.classes)
        work = replace(task.work, steps=_steps(task.work, holding.samples + earlier), samples=None)
        if kind == TUNE:
            epochs = replace(task.work, epochs=self.rules.tune_epochs, steps=None, samples=None, last_batch="wrap")
            steps = _steps(epochs, holding.exemplars(name.each))
            work = replace(epochs, steps=steps, lr=task.work.lr * self.rules.tune_lr_ratio)
        has_before = task.client in ledger.holders or kind != KEEP
        sent = tuple(
            tensor
            for tensor in task.weights
            # Looking has brought the encoder; rows of classes that have not come mean nothing.
            if not tensor.startswith((ENCODER, _ROWS)) and not (tensor.startswith(BEFORE) and has_before)
        )
        return replace(task, submodel=str(name), plan=quote.plan, work=work, sent=sent)

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        """The client's side of either stage."""
        if task.kind == LOOK:
            return self._look(task, client)
        name, seen, classes = StepName.read(task.submodel), task.options[_SEEN], task.options[_CLASSES]
        kept = Bank.of_state(client.state)
        assert kept is not None, "who trains has looked first"
        bank = kept.first(name.each)
        update = train_locally(task, ReplayingClient(client, bank=bank, name=name, seen=seen, classes=classes))
        if len(bank) < len(kept):  # memory has fallen since it looked: it keeps no more than it can hold
            update = replace(update, state=bank.as_state(), metrics=Ledger.cut_to(name.each))
        held = sorted({*bank.labels.tolist(), *client.labels.tolist()})
        left_out = (GROWN, BEFORE, MEMORY, *((ENCODER,) if name.kind == TUNE else ()))
        sent: Tensors = {}
        masks: Tensors = {}
        for tensor, values in update.weights.items():
            if tensor.startswith(GROWN):
                whole = f"{_ROWS}{tensor.removeprefix(GROWN)}"
                sent[whole], masks[whole] = _spread(values, seen, classes, held)
            elif not tensor.startswith(left_out) and tensor not in (OWN, ROW_OF):
                sent[tensor] = values
        return replace(update, weights=sent, masks=masks)

    def _look(self, task: ClientTask, client: ClientRuntime) -> Update:
        """Features, and exemplars of the task's classes."""
        bank, steps = looked_through(
            client,
            task.weights,
            name=StepName.read(task.submodel),
            seen=task.options[_SEEN],
            classes=task.options[_CLASSES],
            batch_size=task.work.batch_size,
        )
        holding = Holding(samples=client.num_samples, counts=bank.counts, task=int(task.options[_TASK]))
        return Update(
            client=task.client,
            round_index=task.round_index,
            weights={},
            num_samples=client.num_samples,
            samples_seen=steps * task.work.batch_size,
            steps=steps,
            loss_mean=0.0,
            squared_loss_sum=0.0,
            measured_peak_bytes=client.measured_peak_bytes,
            kind=task.kind,
            metrics=holding.as_metrics(),
            state=bank.as_state(),
        )

    def aggregate(self, server: ServerState, updates: Sequence[Update]) -> ServerState:
        """After looking, what there is to train on; after training the mean, of rows over those who hold the class."""
        ledger = Ledger.of(server.extra)
        if updates[0].kind == LOOK:
            return replace(server, extra={**server.extra, **ledger.looked(server.weights, updates).as_extra()})
        mean = averaged_by_samples(server, updates)
        return replace(mean, extra={**server.extra, **ledger.trained(updates).as_extra()})


def _look_of(name: StepName) -> StepName:
    """The step that looks with as large a memory."""
    return StepName(kind=LOOK, seen=name.seen, each=name.each)


def _stream_of(server: ServerState, plan: RoundPlan) -> StreamTask:
    """The task that is on; without a stream a single one that has all classes and never ends."""
    if plan.stream is not None:
        return plan.stream
    every = tuple(range(len(server.weights[f"{_ROWS}head"])))
    return StreamTask(index=0, count=1, classes=every, seen=every, begins=False, ends=False)


def _grown(weights: Tensors, ledger: Ledger, stream: StreamTask) -> Tensors:
    """The tensors of a step of this task, and what updates are held to; memories are the clients' own."""
    seen = torch.tensor(stream.seen)
    made = {name: tensor for name, tensor in weights.items() if not name.startswith(MEMORY)}
    grown = {
        f"{GROWN}{name.removeprefix(_ROWS)}": tensor[seen] for name, tensor in weights.items() if name.startswith(_ROWS)
    }
    return {**made, **grown, **ledger.before_tensors()}


def _spread(rows: Tensor, seen: Sequence[int], classes: int, held: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rows in the order of coming, as rows by class number, and where the client's own classes are."""
    whole = rows.new_zeros(classes, *rows.shape[1:])
    whole[torch.tensor(list(seen))] = rows
    mask = torch.zeros(whole.shape, dtype=torch.bool)
    mask[torch.tensor(held, dtype=torch.int64)] = True
    return whole, mask


def _steps(work: LocalWork, samples: int) -> int:
    """Training steps of so much work on so many samples."""
    if work.steps is not None:
        return work.steps
    if work.samples is not None:
        return math.ceil(work.samples / work.batch_size)
    whole, rest = divmod(samples, work.batch_size)
    return work.epochs * (whole + (1 if rest and work.last_batch == "wrap" else 0))
