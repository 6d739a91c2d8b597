"""What a device of anybody's Flower app tells the server of itself, as records."""

from __future__ import annotations

import hashlib
import json
import platform
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, RecordDict

import fedhybrid
from fedhybrid.devices import DEVICES, DeviceProfile, load_profile, parse_profile
from fedhybrid.errors import ConfigError
from fedhybrid.registry import lookup
from fedhybrid.units import Budget, parse_budget

__all__ = ["RECORD", "Capabilities", "read_capabilities", "record_of_capabilities"]

RECORD = "fedhybrid"
_FORMAT = 1
_MOST_EXAMPLES = 2**53 - 1  # a float counts so many exactly
_RATES = ("op_overhead_s", "uplink_bytes_per_s", "downlink_bytes_per_s")


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """A device's word.

    Attributes:
        budget: Of everything that a training step holds; a share is one of the unplanned step's.
        device: Prices operators; None where the device does not say what it is.
        num_examples: Training samples there; None where it does not say.
        versions: Of Python and the libraries that decide what a step needs.
    """

    budget: Budget
    device: DeviceProfile | None
    num_examples: int | None
    versions: Mapping[str, str]


def record_of_capabilities(
    *, budget: str | int, device: str | Path | DeviceProfile | None, num_examples: int | None
) -> RecordDict:
    """The content of an answer; a device of the table goes by its name, any other with its rates.

    Raises:
        ConfigError: A budget, a device or a number that is none; all at once.
    """
    problems: list[str] = []
    profile: DeviceProfile | None = None
    try:
        parse_budget(budget)
    except ConfigError as error:
        problems += [f"budget: {problem}" for problem in error.problems]
    try:
        profile = device if device is None or isinstance(device, DeviceProfile) else load_profile(device)
    except ConfigError as error:
        problems += [f"device: {problem}" for problem in error.problems]
    if num_examples is not None and (not isinstance(num_examples, int) or num_examples < 0):
        problems.append(
            f"num_examples: needs a whole number from 0 on, found {num_examples!r}; give how many there are"
        )
    if problems:
        raise ConfigError(problems)
    told: dict[str, Any] = {"format": _FORMAT, "budget": str(budget), "versions": json.dumps(_versions())}
    if num_examples is not None:
        told["num-examples"] = num_examples
    if isinstance(device, str) and device in DEVICES:
        told["device"] = device
    elif profile is not None:
        told["rates"] = _rates_text(profile)
    return RecordDict({RECORD: ConfigRecord(told)})


def read_capabilities(content: RecordDict) -> Capabilities:
    """A device's word again; a device without a name of the table is called by its rates.

    Raises:
        ConfigError: It is none, or of another format.
    """
    try:
        told: dict[str, Any] = dict(content[RECORD])
        if told["format"] != _FORMAT:
            raise ConfigError(f"needs format {_FORMAT}, found {told['format']!r}; install one version at both ends")
        device = None
        if "device" in told:
            lookup("device", DEVICES, str(told["device"]))  # a path would be read on this machine
            device = load_profile(str(told["device"]))
        elif "rates" in told:
            device = _profile_of(str(told["rates"]))
        count = told.get("num-examples")
        if count is not None and (type(count) is not int or not 0 <= count <= _MOST_EXAMPLES):
            raise ConfigError(
                f"num-examples: needs a whole number, at least 0 and below 2**53, found {reprlib.repr(count)}"
            )
        return Capabilities(
            budget=parse_budget(str(told["budget"])),
            device=device,
            num_examples=count,
            versions={str(name): str(found) for name, found in json.loads(str(told["versions"])).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"needs what `answer_query` makes, found something else ({type(error).__name__}: {error!s:.200}); return "
            "its message from @app.query('fedhybrid')"
        ) from error


def _versions() -> dict[str, str]:
    own = {"python": platform.python_version(), "fedhybrid": fedhybrid.__version__}
    return own | {name: version(name) for name in ("flwr", "torch")}


def _rates_text(profile: DeviceProfile) -> str:
    """What prices steps and transfers; words and energy stay at home."""
    rates = {name: getattr(profile, name) for name in (*_RATES, "memory_bytes")}
    return json.dumps(rates | {"kinds": {kind: asdict(rate) for kind, rate in sorted(profile.kinds.items())}})


def _profile_of(text: str) -> DeviceProfile:
    raw = json.loads(text)
    said = {name: raw[name] for name in (*_RATES, "memory_bytes", "kinds")}
    words = {
        "name": f"measured-{hashlib.sha256(text.encode()).hexdigest()[:8]}",
        "title": "measured on the device",
        "sources": ["reported by the device"],
    }
    return parse_profile({**said, **words}, "rates")
