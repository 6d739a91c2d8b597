"""Who may begin a run in a folder, or go on with the one in it: all is checked before anything is written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from fedhybrid.devices import DeviceProfile
from fedhybrid.engine.files import TEMPORARY_SUFFIX, write_atomically
from fedhybrid.engine.folder import LOCK, RunFolder
from fedhybrid.errors import ConfigError

__all__ = ["Claim", "claim_folders"]

_CONFIG, _DEVICES, _INPUTS = "config.toml", "devices.json", "inputs.json"
_MAY_GROW = ("rounds",)
_MAY_CHANGE = ("workers", "checkpoint_every")  # no result depends on them
_WORDS = ("title", "sources")  # of a device profile; nothing is computed from them


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A folder for one run or, without devices, for a comparison's runs.

    Attributes:
        path: The folder.
        config: Complete.
        devices: Of the run's tiers.
        files: Other files that the run depends on, by the settings that name them.
    """

    path: Path
    config: Mapping[str, Any]
    devices: Sequence[DeviceProfile] = ()
    files: Mapping[str, Path] = field(default_factory=dict)

    def profiles(self) -> dict[str, Any]:
        """The figures of each device, as they are stored with the run: virtual times follow from them."""
        return {
            device.name: {k: v for k, v in dataclasses.asdict(device).items() if k not in _WORDS}
            for device in self.devices
        }

    def checksums(self) -> dict[str, str]:
        """SHA-256 of each file, by its setting, as they are stored with the run: failures and times follow from them.

        Raises:
            ConfigError: Files that cannot be read, all at once.
        """
        found, problems = {}, []
        for setting, path in self.files.items():
            try:
                with path.open("rb") as file:
                    found[setting] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                problems.append(f"{setting}: {path} cannot be read: {error.strerror}")
        if problems:
            raise ConfigError(problems)
        return found


def claim_folders(claims: Sequence[Claim], *, resume: bool) -> None:
    """Makes the folders and stores the configurations in them, or checks that the runs in them may go on.

    Nothing is written, but for empty folders, before all of them have been checked; until then they are locked.

    Raises:
        ConfigError: A folder cannot be made, holds something else, a run and `resume` is False, a run of another
            configuration, of devices or of input files that have been changed since, damaged files; an input file
            cannot be read; or another process runs in it.
    """
    problems = [problem for claim in claims for problem in _place_problems(claim.path, resume=resume)]
    if problems:
        raise ConfigError(problems)
    with ExitStack() as locks:
        for claim in claims:
            try:
                claim.path.mkdir(parents=True, exist_ok=True)
                locks.enter_context(RunFolder(claim.path).locked())
            except OSError as error:
                raise ConfigError(
                    f"--out {claim.path} cannot be written ({error.strerror}); give another folder"
                ) from error
        problems = [problem for claim in claims for problem in (*_run_problems(claim), *_input_problems(claim))]
        if problems:
            raise ConfigError(problems)
        for claim in claims:
            if claim.devices:
                _store(claim.path / _DEVICES, json.dumps(claim.profiles(), indent=2) + "\n")
            if claim.files:
                _store(claim.path / _INPUTS, json.dumps(claim.checksums(), indent=2) + "\n")
            _store(claim.path / _CONFIG, tomli_w.dumps(claim.config))  # last: with it the folder is a run's


def _store(path: Path, text: str) -> None:
    """Leaves a file alone that says the same already."""
    if not path.is_file() or path.read_bytes() != text.encode():
        write_atomically(path, text)


def _place_problems(path: Path, *, resume: bool) -> list[str]:
    """What is there that a run must not write over."""
    try:
        if path.exists() and not path.is_dir():
            return [f"--out {path} is a file; give a folder"]
        if (path / _CONFIG).is_file():
            state = "a finished run" if (path / "summary.json").is_file() else "an unfinished run"
            found = f"--out {path} holds {state} already; add --resume to go on with it, or give another folder"
            return [] if resume else [found]
        if path.is_dir() and any(not _is_left_over(inside) for inside in path.iterdir()):
            return [f"--out {path} is not empty and holds no run; give another folder"]
    except OSError as error:
        return [f"--out {path} cannot be read ({error.strerror}); give another folder"]
    return []


def _is_left_over(path: Path) -> bool:
    """What a process leaves that was killed while it claimed the folder: locks, halves of files, empty folders."""
    if path.is_dir():
        return all(inside.is_file() and _is_left_over(inside) for inside in path.iterdir())
    return path.name in (LOCK, _DEVICES, _INPUTS) or path.suffix == TEMPORARY_SUFFIX


def _run_problems(claim: Claim) -> list[str]:
    """Why the run in a folder, if there is one, may not go on as this one."""
    stored = claim.path / _CONFIG
    if not stored.is_file():
        return []
    try:
        changed = _differences(tomllib.loads(stored.read_text(encoding="utf-8")), claim.config)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return [f"--resume: {stored} is not TOML: {error}; start again with another --out"]
    problems = [
        f"--resume: {key} was {was!r} when the run in {claim.path} was begun, now it is {now!r}"
        for key, was, now in sorted(changed, key=lambda each: each[0])
    ]
    problems += _device_problems(claim)
    try:
        RunFolder(claim.path).check()
    except ConfigError as error:
        problems += error.problems
    return problems


def _device_problems(claim: Claim) -> list[str]:
    """A device profile is a file that can be edited, and then the run's times would not fit together."""
    stored = claim.path / _DEVICES
    if not stored.is_file() or not claim.devices:
        return []
    try:
        was = json.loads(stored.read_bytes())
    except ValueError as error:
        return [f"--resume: {stored} is not JSON: {error}; start again with another --out"]
    changed = _differences(was if isinstance(was, dict) else {}, json.loads(json.dumps(claim.profiles())))
    return [
        f"--resume: device profile: {key} was {before!r} when the run in {claim.path} was begun, now it is {now!r}"
        for key, before, now in sorted(changed, key=lambda each: each[0])
    ]


def _input_problems(claim: Claim) -> list[str]:
    """A file that cannot be read, or that is not the one which the run was begun with."""
    try:
        now = claim.checksums()
    except ConfigError as error:
        return list(error.problems)
    stored = claim.path / _INPUTS
    if not stored.is_file() or not (claim.path / _CONFIG).is_file():
        return []
    try:
        read = json.loads(stored.read_bytes())
    except ValueError as error:
        return [f"--resume: {stored} is not JSON: {error}; start again with another --out"]
    was = read if isinstance(read, dict) else {}
    return [
        f"--resume: {setting}: {claim.files[setting]} is not what it was when the run in {claim.path} was begun; put "
        "the old file back, or start again with another --out"
        for setting, checksum in now.items()
        if was.get(setting) != checksum
    ]


def _differences(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in was.keys() | now.keys():
        before, after = was.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, f"{prefix}{key}.")
        elif f"{prefix}{key}" in _MAY_CHANGE:
            continue
        elif before != after and not (f"{prefix}{key}" in _MAY_GROW and _grows(before, after)):
            yield f"{prefix}{key}", before, after


def _grows(before: Any, after: Any) -> bool:
    return isinstance(before, int) and isinstance(after, int) and before < after
