"""A participation floor: every tier is owed a share of the places, in relation to how many fit clients it has.

A ledger as JSON lists, one number for each tier:

- `owed`: places that the tier should have had and did not. Each selection adds `floor_ratio` times the tier's share of
  the fit clients times the cohort's size; each place that the tier gets, for whatever reason, takes one off.
- `lost`: places whose task then failed. They are owed again, but a selection moves no more of them into `owed` than it
  adds anyway, so that a tier whose devices always fail costs at most twice its floor.
- `out`: pairs of client and tier, for tasks that have not ended.

What is owed is forgotten beyond `window_rounds` selections' worth downwards and twice that upwards (but never below one
place): a tier that was rich long ago is not starved for it, one that was away does not take all places when it is back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedhybrid.protocols import PolicyState
from fedhybrid.records import COMPLETED, FloatArray, IntArray, Outcome

__all__ = ["ParticipationFloor", "empty_floor"]


def empty_floor() -> PolicyState:
    """Nothing owed."""
    return {"owed": [], "lost": [], "out": []}


@dataclass(frozen=True, kw_only=True)
class ParticipationFloor:
    """The rules of the ledger.

    Attributes:
        floor_ratio: Of a tier's share of the fit clients: the share of places that it is owed.
        burst_ratio: A tier is paid when what it is owed makes up this share of a cohort, or when it has waited for
            `window_rounds`; whoever takes no longer is paid with it, since the round is as long anyway.
        window_rounds: See the module's text.
    """

    floor_ratio: float
    burst_ratio: float
    window_rounds: int

    def places(
        self, state: PolicyState, tiers: IntArray, round_s: FloatArray, count: int
    ) -> tuple[IntArray, PolicyState]:
        """How many of `count` places go to each tier now, and the ledger with this selection's claims.

        Args:
            state: The ledger.
            tiers: Tier of each fit client.
            round_s: How long its task takes.
            count: Places; at most as many as there are fit clients.
        """
        out = np.asarray([tier for _, tier in state["out"]], dtype=np.int64)
        length = max(len(state["owed"]), int(tiers.max(initial=-1)) + 1)
        here = np.bincount(tiers, minlength=length)
        # Clients with a task are fit too; where many are out, slow tiers have more of them there.
        fit = here + np.bincount(out, minlength=length)
        claim = self.floor_ratio * count * fit / max(int(fit.sum()), 1)
        bound = np.maximum(self.window_rounds * claim, 1.0)
        lost = _padded(state["lost"], length)
        again = np.minimum(lost, claim)
        owed = np.clip(_padded(state["owed"], length) + claim + again, -bound, 2 * bound)
        ledger = state | {"owed": owed.tolist(), "lost": np.minimum(lost - again, bound).tolist()}
        due = np.minimum(np.floor(np.maximum(owed + 1e-9, 0.0)), here).astype(np.int64)
        places = np.zeros(length, dtype=np.int64)
        called = (due >= max(1, int(self.burst_ratio * count))) | ((owed >= bound) & (due > 0))
        if called.any():
            tier_s = np.bincount(tiers, round_s, minlength=length) / np.maximum(here, 1)
            paid = np.flatnonzero((due > 0) & (tier_s <= tier_s[called].max()))
            # Slow ones first: their rounds are the rare ones.
            for tier in paid[np.lexsort((-owed[paid], -tier_s[paid]))]:
                places[tier] = min(due[tier], count - int(places.sum()))
        return places, ledger

    def chosen(self, state: PolicyState, clients: IntArray, tiers: IntArray) -> PolicyState:
        """The ledger after these clients were given their places; `tiers` are theirs."""
        owed = np.asarray(state["owed"]) - np.bincount(tiers, minlength=len(state["owed"]))
        out = dict(state["out"]) | dict(zip(clients.tolist(), tiers.tolist(), strict=True))
        return state | {"owed": owed.tolist(), "out": [list(pair) for pair in sorted(out.items())]}

    @staticmethod
    def observed(state: PolicyState, outcomes: Sequence[Outcome]) -> PolicyState:
        """The ledger after these tasks ended."""
        out, lost = dict(state["out"]), list(state["lost"])
        for outcome in outcomes:
            tier = out.pop(outcome.client, None)
            if tier is not None and outcome.kind != COMPLETED:
                lost[tier] += 1.0
        return state | {"lost": lost, "out": [list(pair) for pair in out.items()]}


def _padded(values: Sequence[float], length: int) -> FloatArray:
    padded = np.zeros(length)
    padded[: len(values)] = values
    return padded
