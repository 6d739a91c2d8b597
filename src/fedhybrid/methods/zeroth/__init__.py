"""The parts of training without gradients: noise from seeds, passes, masks and their saliency, the server's step.

Nothing here holds state: clients and server call the same functions of tensors and seeds, which is why scalars are all
that a client has to send.
"""

from __future__ import annotations

from fedhybrid.methods.zeroth.masks import (
    largest,
    masked,
    masked_names,
    pruned_layers,
    refuse_empty,
    scheduled,
    synflow,
    synflow_masks,
    with_masks,
)
from fedhybrid.methods.zeroth.noise import (
    MASK,
    SCALES,
    beside_gradient_bytes,
    direction_seed,
    drawn,
    estimated_gradient,
    mask_name,
    moved,
)
from fedhybrid.methods.zeroth.passes import PARTS, Passes, differences, kind_of, parts_of, submodel_of
from fedhybrid.methods.zeroth.pruning import (
    PHASE,
    client_seed,
    phase_number,
    pruned,
    saliency_of,
    sums_bytes,
    weights_seed,
)
from fedhybrid.methods.zeroth.saliency import rebuilt_saliency, redraw, shift_name
from fedhybrid.methods.zeroth.server import (
    SCALARS,
    SEED,
    Stepper,
    applied_clip,
    begun,
    copy_bytes,
    joined,
    mask_bytes,
    masks_of,
    round_seed,
)
from fedhybrid.methods.zeroth.training import (
    descend,
    own_room_bytes,
    passes_of_batch,
    trained_locally,
    uploaded_scalars,
)

__all__ = [
    "MASK",
    "PARTS",
    "PHASE",
    "SCALARS",
    "SCALES",
    "SEED",
    "Passes",
    "Stepper",
    "applied_clip",
    "begun",
    "beside_gradient_bytes",
    "client_seed",
    "copy_bytes",
    "descend",
    "differences",
    "direction_seed",
    "drawn",
    "estimated_gradient",
    "joined",
    "kind_of",
    "largest",
    "mask_bytes",
    "mask_name",
    "masked",
    "masked_names",
    "masks_of",
    "moved",
    "own_room_bytes",
    "parts_of",
    "passes_of_batch",
    "phase_number",
    "pruned",
    "pruned_layers",
    "rebuilt_saliency",
    "redraw",
    "refuse_empty",
    "round_seed",
    "saliency_of",
    "scheduled",
    "shift_name",
    "submodel_of",
    "sums_bytes",
    "synflow",
    "synflow_masks",
    "trained_locally",
    "uploaded_scalars",
    "weights_seed",
    "with_masks",
]
