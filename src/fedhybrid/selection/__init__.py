"""Selection policies: who takes part in a round."""

from __future__ import annotations

from fedhybrid.protocols import Policy
from fedhybrid.selection.exclusion import Exclusion
from fedhybrid.selection.fedhybrid import FedHybridSelection
from fedhybrid.selection.uniform import Uniform

__all__ = ["POLICIES", "Exclusion", "FedHybridSelection", "Uniform"]

POLICIES: dict[str, type[Policy]] = {
    "exclusion": Exclusion,
    "fedhybrid": FedHybridSelection,
    "uniform": Uniform,
}
