"""Finds the compiled kernels and loads them with ctypes, which lets go of Python's lock while they run.

The environment variable FEDHYBRID_KERNELS=off makes every codec use torch's own operators, as where no compiler was
there at installation.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from functools import cache
from pathlib import Path

import torch

from fedhybrid.errors import ConfigError

__all__ = ["available", "call", "use_level"]

# The two dots keep Python from taking it for a module.
_FILE = Path(__file__).with_name("kernels.native.so")
_LAYOUT = 2  # of the structures in jobs.hpp; raised with every change of them
_SWITCH = "FEDHYBRID_KERNELS"
_CHOICES = ("on", "off")


def available() -> bool:
    """Whether the compiled kernels are there, and not switched off by FEDHYBRID_KERNELS=off.

    Raises:
        ConfigError: FEDHYBRID_KERNELS is neither "on" nor "off".
    """
    choice = os.environ.get(_SWITCH) or "on"
    if choice not in _CHOICES:
        raise ConfigError([f"{_SWITCH} must be one of {', '.join(_CHOICES)}, got {choice!r}"])
    return choice == "on" and _library() is not None


def call(name: str, job: ctypes.Structure) -> bool:
    """Runs one kernel on as many threads as torch uses; whether all was well.

    Args:
        name: Without the prefix, for example "groups_encode".
        job: What it works on.
    """
    library = _library()
    assert library is not None, "ask available() first"
    return bool(library[f"fedhybrid_{name}"](ctypes.byref(job), torch.get_num_threads()))


def use_level(name: str) -> bool:
    """Makes the kernels use "base", "avx2" or "avx512", or the best with "": every level writes the same bytes.

    Returns:
        Whether this processor has the level; if not nothing changes.
    """
    library = _library()
    return library is not None and bool(library["fedhybrid_use_level"](name.encode()))


@cache
def _library() -> ctypes.CDLL | None:
    if not _FILE.exists():
        return None
    try:
        library = ctypes.CDLL(str(_FILE))  # torch is loaded, so that both share its threads
        layout = int(library["fedhybrid_layout"]())
    except (OSError, AttributeError) as error:
        warnings.warn(f"the compiled kernels do not load ({error}); torch's own operators are used.", stacklevel=3)
        return None
    if layout != _LAYOUT:
        warnings.warn(
            f"the compiled kernels have layout {layout}, {_LAYOUT} is needed; torch's own operators are used. "
            "Install the package again.", stacklevel=3,
        )  # fmt: skip
        return None
    return library
