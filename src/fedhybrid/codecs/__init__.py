"""Codecs: tensors in fewer bytes between forward and backward pass."""

from collections.abc import Callable

from fedhybrid.codecs.affine import GroupAffine, affine_4, affine_8
from fedhybrid.codecs.base import Codec, CodecState, empty_dense, flat_view
from fedhybrid.codecs.bits import BitMask

__all__ = ["CODECS", "BitMask", "Codec", "CodecState", "GroupAffine", "empty_dense", "flat_view"]

# Each row makes a codec; those that lose something take `gates=(low, high)`.
CODECS: dict[str, Callable[..., Codec]] = {
    "affine-4": affine_4,
    "affine-8": affine_8,
    "bits": BitMask,
}
