"""The versions of what decides whether two sides understand each other."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

__all__ = ["library_versions"]


def library_versions() -> dict[str, str]:
    """Of what decides whether two sides understand each other."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for name in ("fedhybrid", "flwr"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found
