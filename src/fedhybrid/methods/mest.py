"""MEST: sparse weights, gradients and optimizer state from the first step on, with masks that change at random.

Source: G. Yuan, X. Ma, W. Niu, Z. Li, Z. Kong, N. Liu, Y. Gong, Z. Zhan, C. He, Q. Jin, S. Wang, M. Qin, B. Ren,
Y. Wang, S. Liu, X. Lin, "MEST: Accurate and Fast Memory-Economic Sparse Training Framework on the Edge", NeurIPS 2021,
https://arxiv.org/abs/2110.14032 (ideas only: the public code has no licence)
Follows: elastic mutation (EM: prune by |w| + lambda |g|, grow at random, fewer from phase to phase) and its soft memory
bound (EM&S: grown weights train before the next prune decides); irregular, block, pattern and channel sparsity; first
convolution, shortcuts and classifier stay dense; samples that are least forgotten are left out after a while.
Differs: federated training is not in the paper. RECONSTRUCTED: the server owns the masks and changes them every few
rounds from the aggregated model, so the paper's epochs are rounds here; a client that cannot hold the weights grown
beyond the bound trains the others alone, and each weight is averaged over those who trained it; |g| is taken by each
client from one more step at the end of the last task before a mutation, and averaged; lambda, the order of ties, the
eight patterns and fresh optimizer state in each task are ours too. Weights are stored as values and places, so that
memory falls in fact: the dense weight of a layer exists while one of its operators runs. Grouped convolutions stay
dense.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.executor import SGD
from fedhybrid.methods.averaging import AbstractAveraging, averaged_by_samples, tasks_for_cohort
from fedhybrid.methods.local import train_locally
from fedhybrid.methods.sparse import (
    SAMPLES_KEPT,
    SLOPES,
    VARIANTS,
    ClientFacts,
    History,
    Schedule,
    WatchedClient,
    compact_weights,
    dense_weights,
    layouts_of,
    loss_and_correctness,
    mutated,
    noted,
    phases,
    received_masks,
    remembered,
    spread_out,
    started,
    task_weights,
    travelling,
)
from fedhybrid.models.sparse import SCHEMES, VALUES, Layout, compact_model, marked, sparse_paths
from fedhybrid.protocols import ClientRuntime, Optimizer, RoundPlan, ServerState, Submodel
from fedhybrid.records import ClientTask, LocalWork, Update
from fedhybrid.tree import Tensors
from fedhybrid.updates import average_present

__all__ = ["Mest"]

_MASK, _SHAPES = "mask", "shapes"  # options of tasks: which of the two masks, and the shapes of the dense weights
_DEFAULT_RATIO = {"em": 0.02, "em-s": 0.05, "static": 0.0}


@final
@dataclass(frozen=True, kw_only=True)
class Mest(AbstractAveraging):
    """Federated averaging of a sparse model; runs the unplanned step unless plans are switched on.

    Attributes:
        sparsity: Ratio of each sparse layer's weights that are zero at the end; 0 is FedAvg.
        variant: "em-s" (soft memory bound: more weights between mutations), "em" (hard: never more than at the end) or
            "static" (a random mask that never changes, to compare with).
        scheme: "irregular", "block", "pattern" or "channel"; see `fedhybrid.models.sparse.Layout`.
        mutation_ratio: Part of a layer's weights that a mutation changes in the first phase; half of it in the second,
            none in the last. Below 0: the paper's, 0.02 for "em" and 0.05 for "em-s".
        mutate_every: Rounds between mutations.
        second_phase: Round at which the second phase begins.
        last_phase: Round from which masks stay as they are.
        gradient_weight: lambda in the importance |w| + lambda |g|; above 0 it needs SGD and one more step a mutation.
        bar_just_pruned: Whether what has been pruned may not be grown at once.
        keep_dense: Patterns of layers that stay dense, with commas between them.
        drop_ratio: Part of its samples that each client leaves out in the end, those that it forgot least often.
        drop_round: Round from which on.
    """

    sparsity: float = 0.9
    variant: str = "em-s"
    scheme: str = "irregular"
    mutation_ratio: float = -1.0
    mutate_every: int = 5
    second_phase: int = 90
    last_phase: int = 120
    gradient_weight: float = 0.01
    bar_just_pruned: bool = False
    keep_dense: str = "*shortcut*,*downsample*"
    drop_ratio: float = 0.0
    drop_round: int = 70

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.sparsity < 1:
            problems.append(f"sparsity must be at least 0 and below 1, got {self.sparsity}")
        if self.variant not in VARIANTS:
            problems.append(f"variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}")
        if self.scheme not in SCHEMES:
            problems.append(f"scheme must be one of {', '.join(SCHEMES)}, got {self.scheme!r}")
        if self.mutate_every < 1:
            problems.append(f"mutate_every must be at least 1 round, got {self.mutate_every}")
        if not 0 <= self.second_phase <= self.last_phase:
            problems.append(
                f"phases must follow each other: second_phase {self.second_phase}, last_phase {self.last_phase}"
            )
        if not (math.isfinite(self.gradient_weight) and self.gradient_weight >= 0):
            problems.append(f"gradient_weight must be at least 0, got {self.gradient_weight}")
        if not 0 <= self.drop_ratio < 1:
            problems.append(f"drop_ratio must be at least 0 and below 1, got {self.drop_ratio}")
        if self.drop_round < 1:
            problems.append(f"drop_round must be at least 1: samples are met first; got {self.drop_round}")
        if not problems and self.sparsity > 0:
            first = self.schedule.phases[0]
            least = Layout(scheme=self.scheme, shape=(1, 1, 3, 3)).least_sparsity
            if not (first.upper > 0 and first.lower < 1) or round(first.upper, 6) < round(least, 6):
                problems.append(
                    f"sparsity {self.sparsity} with mutation_ratio {self._ratio} goes from {first.upper:g} to "
                    f"{first.lower:g}; the scheme {self.scheme!r} needs sparsities from {least:.4g} on, above 0 and "
                    "below 1: change one of the two"
                )
        if problems:
            raise ConfigError(problems)

    @property
    def _ratio(self) -> float:
        return self.mutation_ratio if self.mutation_ratio >= 0 else _DEFAULT_RATIO[self.variant]

    @property
    def schedule(self) -> Schedule:
        """Which phase holds in which round."""
        return Schedule(
            phases=phases(self.variant, self.sparsity, self._ratio),
            starts=(self.second_phase, self.last_phase),
            every=self.mutate_every,
        )

    @property
    def plans(self) -> bool:
        """No plans unless a recipe switches them on: activations are another matter than weights."""
        return False

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured optimizer itself."""
        if self.sparsity and self.gradient_weight and self.variant != "static" and not isinstance(base, SGD):
            raise ConfigError(
                f"method 'mest' with gradient_weight {self.gradient_weight} reads gradients from steps of SGD; the "
                f"optimizer is {type(base).__name__}: set gradient_weight = 0, or use sgd"
            )
        return base

    def adapt(self, model: nn.Module, sample: Tensor) -> nn.Module:
        """The recipe's model, with a mark of one byte at each layer whose weight is to be sparse."""
        if not self.sparsity:
            return model
        paths = sparse_paths(model, self.scheme, tuple(part.strip() for part in self.keep_dense.split(",")))
        if not paths:
            raise ConfigError(
                f"method 'mest' found no layer that may be sparse with the scheme {self.scheme!r}: the first layer, "
                f"the classifier and {self.keep_dense!r} stay dense; use a deeper model or another scheme"
            )
        return marked(model, paths)

    def menu(self, model: nn.Module) -> tuple[str, ...]:
        """One submodel for each sparsity at which some phase trains, the densest first."""
        if not self.sparsity:
            return ("",)
        return tuple(_name(sparsity) for sparsity in sorted({phase.upper for phase in self.schedule.phases}))

    def submodel(self, whole: Submodel, name: str) -> Submodel:
        """The compact model that holds as many weights as its name says, such as "s0.9"."""
        loss_fn = loss_and_correctness(whole.loss_fn) if self.drop_ratio else whole.loss_fn
        if not name:
            return replace(whole, loss_fn=loss_fn)
        tensors = dict((*whole.module.named_parameters(), *whole.module.named_buffers()))
        layouts = layouts_of(tensors, self.scheme)
        kept = {path: (layout, layout.kept(_sparsity(name))) for path, layout in layouts.items()}
        return replace(whole, module=compact_model(whole.module, kept), loss_fn=loss_fn)

    def init(self, weights: Tensors) -> ServerState:
        """The initial global model, masked, and its masks."""
        server = super().init(weights)
        layouts = layouts_of(weights, self.scheme)
        if not layouts:
            return server
        masked, ledger = started(
            server.weights,
            layouts,
            sparsity=self.schedule.phases[-1].upper,
            phase=self.schedule.phase_at(0),
            at_random=self.variant == "static",
        )
        return ServerState(weights=masked, extra=ledger)

    def assign(self, server: ServerState, plan: RoundPlan) -> list[ClientTask]:
        """The compact model of the round to everyone who can hold it, what survived the last prune to the others."""
        layouts, facts = layouts_of(server.weights, self.scheme), ClientFacts.all_of(server.extra)
        phase, asks = self.schedule.phase_at(plan.round_index), bool(layouts) and self._asks(plan.round_index)
        shapes = {path: list(layout.shape) for path, layout in layouts.items()}
        made: dict[bool, Tensors] = {}
        tasks = []
        for task in tasks_for_cohort(server, plan):
            known = facts.get(task.client, ClientFacts())
            work = _fewer(task.work, known.samples_kept)
            if not layouts:
                tasks.append(replace(task, work=work))
                continue
            if asks:
                work = replace(work, steps=plan.costs.steps(task.client, work) + 1, samples=None)
            offered = plan.submodels.get(task.client, _name(phase.upper))
            whole = _sparsity(offered) <= phase.upper
            name = _name(phase.upper if whole else phase.lower)
            if whole not in made:
                made[whole] = task_weights(server.weights, server.extra, layouts, whole=whole, asks=asks)
            tasks.append(
                replace(
                    task,
                    work=work,
                    options={_MASK: "whole" if whole else "found", _SHAPES: shapes, SLOPES: asks},
                    submodel=name,
                    plan=task.plan if name == offered else plan.costs.quote(task.client, name).plan,
                    weights=made[whole],
                    sent=travelling(made[whole], known.whole_mask if whole else known.found_mask, server.extra),
                )
            )
        return tasks

    def _asks(self, round_index: int) -> bool:
        """Whether clients are to send |g| with this round's update."""
        return self.gradient_weight > 0 and self.variant != "static" and self.schedule.is_due(round_index + 1)

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        """Local epochs of ordinary training of the compact model; values go up, masks stay."""
        state, mine = client.state, f"{task.options.get(_MASK, '')}."
        masks = received_masks(
            task.weights,
            task.sent,
            {name.removeprefix(mine): tensor for name, tensor in state.items() if name.startswith(mine)},
            {path: Layout(scheme=self.scheme, shape=tuple(s)) for path, s in task.options.get(_SHAPES, {}).items()},
            _sparsity(task.submodel),
            bar_just_pruned=self.bar_just_pruned,
        )
        among = state.get(SAMPLES_KEPT)
        watched = WatchedClient(
            client,
            history=History.of_state(state, client.num_samples) if self.drop_ratio else None,
            among=among,
            hold_back=task.options.get(SLOPES, False),
        )
        update = train_locally(replace(task, weights={**task.weights, **masks}), watched)
        sent = {name: tensor for name, tensor in update.weights.items() if name not in masks}
        if watched.held_back is not None:
            sent |= _slopes(client, update.weights, watched.held_back, task.work.lr)
            update = replace(update, steps=update.steps + 1)
        state |= {f"{mine}{name}": tensor for name, tensor in masks.items()}
        if watched.history is not None:
            if among is None and task.round_index + 1 >= self.drop_round:
                among = remembered(watched.history, int(self.drop_ratio * client.num_samples))
            state |= watched.history.as_state() | ({} if among is None else {SAMPLES_KEPT: among})
        metrics = {} if among is None else {SAMPLES_KEPT: float(len(among))}
        changed = state if masks or self.drop_ratio else None
        return replace(update, weights=sent, state=changed, metrics={**update.metrics, **metrics})

    def aggregate(self, server: ServerState, updates: Sequence[Update]) -> ServerState:
        """Mean of each weight over those who trained it, and the mutation that is due."""
        layouts = layouts_of(server.weights, self.scheme)
        extra = noted(server.extra, updates, layouts, leaves_samples_out=self.drop_ratio > 0)
        if not layouts:
            return ServerState(weights=averaged_by_samples(server, updates).weights, extra=extra)
        reference = {**server.weights, **compact_weights(server.weights, extra, layouts, whole=True)}
        reference |= {f"{path}.{SLOPES}": torch.zeros_like(reference[f"{path}.{VALUES}"]) for path in layouts}
        spread = [spread_out(update, extra, layouts) for update in updates]
        mean = average_present(
            reference,
            [tensors for tensors, _ in spread],
            [update.num_samples for update in updates],
            [masks for _, masks in spread],
        )
        weights = {name: mean[name] for name in server.weights}
        trained = [path for path in layouts if any(f"{path}.{VALUES}" in update.weights for update in updates)]
        weights |= dense_weights(mean, extra, {path: layouts[path] for path in trained})
        if self.schedule.is_due(server.version + 1):
            weights, extra = mutated(
                weights,
                extra,
                layouts,
                self.schedule.phase_at(server.version + 1),
                slopes={path: mean[f"{path}.{SLOPES}"] for path in layouts},
                gradient_weight=self.gradient_weight,
                bar_just_pruned=self.bar_just_pruned,
            )
        return ServerState(weights=weights, extra=extra)


