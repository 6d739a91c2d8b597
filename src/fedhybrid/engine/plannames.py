"""What plans are called and what that tells, apart from whatever makes them: who reads records needs no planner."""

from __future__ import annotations

__all__ = ["OURS", "SMALLEST", "bucket_name", "is_stand_in", "plan_name", "submodel_of"]

_AT = "@"  # between a plan's own name and that of its submodel
SMALLEST = "smallest"  # ends the name of a device's smallest plan
OURS = "auto"  # the solver that is asked where another finds nothing; ends the names of its plans then


def plan_name(device: str, which: str, submodel: str = "") -> str:
    """What a device's plan for a submodel is called; the whole model has no name.

    >>> plan_name("laptop", "60MiB"), plan_name("laptop", "60MiB", "cut-3")
    ('laptop-60MiB', 'laptop-60MiB@cut-3')
    """
    return f"{device}-{which}" + (f"{_AT}{submodel}" if submodel else "")


def submodel_of(plan: str) -> str:
    """The submodel that a plan is for, by the plan's name.

    >>> submodel_of("laptop-60MiB"), submodel_of("laptop-60MiB@cut-3")
    ('', 'cut-3')
    """
    return plan.partition(_AT)[2]


def bucket_name(rounded_bytes: int) -> str:
    """The bucket in MiB; different buckets have different names.

    >>> bucket_name(9961472), bucket_name(1024 * 1025)
    ('9.5MiB', '1.001MiB')
    """
    return f"{rounded_bytes / 2**20:.4f}".rstrip("0").rstrip(".") + "MiB"


def is_stand_in(plan: str) -> bool:
    """Whether the solver that was asked for found nothing, so that a plan of this name stands in.

    >>> is_stand_in("laptop-60MiB-auto"), is_stand_in("laptop-smallest@cut-3"), is_stand_in("laptop-60MiB")
    (True, True, False)
    """
    return plan.partition(_AT)[0].endswith((f"-{OURS}", f"-{SMALLEST}"))
