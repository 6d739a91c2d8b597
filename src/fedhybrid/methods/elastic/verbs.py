"""The verbs of methods that train few tensors at a time; what sets them apart is their rules.

A round has two stages. In "probe" each client makes two plain steps on one batch, from which it reads how important
tensors are, and sends a number for each. In "train" it trains those that the server has chosen by these numbers, and
sends them with the exit that it trained through and the buffers of the parts that ran: these run in training mode, so
statistics of batch norm move in frozen parts too.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.executor import SGD
from fedhybrid.methods.averaging import AbstractFederated, averaged_by_samples
from fedhybrid.methods.elastic.importance import blended, change_of, importance_of
from fedhybrid.methods.elastic.names import choice_name, read_choice
from fedhybrid.methods.elastic.notes import Notes
from fedhybrid.methods.elastic.offers import Offer, Offers, Rules
from fedhybrid.methods.local import train_locally
from fedhybrid.models.exits import Layout, exit_names, layout_of, until, with_exits
from fedhybrid.protocols import ClientRuntime, RoundPlan, ServerState, Submodel
from fedhybrid.records import ClientTask, Update
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import tensors_of

__all__ = ["AbstractElastic"]

_FIRST, _LAST = "window/first", "window/last"  # among the figures of a probe; no tensor's name has a slash


class AbstractElastic(AbstractFederated):
    """Methods in which each client trains the tensors that are worth most within a time."""

    @property
    @abstractmethod
    def rules(self) -> Rules:
        """How it chooses."""

    @property
    def plans(self) -> bool:
        """Each client's submodel is planned for its budget; the choice of tensors follows the time."""
        return True

    @property
    def asynchronous(self) -> bool:
        """False: windows slide from round to round."""
        return False

    @property
    def stages(self) -> tuple[str, ...]:
        """First importance, then training."""
        return ("probe", "train")

    def adapt(self, model: nn.Module, sample: Tensor) -> nn.Module:
        """The recipe's model with an early exit after each part, where windows end there."""
        return with_exits(model, sample, early=self.rules.window)

    def menu(self, model: nn.Module) -> tuple[str, ...]:
        """The whole model, else the last part alone; what a client really trains is decided when it is its turn."""
        layout = _layout(model)
        return "", choice_name(layout, "train", layout.last, layout.within(layout.last, layout.last))

    def submodel(self, whole: Submodel, name: str) -> Submodel:
        """The first parts of the model, in which some tensors are trained."""
        if not name:
            return whole
        choice = read_choice(_layout(whole.module), name)
        module = until(whole.module, choice.last, choice.trained)
        optimizer = SGD(lr=whole.optimizer.lr) if choice.kind == "probe" else whole.optimizer
        return replace(whole, module=module, optimizer=optimizer)

    def assign(self, server: ServerState, plan: RoundPlan) -> list[ClientTask]:
        """A task for each client that can hold one of the stage's submodels within its budget."""
        layout = layout_of(server.weights)
        assert layout is not None, "the model must be the one that `adapt` made"
        notes = Notes.read(server.extra, list(layout.params))
        offers = Offers(rules=self.rules, layout=layout, costs=plan.costs)
        made = self._probes if plan.phase == "probe" else self._trainings
        return [task for client in plan.cohort for task in made(server, plan, notes, offers, client)]

    def _probes(
        self, server: ServerState, plan: RoundPlan, notes: Notes, offers: Offers, client: int
    ) -> list[ClientTask]:
        offer = offers.probe(client, notes.trained.get(client, (0, 1)))
        if offer is None:
            return []
        ends = read_choice(offers.layout, offer.submodel).last
        task = _task(server, plan, client, offer, sent=offers.layout.until(ends))
        work = replace(plan.work, steps=2, samples=None)
        return [replace(task, work=work, options={"window": list(offer.window), "trained": list(offer.trained)})]

    def _trainings(
        self, server: ServerState, plan: RoundPlan, notes: Notes, offers: Offers, client: int
    ) -> list[ClientTask]:
        if client not in notes.probed:
            return []
        window = notes.probed[client]
        inside = offers.layout.within(*window)
        own = {name: notes.importance[client][name] for name in inside}
        values = blended(own, notes.change, beta=self.rules.beta)
        offer = offers.training(client, window, values, probe=offers.probe_name(window))
        if offer is None:
            return []
        held = offers.layout.until(offers.layout.last if self.rules.whole_probe else window[1])
        missing = tuple(name for name in offers.layout.until(window[1]) if name not in held)
        task = _task(server, plan, client, offer, sent=missing)
        return [replace(task, options={"trained": list(offer.trained)})]

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        """Two steps on one batch and what they say, or local epochs of which the trained tensors are sent."""
        trained = task.options["trained"]
        if task.kind == "probe":
            return _probed(task, client, trained)
        update = train_locally(task, client)
        sent = {*trained, *client.buffers}
        weights = {n: t for n, t in update.weights.items() if n in sent or n.startswith("exits.")}
        return replace(update, weights=weights)

    def aggregate(self, server: ServerState, updates: Sequence[Update]) -> ServerState:
        """After a probe the same model and what it showed; after training each tensor's mean over those who sent it."""
        layout = layout_of(server.weights)
        names = [] if layout is None else list(layout.params)
        notes = Notes.read(server.extra, names)
        if layout is not None and updates[0].kind == "probe":
            heard = {update.client: window for update in updates if (window := _window_of(update, layout)) is not None}
            importance = {u.client: {n: u.metrics.get(n, 0.0) for n in names} for u in updates if u.client in heard}
            notes = replace(notes, probed=heard, importance=importance)
            return replace(server, extra=notes.written(server.extra, names))
        if layout is None:  # anybody else's tensors, of which no window is known
            return averaged_by_samples(server, updates)
        updates = [_expected(update, notes, layout) for update in updates]
        after = averaged_by_samples(server, updates)
        trained = {update.client: window for update in updates if (window := _trained_by(update, notes, layout))}
        change = change_of(server.weights, after.weights, names)
        notes = replace(notes, trained={**notes.trained, **trained}, change=change)
        return replace(after, extra=notes.written(server.extra, names))