def _name(sparsity: float) -> str:
    """The submodel of this sparsity, which `_sparsity` reads back exactly: phases are rounded to ten digits."""
    return f"s{float(sparsity)!r}"


def _sparsity(name: str) -> float:
    """The sparsity of a submodel; the whole model has none."""
    return float(name.removeprefix("s") or 0)


def _fewer(work: LocalWork, samples_kept: int) -> LocalWork:
    """As many epochs over fewer samples, where the client trains on those alone."""
    if samples_kept < 0 or work.steps is not None or work.samples is not None:
        return work
    whole, rest = divmod(samples_kept, work.batch_size)
    return replace(work, steps=work.epochs * (whole + (1 if rest and work.last_batch == "wrap" else 0)))


def _slopes(client: ClientRuntime, weights: Tensors, batch: tuple[Tensor, Tensor], lr: float) -> Tensors:
    """|g| of the compact layers' values at these weights, on one batch, by name.

    A first step of SGD moves each weight by lr times its gradient, that of weight decay included (times 1 + momentum
    with Nesterov's). So the same program makes it, and only a second copy of the weights is held meanwhile.
    """
    client.load(weights)
    client.step(*batch)
    moved = client.weights()
    return {
        name.removesuffix(VALUES) + SLOPES: (moved[name] - tensor).abs() / lr if lr else torch.zeros_like(tensor)
        for name, tensor in weights.items()
        if name.endswith(f".{VALUES}")
    }
