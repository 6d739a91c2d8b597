"""What a chain keeps for a client from one update to the next: by tensor, what it lost of the earlier ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedhybrid.errors import ConfigError
from fedhybrid.tree import Tensors
from fedhybrid.updates.aggregate import not_finite
from fedhybrid.updates.base import FLOATS, Pieces
from fedhybrid.updates.lanes import Lanes, with_values_at

__all__ = ["STATE_PREFIX", "after_sending", "kept_errors"]

STATE_PREFIX = "updates/error/"  # then the tensor's name; other names in a client's state are somebody else's


def kept_errors(state: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Tensors:
    """The errors in a client's state, by the tensor's name.

    Raises:
        ConfigError: One is of another shape than the model's tensor; all at once.
    """
    kept = {name.removeprefix(STATE_PREFIX): t for name, t in state.items() if name.startswith(STATE_PREFIX)}
    problems = [
        f"the client's state {STATE_PREFIX + name!r} has shape {list(error.shape)}, the model's tensor "
        f"{list(reference[name].shape)}; start the client without state"
        for name, error in kept.items()
        if name in reference and reference[name].shape != error.shape
    ]
    if problems:
        raise ConfigError(problems)
    return kept


def after_sending(kept: Tensors, meant: Pieces, seen: Pieces, lanes: Lanes) -> Tensors:
    """The errors after an update; what it did not hold stays as it was.

    Where the update was not finite all stays, because then nobody could use it.

    Args:
        kept: The errors before.
        meant: What was to be sent, the errors before included.
        seen: What the receiver will have of it.
        lanes: Of the update.
    """
    lost = {name: p.values - seen[name].values for name, p in meant.items() if p.values.dtype in FLOATS}
    if not_finite(lost) is not None:
        return kept
    after = dict(kept)
    for name, tensor in lost.items():
        shape, inside = lanes.reference[name].shape, lanes.places[name]
        if inside is None:
            after[name] = tensor.view(shape)
        else:
            whole = kept.get(name, torch.zeros(shape, dtype=tensor.dtype))
            after[name] = with_values_at(whole, inside, tensor)
    return after