def _layout(model: nn.Module) -> Layout:
    layout = layout_of(tensors_of(model))
    if layout is None:
        raise ConfigError(f"the model ({type(model).__name__}) must be one that this method's `adapt` has made")
    return layout


def _task(server: ServerState, plan: RoundPlan, client: int, offer: Offer, *, sent: tuple[str, ...]) -> ClientTask:
    return ClientTask(
        round_index=plan.round_index,
        client=client,
        weights=server.weights,
        work=plan.work,
        plan=offer.quote.plan,
        kind=plan.phase,
        submodel=offer.submodel,
        seed=derive_seed(plan.run_seed, purpose=plan.phase, round_index=plan.draw, client=client),
        sent=sent,
    )


def _probed(task: ClientTask, client: ClientRuntime, names: Sequence[str]) -> Update:
    """Importance of each tensor, by two steps on the client's first batch."""
    client.load(task.weights)
    before, after, losses = client.weights(), [], []
    for x, y in islice(client.batches(task.work, task.seed), 1):
        for _ in range(2):
            losses.append(client.step(x, y)[1].detach().double())
            after.append(client.weights())
    first, last = task.options["window"]
    figures = importance_of(before, *after, lr=task.work.lr, names=names) if after else {}
    return Update(
        client=task.client,
        round_index=task.round_index,
        weights={},
        num_samples=client.num_samples,
        samples_seen=sum(len(each) for each in losses),
        steps=len(losses),
        loss_mean=losses[0].mean().item() if losses else 0.0,
        squared_loss_sum=sum(each.square().sum().item() for each in losses),
        measured_peak_bytes=client.measured_peak_bytes,
        kind=task.kind,
        metrics={**figures, _FIRST: float(first), _LAST: float(last)},
    )


def _window_of(update: Update, layout: Layout) -> tuple[int, int] | None:
    """The window that a client was probed in, if what it says is one."""
    first, last = update.metrics.get(_FIRST, 0.0), update.metrics.get(_LAST, 0.0)
    good = (
        1 <= first <= last <= layout.last
        and int(last) in layout.exits | {layout.last}
        and layout.within(int(first), int(last))
    )
    return (int(first), int(last)) if good else None


def _expected(update: Update, notes: Notes, layout: Layout) -> Update:
    """The update without what its client had no task to send, such as tensors behind its window or the layout."""
    expected: set[str] = set()
    if update.client in notes.probed:
        first, last = notes.probed[update.client]
        expected.update(layout.within(first, last), exit_names(last) if last in layout.exits else ())
        expected.update(name for name, part in layout.buffers.items() if part <= last)
    weights = {name: tensor for name, tensor in update.weights.items() if name in expected}
    return replace(update, weights=weights, masks={n: mask for n, mask in update.masks.items() if n in weights})


def _trained_by(update: Update, notes: Notes, layout: Layout) -> tuple[int, int] | None:
    """The end of a client's window, and the lowest part of which it has sent a parameter."""
    parts = [layout.params[name] for name in update.weights if name in layout.params]
    return (notes.probed[update.client][1], min(parts)) if parts and update.client in notes.probed else None
