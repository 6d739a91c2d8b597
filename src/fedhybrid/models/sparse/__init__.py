"""Layers that hold only the weights that a mask keeps: their values, and where they stand.

A compact layer makes its dense weight when it needs it and lets go of it at once, forward and backward; what stays in
memory, gets a gradient and has optimizer state is the values alone.
"""

from __future__ import annotations

from fedhybrid.models.sparse.building import (
    MARK,
    compact_model,
    marked,
    marked_paths,
    sparse_paths,
    split_path,
)
from fedhybrid.models.sparse.layers import PATTERN_IDS, PLACES, VALUES, SparseConv2d, SparseLinear
from fedhybrid.models.sparse.layout import PATTERNS, SCHEMES, Layout

__all__ = [
    "MARK",
    "PATTERNS",
    "PATTERN_IDS",
    "PLACES",
    "SCHEMES",
    "VALUES",
    "Layout",
    "SparseConv2d",
    "SparseLinear",
    "compact_model",
    "marked",
    "marked_paths",
    "sparse_paths",
    "split_path",
]
