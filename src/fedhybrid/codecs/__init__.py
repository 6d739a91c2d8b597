"""Codecs: tensors in fewer bytes between forward and backward pass."""

from collections.abc import Callable

from fedhybrid.codecs.affine import GroupAffine, affine_2, affine_4, affine_8
from fedhybrid.codecs.base import Codec, CodecState, empty_dense, flat_view
from fedhybrid.codecs.bf16 import bf16
from fedhybrid.codecs.bits import BitMask
from fedhybrid.codecs.bound import BoundCodec
from fedhybrid.codecs.channel_mix import channel_mix
from fedhybrid.codecs.division import division
from fedhybrid.codecs.identity import Identity
from fedhybrid.codecs.mesa import mesa
from fedhybrid.codecs.narrow import NarrowIntegers
from fedhybrid.codecs.sparse import sparse

__all__ = ["CODECS", "BitMask", "BoundCodec", "Codec", "CodecState", "GroupAffine", "empty_dense", "flat_view"]

# Each row makes a codec; those that lose something take `gates=(low, high)`.
CODECS: dict[str, Callable[..., Codec]] = {
    "affine-2": affine_2,
    "affine-4": affine_4,
    "affine-8": affine_8,
    "bf16": bf16,
    "bits": BitMask,
    "channel-mix": channel_mix,
    "division": division,
    "identity": Identity,
    "mesa": mesa,
    "narrow": NarrowIntegers,
    "sparse": sparse,
}
