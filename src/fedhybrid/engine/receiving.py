"""What the server makes of what a client sends: nothing that comes from outside is trusted."""

from __future__ import annotations

import math
from collections.abc import Callable

from fedhybrid.engine.journey import failure_of, figures_of
from fedhybrid.engine.traffic import Delivery, Traffic
from fedhybrid.errors import ConfigError
from fedhybrid.records import ClientTask, Failure, Update
from fedhybrid.updates import check_update, not_finite

__all__ = ["received"]


def received(
    traffic: Traffic, delivery: Delivery, task: ClientTask, *, spoil: Callable[[Update], Update] | None = None
) -> Update | Failure:
    """The update of a delivery, or why it cannot be used: "corrupt" or "non_finite".

    Args:
        traffic: Unpacks it.
        delivery: As it came.
        task: As the client received it.
        spoil: Damages the update on its way, where that is wanted.
    """
    sent = figures_of(delivery.update)
    try:
        update = traffic.unpacked(delivery, task)
    except ConfigError as error:
        return failure_of(task, "corrupt", str(error), sent)
    if spoil is not None and update.weights:
        update = spoil(update)
    problem = check_update(update.weights, update.masks, task.weights) if update.weights else None
    if not update.weights and task.kind == "train":
        problem = "it holds no tensors"
    if problem is not None:
        return failure_of(task, "corrupt", problem, sent)
    bad = not_finite(update.weights)
    if bad is not None or not math.isfinite(update.loss_mean + update.squared_loss_sum):
        where = "the loss" if bad is None else bad
        return failure_of(task, "non_finite", f"{where} became infinite or NaN; a lower train.lr may help", sent)
    return update
