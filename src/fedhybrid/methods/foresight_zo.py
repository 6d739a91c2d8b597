"""Foresight pruning and zeroth-order training: masks before the first round, then K numbers a batch and no gradient.

Source: P. Zhang, Y. Liu, Y. Zhou, X. Du, X. Wei, T. Wang, M. Chen, "When Foresight Pruning Meets Zeroth-Order
Optimization: Efficient Federated Learning for Low-Memory Devices", Journal of Systems Architecture 168, 2025,
https://arxiv.org/abs/2405.04765. Its two parts: Y. Wang, D. Li, R. Sun, "NTK-SAP", ICLR 2023,
https://arxiv.org/abs/2304.02840, and H. Feng et al., "Does Federated Learning Really Need Backpropagation?" (BAFFLE),
https://arxiv.org/abs/2301.12195
Follows: two stages; masks from the trace of the neural tangent kernel, whose local traces add up to the federated one,
on N(0, 1) inputs and weights drawn anew in each pruning round; one global share of weights; gradients by Stein's
identity from losses along shared random directions, perturbed and put together at the server; clipping, Adam, moving
average.
RECONSTRUCTED: how the two parts are joined, all of the protocol in bytes, saliency without gradients, constants.
Differs: noise is added to each layer's weight inside the forward pass, where it is used, and let go with the layer, so
nothing is undone and no second copy of the weights exists. In "zo" saliency each direction of each client has inputs
and weight noise of its own, and differences are central; a client's directions are its own, too. In a round all batches
of a client are seen at the weights that it received, each along K directions of its own. Normalisation must not be
batch normalisation. The local variant steps by plain gradient descent.
Not counted: what a device holds, and how long it draws, to follow the server's steps (`Stepper`), and the time of the
local variant's steps; peaks and clocks are of passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.executor import SGD, Adam
from fedhybrid.methods.averaging import AbstractAveraging, averaged_by_samples, tasks_for_cohort
from fedhybrid.methods.zeroth import (
    PARTS,
    PHASE,
    SCALARS,
    SEED,
    Stepper,
    begun,
    client_seed,
    copy_bytes,
    joined,
    kind_of,
    mask_bytes,
    masked,
    masked_names,
    masks_of,
    parts_of,
    passes_of_batch,
    phase_number,
    pruned,
    refuse_empty,
    round_seed,
    saliency_of,
    scheduled,
    shift_name,
    submodel_of,
    sums_bytes,
    trained_locally,
    uploaded_scalars,
    weights_seed,
    with_masks,
)
from fedhybrid.models.perturbed import layers_in_order, with_draw_order
from fedhybrid.protocols import ClientRuntime, Optimizer, RoundPlan, ServerState, Submodel, Transport
from fedhybrid.records import ClientTask, Update
from fedhybrid.tree import Tensors

__all__ = ["ForesightZo"]

_MASKS = ("foresight", "dense", "random", "magnitude", "snip", "synflow")
_RULES = ("adam", "sgd")
_BATCHES, _ROUND_SEED = "batches", "round_seed"  # options of training tasks
_WEIGHTS, _DIRECTIONS = "weights_seed", "directions_seed"  # of pruning tasks


@final
@dataclass(frozen=True, kw_only=True)
class ForesightZo(AbstractAveraging):
    """Clients run forward passes only, of a pruned network, and send K numbers a batch.

    Attributes:
        mask: "foresight" (from the neural tangent kernel), or to compare with "dense" (no mask), "random", "magnitude",
            "synflow" (all three at the server) and "snip" (gradients of clients on their data).
        density: Share of the weights of convolutions and linear layers that stays, of all layers together.
        saliency: Of "foresight": "zo" by forward passes alone, "bp" by gradients.
        prune_rounds: T_p, over which the density falls exponentially.
        prune_directions: Of "zo" saliency: directions of each client in each pruning round, as many numbers sent.
        prune_repeats: Of "bp" saliency and "snip": gradients that each client averages.
        prune_eps: Deviation of the weights' noise in the kernel's finite difference.
        prune_sigma: Deviation of the masks' noise in "zo" saliency.
        mask_seed: Of a "random" mask.
        allow_empty_layers: Whether a layer may be left without any weight, as one can of a residual network.
        variant: "scalars": the server makes gradient and step; "fedavg": clients step after each batch, and models are
            averaged.
        directions: K, for each batch.
        sigma: Length of the perturbation.
        difference: "forward" (K + 1 passes a batch) or "central" (2 K).
        clip: Largest entry of the gradient, which is scaled down as a whole; 0: no limit.
        server_rule: "adam" (betas 0.9 and 0.99) or "sgd", of "scalars".
        server_lr: Its learning rate; "fedavg" steps with the recipe's.
        weight_decay: Of the server's rule.
        ema: Share of the old average in the moving average of the weights, which is then what is tested; 0: none.
    """

    mask: str = "foresight"
    density: float = 0.1
    saliency: str = "zo"
    prune_rounds: int = 20
    prune_directions: int = 100
    prune_repeats: int = 1
    prune_eps: float = 0.01
    prune_sigma: float = 0.05
    mask_seed: int = 0
    allow_empty_layers: bool = False
    variant: str = "scalars"
    directions: int = 50
    sigma: float = 1e-3
    difference: str = "forward"
    clip: float = 0.3
    server_rule: str = "adam"
    server_lr: float = 0.01
    weight_decay: float = 5e-4
    ema: float = 0.0

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
            for name, known in (
                ("mask", _MASKS),
                ("saliency", ("zo", "bp")),
                ("variant", ("scalars", "fedavg")),
                ("difference", ("forward", "central")),
                ("server_rule", _RULES),
            )
            if getattr(self, name) not in known
        ]
        if not 0 < self.density <= 1:
            problems.append(f"density must be above 0 and at most 1, got {self.density}")
        for name in ("prune_rounds", "prune_directions", "prune_repeats", "directions"):
            if getattr(self, name) < 1:
                problems.append(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("prune_eps", "prune_sigma", "sigma", "server_lr"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                problems.append(f"{name} must be a positive number, got {getattr(self, name)}")
        for name in ("clip", "weight_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                problems.append(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            problems.append(f"ema must be at least 0 and below 1, got {self.ema}")
        if self.ema and self.variant == "fedavg":
            problems.append('ema belongs to variant = "scalars"; set ema = 0, or take that variant')
        if problems:
            raise ConfigError(problems)

    @property
    def stepper(self) -> Stepper:
        """The server's step."""
        adam = Adam(lr=self.server_lr, betas=(0.9, 0.99), weight_decay=self.weight_decay)
        sgd = SGD(lr=self.server_lr, weight_decay=self.weight_decay)
        rule = adam if self.server_rule == "adam" else sgd
        return Stepper(rule=rule, sigma=self.sigma, clip=self.clip, ema=self.ema)

    @property
    def plans(self) -> bool:
        """Each device runs the program of its budget: more at once, less at once, or operators in chunks."""
        return True

    @property
    def preparations(self) -> tuple[str, ...]:
        """The pruning rounds that clients have a part in."""
        rounds = {"foresight": self.prune_rounds, "snip": 1}.get(self.mask, 0)
        return tuple(f"{PHASE}{number}" for number in range(1, rounds + 1))

    def transport(self, version: int) -> Transport:
        """Tensors as they are: downloads are counted as exact numbers, which devices follow bit by bit."""
        return Transport()

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured one, by which per cent budgets are reckoned; what steps is the server's rule, or plain SGD.

        Raises:
            ConfigError: It holds state, but clients step by themselves.
        """
        if self.variant == "fedavg" and base.state_names:
            raise ConfigError(
                "method 'foresight-zo' with variant = \"fedavg\" steps in place, by SGD without momentum; found an "
                f"optimizer that holds {', '.join(base.state_names)}: take sgd with momentum 0"
            )
        return base

    def adapt(self, model: nn.Module, sample: Tensor) -> nn.Module:
        """The recipe's model with masks, and with the order in which noise is drawn for its tensors."""
        layers = layers_in_order(model, sample)
        if self.mask in ("foresight", "synflow") and not sample.is_floating_point():
            raise ConfigError(
                f"method 'foresight-zo' with mask = {self.mask!r} needs inputs that are numbers; these are "
                f"{str(sample.dtype).removeprefix('torch.')}: take a data set of images or signals, or another mask"
            )
        if self.mask != "dense":
            model = with_masks(
                model,
                sample,
                kind=self.mask,
                density=self.density,
                seed=self.mask_seed,
                allow_empty=self.allow_empty_layers,
            )
        return with_draw_order(model, layers)

    def menu(self, model: nn.Module) -> tuple[str, ...]:
        """One forward pass of the whole batch, or of a half, a quarter, an eighth of it."""
        return tuple(f"one-{parts}" for parts in PARTS)

    def submodel(self, whole: Submodel, name: str) -> Submodel:
        """The forward pass of that name; see `methods/zeroth/passes.py`."""
        return submodel_of(whole, name, eps=self.prune_eps) if name else whole

    def init(self, weights: Tensors) -> ServerState:
        """The initial global model, masked as far as there is a mask."""
        server = super().init(weights)
        return ServerState(weights=masked(server.weights), extra=begun(server.weights))

    def assign(self, server: ServerState, plan: RoundPlan) -> list[ClientTask]:
        """The weights and the round's directions to everyone; before that, the pruning round's."""
        if plan.phase != "train":
            return self._pruning_tasks(server, plan)
        current, seed = self.stepper.current(server.weights, server.extra), int(server.extra[SEED])
        made: dict[int, Tensors] = {}
        tasks = []
        for offered in tasks_for_cohort(server, plan):
            task = self._quickest(offered, plan)
            batches = plan.costs.steps(task.client, plan.work)
            if batches not in made:
                empty = torch.zeros(batches, self.directions)
                made[batches] = {**current, SCALARS: empty} if self.variant == "scalars" else dict(current)
            passes = passes_of_batch(self.directions, central=self.difference == "central", submodel=task.submodel)
            tasks.append(
                replace(
                    task,
                    work=replace(plan.work, steps=batches * passes, samples=None),
                    weights=made[batches],
                    sent=tuple(server.weights),
                    sent_bytes=self.stepper.download_bytes(
                        server.weights, server.extra, task.client, version=server.version
                    ),
                    options={_BATCHES: batches, _ROUND_SEED: round_seed(seed, server.version)},
                )
            )
        return tasks

    def _quickest(self, task: ClientTask, plan: RoundPlan) -> ClientTask:
        """With both passes of a central difference at once, where the client can hold that and it saves time."""
        if self.difference != "central" or task.submodel != "one-1":
            return task
        both, one = (plan.costs.quote(task.client, name) for name in ("pair-1", "one-1"))
        if both.fits and both.step_s < 2 * one.step_s:
            return replace(task, submodel="pair-1", plan=both.plan)
        return task

    def _pruning_tasks(self, server: ServerState, plan: RoundPlan) -> list[ClientTask]:
        kind = "snip" if self.mask == "snip" else {"zo": "ntk", "bp": "ntk-bp"}[self.saliency]
        weights, names = server.weights, masked_names(server.weights)
        repeats = self.prune_directions if kind == "ntk" else self.prune_repeats
        asked: Tensors = {SCALARS: torch.zeros(1, repeats)}
        if kind != "ntk":
            asked = {shift_name(name): torch.zeros_like(weights[name]) for name in names}
        given, phase, seed = {**weights, **asked}, phase_number(plan.phase), int(server.extra[SEED])
        redrawn = set(names) if kind != "snip" else set()
        sent = tuple(name for name in weights if name not in redrawn)
        # What is drawn anew is not sent, nor is what is masked.
        own_bytes = copy_bytes(weights, without=redrawn)
        beside_bytes = 0 if kind == "ntk" else sums_bytes(weights)
        tasks, needed_bytes = [], 0
        for task in tasks_for_cohort(server, plan):
            for name in (f"{kind}-{parts}" for parts in PARTS):
                quote = plan.costs.quote(task.client, name)
                needed_bytes = quote.peak_bytes + beside_bytes
                fits = quote.fits and needed_bytes <= plan.costs.budget_bytes(task.client)
                if fits:
                    break
            if not fits:
                continue
            steps = repeats * parts_of(name) * (2 if kind == "ntk" else 1)
            tasks.append(
                replace(
                    task,
                    submodel=name,
                    plan=quote.plan,
                    work=replace(plan.work, steps=steps, samples=None, lr=1.0),
                    weights=given,
                    sent=sent,
                    sent_bytes=own_bytes + (mask_bytes(weights) if phase > 1 else 0),
                    options={
                        _WEIGHTS: None if kind == "snip" else weights_seed(seed, phase),
                        _DIRECTIONS: client_seed(seed, phase, task.client),
                    },
                )
            )
        if plan.cohort and not tasks:
            raise ConfigError(
                f"no client that is online can hold the step {name!r} of pruning, which needs {needed_bytes:,} bytes: "
                'raise the budgets, or take mask = "foresight" with saliency = "zo", which needs the least'
            )
        return tasks

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        """Forward passes, and what came of them."""
        central = self.difference == "central"
        if kind_of(task.submodel) not in ("one", "pair"):
            return saliency_of(
                task,
                client,
                draws_weights=task.options[_WEIGHTS],
                seed=task.options[_DIRECTIONS],
                repeats=self.prune_directions if kind_of(task.submodel) == "ntk" else self.prune_repeats,
                sigma=self.prune_sigma,
            )
        batches = task.options[_BATCHES]
        if self.variant == "fedavg":
            return trained_locally(
                task,
                client,
                batches=batches,
                directions=self.directions,
                sigma=self.sigma,
                central=central,
                clip=self.clip,
            )
        return uploaded_scalars(
            task,
            client,
            seed=task.options[_ROUND_SEED],
            batches=batches,
            directions=self.directions,
            sigma=self.sigma,
            central=central,
        )

    def aggregate(self, server: ServerState, updates: Sequence[Update]) -> ServerState:
        """A pruning round's masks, or the step that the clients' scalars make (their models' mean, in "fedavg")."""
        if updates[0].kind != "train":
            done, rounds = phase_number(updates[0].kind), len(self.preparations)
            density = scheduled(self.density, done, rounds)
            after = pruned(server, updates, density=density, sigma=self.prune_sigma)
            if not self.allow_empty_layers:
                refuse_empty(masks_of(after.weights))
            return after
        stepper, clients = self.stepper, [update.client for update in updates]
        extra = stepper.seen(server.extra, clients, version=server.version)
        if self.variant == "fedavg":
            return ServerState(weights=averaged_by_samples(server, updates).weights, extra=extra)
        table = joined(updates, self.directions)
        weights, extra = stepper.step(server.weights, extra, table, version=server.version)
        return ServerState(weights=weights, extra=extra)
