"""What the strategy knows of each node: what it said, and how much of its memory is still believed."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedhybrid.devices import DeviceProfile

__all__ = ["FALL_RATIO", "REST_ROUNDS", "Member"]

FALL_RATIO = 0.75
REST_ROUNDS = 5


@dataclass(kw_only=True)
class Member:
    """A node.

    A task that ends with an error or with no reply at all may have been killed for its memory. So what is trusted to be
    there falls to 0.75 of what that task needed, and the next plan is smaller; where the smallest plan is not reached
    yet, it is tried before the node is left out. After five completed tasks, or five rounds of sitting out, a fall is
    taken back.

    Attributes:
        node_id: Flower's.
        number: Ours; policies count clients from 0.
        device: Prices its operators.
        reported_bytes: Its budget, as it said.
        trusted_bytes: What is planned for.
        num_examples: Training samples; None where it did not say.
        planned: Whether its app takes plans.
        note: Why not, or what is odd.
        before: What was trusted before each fall that has not been taken back.
        quiet: Completed tasks or rounds of sitting out since the last change.
    """

    node_id: int
    number: int
    device: DeviceProfile
    reported_bytes: int
    trusted_bytes: int
    num_examples: int | None
    planned: bool
    note: str = ""
    before: list[int] = field(default_factory=list)
    quiet: int = 0

    def failed(self, needed_bytes: int, least_bytes: int) -> None:
        """A task did not come back.

        Args:
            needed_bytes: What its plan needs.
            least_bytes: What the smallest plan needs.
        """
        self.before.append(self.trusted_bytes)
        fallen_bytes = int(FALL_RATIO * min(self.trusted_bytes, needed_bytes))
        above_least = needed_bytes > least_bytes
        self.trusted_bytes = max(fallen_bytes, least_bytes) if above_least else fallen_bytes
        self.quiet = 0

    def rested(self) -> None:
        """A task came back, or a round went by without one for which no plan fits."""
        self.quiet += 1
        if self.before and self.quiet >= REST_ROUNDS:
            self.trusted_bytes = self.before.pop()
            self.quiet = 0
