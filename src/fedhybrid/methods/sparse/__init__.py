"""The parts of training with sparse weights: masks, their schedule, which samples are forgotten, what a server keeps.

Masks, schedule and forgetting are functions of tensors and seeds: a server that owns a mask calls them, a client that
repeats the server's last change does, and so may anybody's training loop on one machine (`fedhybrid.models.sparse` has
the layers).
"""

from __future__ import annotations

from fedhybrid.methods.sparse.forgetting import History, never_seen, remembered, seen
from fedhybrid.methods.sparse.ledger import (
    compact_weights,
    dense_weights,
    layouts_of,
    mask_of,
    mutated,
    received_masks,
    started,
)
from fedhybrid.methods.sparse.masks import (
    Mask,
    grown,
    initial_mask,
    packed_bits,
    random_mask,
    survivors,
    unit_scores,
    unpacked_bits,
)
from fedhybrid.methods.sparse.rounds import (
    SAMPLES_KEPT,
    SLOPES,
    ClientFacts,
    noted,
    spread_out,
    task_weights,
    travelling,
)
from fedhybrid.methods.sparse.schedule import VARIANTS, Phase, Schedule, phases
from fedhybrid.methods.sparse.watching import WatchedClient, loss_and_correctness

__all__ = [
    "SAMPLES_KEPT",
    "SLOPES",
    "VARIANTS",
    "ClientFacts",
    "History",
    "Mask",
    "Phase",
    "Schedule",
    "WatchedClient",
    "compact_weights",
    "dense_weights",
    "grown",
    "initial_mask",
    "layouts_of",
    "loss_and_correctness",
    "mask_of",
    "mutated",
    "never_seen",
    "noted",
    "packed_bits",
    "phases",
    "random_mask",
    "received_masks",
    "remembered",
    "seen",
    "spread_out",
    "started",
    "survivors",
    "task_weights",
    "travelling",
    "unit_scores",
    "unpacked_bits",
]
