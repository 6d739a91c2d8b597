"""Every module of the package, for tests that walk them."""

from __future__ import annotations

import pkgutil

import fedhybrid

_FOUND = [
    found
    for found in pkgutil.walk_packages(fedhybrid.__path__, "fedhybrid.")
    if not found.name.endswith("__main__")  # importing that one would be running it
]
MODULES = sorted(["fedhybrid", *(found.name for found in _FOUND)])
PACKAGES = sorted(["fedhybrid", *(found.name for found in _FOUND if found.ispkg)])
