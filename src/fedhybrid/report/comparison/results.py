"""The numbers of a comparison as plain data: what each variant came to in each cell, beside the cell's reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedhybrid.report.comparison.statistics import Estimate
from fedhybrid.report.comparison.timing import Beside, Reached

__all__ = ["CellResult", "TierResult", "VariantResult"]


@dataclass(frozen=True, kw_only=True)
class TierResult:
    """One budget tier, means over seeds: devices, how many completed a task, how many tasks, the final accuracy there.

    The accuracy is that of the final model on data like that of the tier's devices.
    """

    clients: float | None
    reached: float
    tasks: float
    accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class VariantResult:
    """One variant in one cell.

    Attributes:
        method: Its method.
        policy: Its selection policy.
        seeds: Of its finished runs.
        final: Accuracy at the end.
        best: The best accuracy of each run.
        late: Mean accuracy of each run's last five tests (of all, where there are fewer): a single test swings more.
        difference: Final accuracy minus the reference's with the same seed; None for the reference.
        short: Final accuracy minus the oracle's with the same seed; None for the oracle, and where there is none.
        at_reference_end: Accuracy of the last test before the reference's run with the same seed was over; None where
            a run had no test by then.
        beside: Times to the targets beside the reference's; None for the reference.
        oracle: The same beside the oracle's.
        targets: Times to the cell's targets, in their order.
        reference_best: Time to the best accuracy of the reference.
        virtual_time_s: The clock at the end, mean.
        tiers: Participation and accuracy by tier.
        worst_tier: Accuracy on data like that of the tier that the final model serves worst.
        worst_tenth: On data like that of the tenth of devices that it serves worst.
        bytes_up: Sent by devices, mean.
        bytes_down: Sent to devices, mean.
        energy_j: Of all devices above idle, mean; None where some profile has no figures.
        failed: Training tasks that failed, all seeds.
        measured: Tasks whose peak was measured, all seeds.
        over_budget: Those above what the device had promised.
        short_steps: Steps during which a device had less memory left than they needed, all seeds.
        plan_ratio: Seconds of a planned step / of the unplanned one on the same device, as planned; mean over the steps
            of tasks whose plan changes the step; None where there are none.
        tier_plan_ratios: The same for each tier whose plans change the step. Variants that serve different devices can
            only be compared by these.
        stand_in_tiers: Tiers in which the solver that was asked for found no plan, so that another one stood in.
        peak_ratio: The largest measured peak / budget of any task.
    """

    method: str
    policy: str
    seeds: tuple[int, ...]
    final: Estimate
    best: Estimate
    late: Estimate
    difference: Estimate | None
    short: Estimate | None
    at_reference_end: Estimate | None
    beside: Beside | None
    oracle: Beside | None
    targets: tuple[Reached, ...]
    reference_best: Reached | None
    virtual_time_s: float
    tiers: Mapping[str, TierResult]
    worst_tier: Estimate | None
    worst_tenth: Estimate | None
    bytes_up: float
    bytes_down: float
    energy_j: float | None
    failed: int
    measured: int
    over_budget: int
    short_steps: int
    plan_ratio: float | None
    tier_plan_ratios: Mapping[str, float]
    stand_in_tiers: tuple[str, ...]
    peak_ratio: float | None


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """One cell; variants without a finished run are left out.

    Attributes:
        label: The cell's.
        seeds: That were asked for.
        targets: Ascending.
        unreached: How many of them no ranked variant reached; they give no rank.
        reference: The variant with which the others are compared, if it has finished runs.
        tiers: The smallest budget first.
        missing: Runs that are not finished, of variants that have such.
        variants: The numbers of each.
    """

    label: str
    seeds: tuple[int, ...]
    targets: tuple[float, ...]
    unreached: int
    reference: str | None
    tiers: tuple[str, ...]
    missing: Mapping[str, int]
    variants: Mapping[str, VariantResult]
