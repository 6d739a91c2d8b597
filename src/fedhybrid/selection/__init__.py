"""Selection policies: who takes part in a round."""

from __future__ import annotations

from fedhybrid.protocols import Policy
from fedhybrid.selection.exclusion import Exclusion
from fedhybrid.selection.fedhybrid import FedHybridSelection
from fedhybrid.selection.first_come import FirstCome
from fedhybrid.selection.oort import Oort
from fedhybrid.selection.planned_utility import PlannedUtility
from fedhybrid.selection.power_of_choice import PowerOfChoice
from fedhybrid.selection.round_robin import RoundRobin
from fedhybrid.selection.smartsplit import SmartSplitSelection
from fedhybrid.selection.uniform import Uniform

__all__ = [
    "POLICIES",
    "Exclusion",
    "FedHybridSelection",
    "FirstCome",
    "Oort",
    "PlannedUtility",
    "PowerOfChoice",
    "RoundRobin",
    "SmartSplitSelection",
    "Uniform",
]

POLICIES: dict[str, type[Policy]] = {
    "exclusion": Exclusion,
    "fedhybrid": FedHybridSelection,
    "first-come": FirstCome,
    "oort": Oort,
    "planned-utility": PlannedUtility,
    "power-of-choice": PowerOfChoice,
    "round-robin": RoundRobin,
    "smartsplit": SmartSplitSelection,
    "uniform": Uniform,
}
