"""Training under 256 KB: int8 networks, gradients scaled for them, and only what pays for its memory is trained.

Source: J. Lin, L. Zhu, W.-M. Chen, W.-C. Wang, C. Gan, S. Han, "On-Device Training Under 256KB Memory", NeurIPS 2022,
https://arxiv.org/abs/2206.15472
Follows: section 3.1, the really quantised graph and quantisation-aware scaling (g_W / sw^2, g_b / (sw sx)^2 for each
output channel); section 3.2, sparse update of biases, layers and input channels, the memory model of its code, and
contribution analysis as a function (`tiny/analysis.py`): a run does none, its recipe names schemes; section 3.3, a
backward pass made ahead of time, without what feeds frozen tensors alone, each update right after its gradient: the
engine's captured step is that.
Differs: the scaling is a part of the captured step, not of the optimizer, to the same numbers. The search is
RECONSTRUCTED (`tiny/search.py`), and so are the SRAM and flash that a device needs. The classifier is float32 and
always trained. All of the federated form is ours: scales and zero points are the server's and stay, each client trains
the first scheme that its budget holds and uploads what it trained, and each element is averaged, in steps of its
channel's grid, over those who sent it. `latent = "int8-stochastic"` is ours, too, and
so is that trained weights saturate at the ends of the grid, -127 and 127.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.methods.averaging import AbstractAveraging, averaged_by_samples, tasks_for_cohort
from fedhybrid.methods.local import train_locally
from fedhybrid.methods.tiny import (
    FLOAT,
    INTEGER,
    flash_bytes,
    for_device,
    for_server,
    is_scheme,
    parse_scheme,
    sram_bytes,
    submodel_of,
    trained_part,
)
from fedhybrid.models.quantised import Graph, LayerUpdate, QuantisedNet, quantise
from fedhybrid.protocols import ClientRuntime, Optimizer, RoundPlan, ServerState, Submodel
from fedhybrid.records import ClientTask, Update
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import Tensors

__all__ = ["TinyTraining"]


@final
@dataclass(frozen=True, kw_only=True)
class TinyTraining(AbstractAveraging):
    """Quantised networks of which each client trains as much as fits: see `methods/tiny/schemes.py` for the names.

    Attributes:
        schemes: Update schemes, the preferred first, with spaces between, such as "last-4 k6_w5_w3-8 biases-6 head".
            Empty: full, the last half of the convolutions, a quarter and so on, all biases, the classifier.
        qas: Scale gradients to the integer grid. Without it plain SGD hardly moves what is quantised.
        latent: How trained weights are stored: "fp32" keeps fractions of a step, "int8-stochastic" holds integers, each
            update rounded up or down at random. Here they are bfloat16 and uploaded so, two bytes each; a
            microcontroller, whose bytes `sram_bytes` is about, would hold int8.
        sram_bytes: Schemes that need more on a microcontroller for one sample (analytic) are not offered; 0: no limit.
            Needs an optimizer without state.
        flash_bytes: The same for model and program; 0: no limit.
        headroom: Ranges of activations are so many times what the calibration batch shows. Ours: scales never change,
            and training that moves activations beyond them stops there.
    """

    schemes: str = ""
    qas: bool = True
    latent: str = FLOAT
    sram_bytes: int = 0
    flash_bytes: int = 0
    headroom: float = 2.0

    def __post_init__(self) -> None:
        problems = []
        if self.latent not in (FLOAT, INTEGER):
            problems.append(f"latent must be {FLOAT!r} or {INTEGER!r}, got {self.latent!r}")
        if not (math.isfinite(self.headroom) and self.headroom >= 1):
            problems.append(f"headroom must be at least 1, got {self.headroom}")
        for name in ("sram_bytes", "flash_bytes"):
            if getattr(self, name) < 0:
                problems.append(f"{name} must be at least 0 (no limit), got {getattr(self, name)}")
        problems += [
            f"schemes: {name!r} must be full, head, last-N, biases-N, or such as k5_w3_w6-8"
            for name in self.schemes.split()
            if not is_scheme(name)
        ]
        if problems:
            raise ConfigError(problems)

    @property
    def plans(self) -> bool:
        """Each device runs the compiled program, which is a part of the method, planned for its budget if need be."""
        return True

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured one; integer parameters are rounded by the submodel's.

        Raises:
            ConfigError: It holds state, but weights are integers, or there is a limit of SRAM, which counts no state.
        """
        held = f"an optimizer without state, SGD without momentum; found one that holds {', '.join(base.state_names)}"
        problems = []
        if base.state_names and self.latent == INTEGER:
            problems.append(f"latent = {INTEGER!r} needs {held}; take that, or latent = {FLOAT!r}")
        if base.state_names and self.sram_bytes:
            problems.append(f"sram_bytes = {self.sram_bytes:,} needs {held}; take that, or sram_bytes = 0 (no limit)")
        if problems:
            raise ConfigError(problems)
        return base

    def adapt(self, model: nn.Module, sample: Tensor) -> nn.Module:
        """The model as a quantised network, calibrated on the sample."""
        return quantise(model, sample, qas=self.qas, headroom=self.headroom)

    def menu(self, model: nn.Module) -> tuple[str, ...]:
        """The schemes within the limits.

        Raises:
            ConfigError: A scheme is none of this network, or none is within the limits.
        """
        if not isinstance(model, QuantisedNet):  # before adapt() nothing can be held against the limits
            return tuple(self.schemes.split()) or ("full", "head")
        graph = model.graph
        names: list[str] = []
        problems: list[str] = []
        least: dict[str, int] = {}
        for name in self.schemes.split() or _usual(len(graph.convs)):
            try:
                updates = _updates(graph, name)
            except ConfigError as error:
                problems += error.problems
                continue
            needs = {
                "sram_bytes": sram_bytes(graph, updates, latent=self.latent),
                "flash_bytes": flash_bytes(graph, updates),
            }
            least = {limit: min(need, least.get(limit, need)) for limit, need in needs.items()}
            if all(need <= (getattr(self, limit) or need) for limit, need in needs.items()):
                names.append(name)
        if not names and not problems:
            found = " and ".join(f"{limit} {need:,} (limit {getattr(self, limit):,})" for limit, need in least.items())
            problems.append(
                f"no update scheme is within the limits: the least that one needs is {found}; take a smaller model, or "
                "add smaller schemes such as head"
            )
        if problems:
            raise ConfigError(problems)
        return tuple(names)

    def submodel(self, whole: Submodel, name: str) -> Submodel:
        """The network with what the scheme trains as parameters; "" is the whole network in float32."""
        return whole if not name else submodel_of(whole, name, integer=self.latent == INTEGER)

    def assign(self, server: ServerState, plan: RoundPlan) -> list[ClientTask]:
        """To each client the tensors of its scheme: what it does not train as int8."""
        made: dict[str, Tensors] = {"": server.weights}
        tasks = []
        for task in tasks_for_cohort(server, plan):
            if task.submodel not in made:
                seed = derive_seed(plan.run_seed, purpose="integers", round_index=plan.draw)
                integer = self.latent == INTEGER
                made[task.submodel] = for_device(server.weights, task.submodel, integer=integer, seed=seed)
            tasks.append(replace(task, weights=made[task.submodel]))
        return tasks

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        """Local epochs of ordinary training; what the scheme trains is sent."""
        update = train_locally(task, client)
        return replace(update, weights=trained_part(update.weights)) if task.submodel else update

    def aggregate(self, server: ServerState, updates: Sequence[Update]) -> ServerState:
        """Mean of each element over those who trained it, weighted by samples; of an update that holds more, such as
        scales or frozen weights, the rest is left aside.
        """
        whole = []
        for update in updates:
            weights, masks = for_server(trained_part(update.weights), server.weights)
            whole.append(replace(update, weights=weights, masks={**update.masks, **masks}))
        return averaged_by_samples(server, whole)


def _usual(layers: int) -> list[str]:
    """Schemes for any network, from everything to the classifier."""
    counts, count = [], layers
    while count > 1:
        count = count // 2
        counts.append(f"last-{count}")
    return ["full", *counts, f"biases-{layers}", "head"]


def _updates(graph: Graph, name: str) -> tuple[LayerUpdate, ...]:
    return parse_scheme(name, len(graph.convs)).updates([conv.channels_in for conv in graph.convs])
