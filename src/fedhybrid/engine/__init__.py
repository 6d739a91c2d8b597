"""The federation at work: rounds on a virtual clock, plans per device, records, and going on after a stop.

Where to find what:

- a run from beginning to end: `loop` (the front door), `federation` (its parts), `world` (the same, at work), `rounds`
  and `merges` (the two schedules), `dispatch` (tasks out, records in), `schedule`, `stream` (classes task by task),
  `scoring`, `fairness`, `summary`, `progress`;
- who can be chosen, and what that costs: `candidates`, `budgets`, `plans`;
- a task on its device: `driver` (the order of events), `journey` (what befalls it), `walk` (its steps as memory moves),
  `faults`, `traffic` (bytes on the links), `states` (what a client keeps);
- the training itself: `runtime` (a client at the one model), `labour` (in this process), `crew` (in several processes),
  `evaluate`;
- files: `claim`, `folder`, `checkpoint`, `bundle` (tensors and JSON as bytes), `planfiles`, `plannames`, `files`;
- this process: `footprint`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedhybrid.lazy import lazily

if TYPE_CHECKING:
    from fedhybrid.engine.claim import Claim, claim_folders
    from fedhybrid.engine.faults import Faults, read_incidents
    from fedhybrid.engine.federation import Federation, RunNames
    from fedhybrid.engine.folder import RunFolder
    from fedhybrid.engine.footprint import process_resident_bytes
    from fedhybrid.engine.loop import run_federation
    from fedhybrid.engine.plans import PlanBook
    from fedhybrid.engine.progress import Progress, Quiet
    from fedhybrid.engine.schedule import Evaluation, Schedule
    from fedhybrid.engine.stream import Stream
    from fedhybrid.engine.world import Assemble, World, assemble
else:
    __getattr__ = lazily(
        __name__,
        {
            "Assemble": "world",
            "Claim": "claim",
            "Evaluation": "schedule",
            "Faults": "faults",
            "Federation": "federation",
            "PlanBook": "plans",
            "Progress": "progress",
            "Quiet": "progress",
            "RunFolder": "folder",
            "RunNames": "federation",
            "Schedule": "schedule",
            "Stream": "stream",
            "World": "world",
            "assemble": "world",
            "claim_folders": "claim",
            "process_resident_bytes": "footprint",
            "read_incidents": "faults",
            "run_federation": "loop",
        },
    )

__all__ = [
    "Assemble",
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
    "Stream",
    "World",
    "assemble",
    "claim_folders",
    "process_resident_bytes",
    "read_incidents",
    "run_federation",
]
