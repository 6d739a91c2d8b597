"""A device's own programs as files: read again only if this very folder's process wrote them, and nobody changed them.

A portable program is text that is executed (`executor.portable`), so where it comes from matters. Each file begins with
a checksum keyed by a secret that the folder was given when it was made; a file that was damaged, changed, or brought
from another folder does not have it, and is treated as if it were not there. Folder, secret and files belong to the
user alone (modes 0700 and 0600). Programs never travel: the server sends plans, which are data.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch

from fedhybrid.errors import ConfigError
from fedhybrid.executor import PortableProgram, load_program

__all__ = ["ProgramFolder", "program_name"]

_SECRET = "programs.secret"
_SECRET_BYTES = 32
_CHECKSUM_BYTES = 32


def program_name(setting: Mapping[str, Any], plan: object) -> str:
    """The name of a program's file: other settings, another torch or another plan give another.

    Args:
        setting: JSON: the recipe's part that decides the step, and the batch.
        plan: `Plan.key`, or None for the plan that decides nothing.
    """
    text = json.dumps([torch.__version__, setting, repr(plan)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@final
class ProgramFolder:
    """The folder `programs` of a device's home."""

    def __init__(self, home: Path) -> None:
        """Makes folder and secret where they are missing.

        Raises:
            ConfigError: They cannot be made or read, or belong to somebody else or to everybody.
        """
        self.home, self._folder = home, home / "programs"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._secret = self._read_secret(home / _SECRET)
        except OSError as error:
            raise ConfigError(f"{home}: programs cannot be kept there ({error.strerror}); name another home") from error

    def write(self, name: str, packed: bytes) -> None:
        """Keeps a program; a process killed meanwhile leaves what was there."""
        temporary = self._folder / f"{name}.{os.getpid()}.tmp"
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            out.write(self._checksum(name, packed) + packed)
        temporary.replace(self._folder / name)

    def read(self, name: str) -> PortableProgram | None:
        """The program; None where there is none that was written here, whole and for this torch."""
        try:
            content = (self._folder / name).read_bytes()
        except OSError:
            return None
        checksum, packed = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
        if not hmac.compare_digest(checksum, self._checksum(name, packed)):
            return None
        try:
            return load_program(packed)
        except ConfigError:  # an earlier version of this package wrote it
            return None

    def _checksum(self, name: str, packed: bytes) -> bytes:
        """Of name and content, so that one file cannot be put in another's place."""
        keyed = hashlib.blake2b(name.encode() + b"\0", digest_size=_CHECKSUM_BYTES, key=self._secret)
        keyed.update(packed)
        return keyed.digest()

    def _read_secret(self, path: Path) -> bytes:
        # Written under another name and linked, so that of two processes at once one wins and nobody reads a half.
        if not path.exists():
            temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
                out.write(secrets.token_bytes(_SECRET_BYTES))
            try:
                os.link(temporary, path)
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
        found = path.stat()
        if found.st_mode & 0o077 or found.st_uid != os.geteuid():
            raise ConfigError(
                f"{path} must belong to the user who runs the device, with mode 0600 (chmod 600), found mode "
                f"{found.st_mode & 0o777:04o} of user {found.st_uid}; whoever reads it can make this device run code"
            )
        return path.read_bytes()
