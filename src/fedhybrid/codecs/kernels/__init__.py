"""Compiled kernels of the codecs: built at installation where a C++ compiler is, and optional everywhere."""

from fedhybrid.codecs.kernels.calls import (
    bits_decode,
    bits_encode,
    groups_decode,
    groups_encode,
    maps_decode,
    maps_encode,
    rows_decode,
    rows_encode,
    rows_range,
)
from fedhybrid.codecs.kernels.jobs import TYPES, Groups
from fedhybrid.codecs.kernels.library import available, use_level

__all__ = [
    "TYPES",
    "Groups",
    "available",
    "bits_decode",
    "bits_encode",
    "groups_decode",
    "groups_encode",
    "maps_decode",
    "maps_encode",
    "rows_decode",
    "rows_encode",
    "rows_range",
    "use_level",
]
