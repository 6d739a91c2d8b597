"""`FedHybridStrategy`: Flower's FedAvg, with a plan for each client and a choice among those that can hold theirs.

    strategy = FedHybridStrategy(Net(), loss_fn, example_batch, fh.SGD(lr=0.05), policy="fedhybrid", fraction_train=0.5)
    strategy.start(grid, initial_arrays, num_rounds=20)

Who takes part in a round:
- A node that has not been seen is asked for its memory and device ("query.fedhybrid", see `client_side.answer_query`).
  One that does not reply, or is gone, sits the round out and is asked again, after no reply in five rounds.
- A node that replies with an error, or with something else, runs an app that knows nothing of this: it gets no plan,
  and is trusted to hold the unplanned step on the assumed device until a task of it fails.
- A node for which no plan fits is left out; `history` says why.
- Among the others the policy chooses, as many as FedAvg would train.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedhybrid.devices import DeviceProfile, load_profile
from fedhybrid.errors import ConfigError
from fedhybrid.executor import LOSS_FREE, PlanOptions
from fedhybrid.integrations.flower.strategy.capabilities import RECORD
from fedhybrid.integrations.flower.strategy.client_side import MEASURED_PEAK, PLAN_KEY, SQUARED_LOSS
from fedhybrid.integrations.flower.strategy.members import Member
from fedhybrid.integrations.flower.strategy.offers import Offer, Offers
from fedhybrid.integrations.flower.strategy.register import Register
from fedhybrid.protocols import Optimizer, Policy
from fedhybrid.records import COMPLETED, Candidates, Outcome
from fedhybrid.registry import lookup
from fedhybrid.selection import POLICIES

__all__ = ["FedHybridStrategy"]

_log = logging.getLogger("flwr")
_LARGEST_LOSS = 1e150  # so that its square is a number
_CONNECT_POLL_S = 1.0  # as Flower's own strategies wait for nodes


class FedHybridStrategy(FedAvg):
    """FedAvg with memory-aware selection and a plan for each client.

    Attributes:
        history: A dictionary a round, nodes by Flower's numbers: `round`, `cohort`, `plans` (name of each client's;
            None without), `budget_bytes`, `planned_peak_bytes`, `measured_peak_bytes` (where the reply says it, see
            `step_metrics`), `failures` (node: why), `left_out` (node: why), `without_plan` (node: why).
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Any],
        example_batch: Any,
        optimizer: Optimizer,
        *,
        policy: str | Policy = "fedhybrid",
        actions: Sequence[str] = LOSS_FREE,
        max_gradient_error: float = 0.0,
        assumed_device: str | DeviceProfile = "raspberry-pi-4",
        local_epochs: int = 1,
        loss_key: str = "train_loss",
        query_timeout_s: float = 60.0,
        seed: int = 0,
        **fedavg: Any,
    ) -> None:
        """Captures the step.

        Args:
            model: As clients train it, in their mode (train or eval); it stays as it is.
            loss_fn: The clients'.
            example_batch: Of the clients' shapes; its values do not matter.
            optimizer: The clients'.
            policy: A row of `selection.POLICIES`, or one of one's own.
            actions: What plans may do, as of `fh.compile_step`.
            max_gradient_error: As there.
            assumed_device: Stands for devices that do not say what they are; prices seconds, not bytes.
            local_epochs: How often a client goes through its data, for predicted times.
            loss_key: The mean loss among the metrics of a client's reply, for policies that go by losses.
            query_timeout_s: How long to wait for nodes that have not been seen.
            seed: Of the selection.
            **fedavg: Options of `flwr.serverapp.strategy.FedAvg`.

        Raises:
            CaptureError: The model does not trace.
            ConfigError: An option that is none.
        """
        super().__init__(**fedavg)
        device = assumed_device if isinstance(assumed_device, DeviceProfile) else load_profile(assumed_device)
        self.policy: Policy = lookup("policy", POLICIES, policy)() if isinstance(policy, str) else policy
        planning = PlanOptions(actions=actions, max_gradient_error=max_gradient_error)
        self._offers = Offers(model, loss_fn, example_batch, optimizer, device=device, planning=planning)
        self._register = Register(self._offers, query_timeout_s=query_timeout_s)
        self._batch_size = _batch_size(example_batch)
        self._local_epochs, self._loss_key, self._seed = local_epochs, loss_key, seed
        self._state = self.policy.init()
        self._sent: dict[int, Message] = {}  # to each node of the cohort
        self._running: dict[int, Offer] = {}
        self.history: list[dict[str, Any]] = []

    def summary(self) -> None:
        """Logs the settings."""
        super().summary()
        _log.info("\t└──> FedHybrid: policy %s", type(self.policy).__name__)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each client of the cohort, with its own plan."""
        self._sent, self._running = {}, {}
        if self.fraction_train == 0.0:
            return []
        node_ids = self._connected(grid)
        self._register.ask(grid, node_ids)
        offers: dict[int, Offer] = {}
        left_out: dict[int, str] = {}
        for node_id in node_ids:
            member = self._register.members.get(node_id)
            offer = self._register.offer(member) if member else self._register.silent[node_id]
            if isinstance(offer, str):
                left_out[node_id] = offer
                if member:
                    member.rested()
            else:
                offers[node_id] = offer
        count = max(int(len(node_ids) * self.fraction_train), self.min_train_nodes)
        cohort = self._chosen(offers, count, server_round, arrays)
        config["server-round"] = server_round
        for node_id in cohort:
            offer = self._running[node_id] = offers[node_id]
            own = ConfigRecord(dict(config))
            if offer.plan is not None:
                own[PLAN_KEY] = offer.plan.to_json()
            content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: own})
            self._sent[node_id] = Message(content, node_id, MessageType.TRAIN)
        self._note(server_round, cohort, left_out)
        return list(self._sent.values())

    def _connected(self, grid: Grid) -> list[int]:
        """All nodes, as soon as there are enough."""
        needed = max(self.min_available_nodes, self.min_train_nodes)
        while len(node_ids := sorted(grid.get_node_ids())) < needed:
            _log.info("Waiting for nodes to connect: %d connected (minimum required: %d).", len(node_ids), needed)
            time.sleep(_CONNECT_POLL_S)
        return node_ids

    def _chosen(self, offers: Mapping[int, Offer], count: int, server_round: int, arrays: ArrayRecord) -> list[int]:
        """The policy's choice among those that can hold their step."""
        if not offers:
            return []
        members = sorted((self._register.members[node_id] for node_id in offers), key=lambda member: member.number)
        view = self._candidates(members, offers, sum(len(array.data) for array in arrays.values()))
        chosen, self._state = self.policy.select(
            view, count, self._state, round_index=server_round - 1, seed=self._seed
        )
        numbers = set(chosen.tolist())
        return [member.node_id for member in members if member.number in numbers]

    def _candidates(self, members: Sequence[Member], offers: Mapping[int, Offer], model_bytes: int) -> Candidates:
        known = [member.num_examples for member in members if member.num_examples is not None]
        usual = int(np.median(known)) if known else self._batch_size
        samples = np.array([usual if m.num_examples is None else m.num_examples for m in members], dtype=np.int64)
        step_s = np.array([offers[member.node_id].step_s for member in members])
        steps = np.ceil(samples / self._batch_size) * self._local_epochs
        links = [(member.device.uplink_bytes_per_s, member.device.downlink_bytes_per_s) for member in members]
        return Candidates(
            client=np.array([member.number for member in members], dtype=np.int64),
            tier=np.array([self._offers.kind(member.device) for member in members], dtype=np.int64),
            budget_bytes=np.array([member.trusted_bytes for member in members], dtype=np.int64),
            num_samples=samples,
            label_counts=np.zeros((len(members), 0), dtype=np.int64),
            unplanned_bytes=self._offers.unplanned_bytes,
            smallest_bytes=self._offers.smallest_bytes,
            step_s=step_s,
            kernel_s=np.array([self._offers.kernel_s(member.device) for member in members]),
            round_s=steps * step_s + model_bytes * np.array([1 / up + 1 / down for up, down in links]),
        )

    def _note(self, server_round: int, cohort: Sequence[int], left_out: Mapping[int, str]) -> None:
        members = self._register.members
        self.history.append(
            {
                "round": server_round,
                "cohort": list(cohort),
                "plans": {node_id: self._running[node_id].name for node_id in cohort},
                "budget_bytes": {node_id: members[node_id].trusted_bytes for node_id in cohort},
                "planned_peak_bytes": {node_id: self._running[node_id].peak_bytes for node_id in cohort},
                "measured_peak_bytes": {},
                "failures": {},
                "left_out": dict(left_out),
                "without_plan": {n: members[n].note for n in cohort if not members[n].planned},
            }
        )
        for node_id, why in left_out.items():
            _log.info("FedHybrid: node %d is left out: %s", node_id, why)
        _log.info("FedHybrid: %d clients train, %d are left out", len(cohort), len(left_out))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """FedAvg's averages; the policy learns what came, and clients from which nothing came are trusted less."""
        replies = list(replies)
        asked = {message.metadata.message_id: node_id for node_id, message in self._sent.items()}
        # The word about a node that is gone is the server's own.
        came = {asked.get(r.metadata.reply_to_message_id, r.metadata.src_node_id): r for r in replies}
        outcomes = [self._outcome(node_id, came.get(node_id), server_round) for node_id in self._sent]
        if outcomes:
            self._state = self.policy.observe(outcomes, self._state)
        return super().aggregate_train(server_round, replies)

    def _outcome(self, node_id: int, reply: Message | None, server_round: int) -> Outcome:
        """What the policy learns of a task, after the member and the history have."""
        member, offer, told = self._register.members[node_id], self._running[node_id], self.history[-1]
        loss_square: float | None = None
        duration_s = 0.0
        if reply is not None:
            took_s = reply.metadata.created_at - self._sent[node_id].metadata.created_at  # by the node's own word
            duration_s = max(0.0, took_s) if math.isfinite(took_s) else 0.0
        completed = reply is not None and reply.has_content()
        if reply is not None and completed:
            member.rested()
            own: Mapping[str, Any] = reply.content.config_records.get(RECORD, {})
            if isinstance(measured := own.get(MEASURED_PEAK), int):
                told["measured_peak_bytes"][node_id] = measured
            loss_square = _squared_loss(own.get(SQUARED_LOSS), reply.content, self._loss_key)
        else:
            told["failures"][node_id] = "no reply" if reply is None else str(reply.error.reason)
            least_bytes = self._offers.least_bytes(member.device, planned=member.planned)
            member.failed(offer.peak_bytes, least_bytes)
        return Outcome(
            client=member.number,
            round_index=server_round - 1,
            squared_loss_mean=loss_square,
            num_samples=member.num_examples or 0,
            duration_s=duration_s,
            kind=COMPLETED if completed else "time_out" if reply is None else "crash",
        )


def _squared_loss(told: Any, content: RecordDict, loss_key: str) -> float | None:
    """As the client says, else the square of its mean loss; None where it says neither."""
    if isinstance(told, float) and 0 <= told < math.inf:
        return told
    for metrics in content.metric_records.values():
        loss = metrics.get(loss_key)
        if isinstance(loss, (int, float)) and abs(loss) < _LARGEST_LOSS:
            return float(loss) ** 2
    return None


def _batch_size(example_batch: Any) -> int:
    """Samples of a batch: the first extent of its first tensor."""
    tensors = list(example_batch.values()) if isinstance(example_batch, dict) else list(example_batch)
    if not tensors or not getattr(tensors[0], "ndim", 0):
        raise ConfigError("example_batch: needs (x, y) or a dictionary of tensors with a batch dimension, found none")
    return int(tensors[0].shape[0])
