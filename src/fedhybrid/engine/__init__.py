"""The federation at work: rounds on a virtual clock, plans per device, records, and going on after a stop."""

from __future__ import annotations

from fedhybrid.engine.claim import Claim, claim_folders
from fedhybrid.engine.faults import Faults, read_incidents
from fedhybrid.engine.federation import Federation, RunNames
from fedhybrid.engine.folder import RunFolder
from fedhybrid.engine.loop import run_federation
from fedhybrid.engine.plans import PlanBook
from fedhybrid.engine.progress import Progress, Quiet
from fedhybrid.engine.schedule import Evaluation, Schedule
from fedhybrid.engine.summary import process_resident_bytes

__all__ = [
    "Claim",
    "Evaluation",
    "Faults",
    "Federation",
    "PlanBook",
    "Progress",
    "Quiet",
    "RunFolder",
    "RunNames",
    "Schedule",
    "claim_folders",
    "process_resident_bytes",
    "read_incidents",
    "run_federation",
]
