"""What a node may be called: a name that is a file's, too, and reads well in a table."""

from __future__ import annotations

import re

__all__ = ["is_node_name"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_node_name(name: str) -> bool:
    """Whether a node may be called so.

    >>> is_node_name("pi-1"), is_node_name("../pi")
    (True, False)
    """
    return _NAME.fullmatch(name) is not None
