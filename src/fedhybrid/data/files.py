"""Finding and opening data files below a folder, with an error that says what was looked for and what to do."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhybrid.errors import ConfigError

__all__ = ["find_folder", "read_npz", "require_root"]


def require_root(dataset: str, root: Path | None, looked_for: str) -> Path:
    """`root`, if it is a folder.

    Raises:
        ConfigError: It was not given or is no folder.
    """
    if root is None:
        raise ConfigError(f"dataset {dataset!r} needs a folder with {looked_for}; give it with data.root=DIR")
    if not root.is_dir():
        raise ConfigError(f"dataset {dataset!r}: data.root={root} is not a folder; it must hold {looked_for}")
    return root


def find_folder(root: Path, subfolders: Sequence[str], files: Sequence[str]) -> tuple[Path | None, str]:
    """The first of `subfolders` of `root` that holds all `files`, and what is missing otherwise.

    The words name the files missing from the most complete folder: that is the one the user meant.
    """
    best: tuple[int, Path, list[str]] | None = None
    for name in subfolders:
        folder = root / name
        missing = [file for file in files if not (folder / file).is_file()]
        if not missing:
            return folder, ""
        if best is None or len(missing) < best[0]:
            best = (len(missing), folder, missing)
    assert best is not None, "at least one subfolder"
    _, folder, missing = best
    if len(missing) == len(files):
        places = ", ".join(str(root / name) for name in subfolders)
        return None, f"none of {', '.join(files)} in any of {places}"
    return None, f"{folder} lacks {', '.join(missing)}"


def read_npz(path: Path, names: Sequence[str], *, only: str | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of those names, or `only` one of them, of a file that has them all.

    Raises:
        ConfigError: The file is none, lacks one of them, or holds Python objects.
    """
    try:
        # Opened here, as numpy leaves a file open that turns out to be none.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if missing := [name for name in names if name not in stored]:
                raise KeyError(f"{', '.join(missing)} missing, found {', '.join(stored)}")
            return {name: stored[name] for name in ([only] if only else names)}
    except (KeyError, ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path}: not a file with the arrays {', '.join(names)}: {error}") from error
