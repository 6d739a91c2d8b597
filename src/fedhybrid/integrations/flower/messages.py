"""What a Flower message holds: a JSON header, plans as JSON, and named groups of tensors as one array of bytes.

Plans stand in a config record of their own, figures of what a task took in a metric record, so that other people's
tools see them; tensors travel as safetensors, because Flower's own arrays know neither bfloat16 nor who is who.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedhybrid.engine.parcels import as_bundle, read_bundle_bytes
from fedhybrid.errors import ConfigError
from fedhybrid.tree import Tensors

__all__ = ["FORMAT", "QUERY", "TASK", "Letter", "letter_of", "record_of"]

FORMAT = 1  # of the content; a device of another one is told so
TASK, QUERY = "train.fedhybrid", "query.fedhybrid"
_RECORD, _PLANS, _TENSORS, _METRICS, _BUNDLE = "fedhybrid", "plans", "tensors", "metrics", "bundle"
_STYPE = "fedhybrid.bundle"


@dataclass(frozen=True, kw_only=True)
class Letter:
    """A message's content.

    Attributes:
        kind: "hello", "here", "join", "joined", "job", "question", "answer", "given-up", "delivery", "refused" or
            "heard".
        header: JSON; infinities and NaN are allowed.
        groups: Tensors.
        plans: Plans as JSON, by their names.
        metrics: Figures for whoever looks at the message from outside; nothing here reads them.
    """

    kind: str
    header: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, Tensors] = field(default_factory=dict)
    plans: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, int | float] = field(default_factory=dict)


def record_of(letter: Letter) -> RecordDict:
    """The content as Flower sends it."""
    told = json.dumps({"format": FORMAT, "kind": letter.kind, "header": dict(letter.header)})
    content = RecordDict({_RECORD: ConfigRecord({"letter": told})})
    if letter.plans:
        content[_PLANS] = ConfigRecord(dict(letter.plans))
    if letter.metrics:
        content[_METRICS] = MetricRecord(dict(letter.metrics))
    if letter.groups:
        packed = as_bundle(({}, dict(letter.groups)))
        content[_TENSORS] = ArrayRecord({_BUNDLE: Array("uint8", (len(packed),), _STYPE, packed)})
    return content


def letter_of(content: RecordDict) -> Letter:
    """The content of a message, which may come from anybody.

    Raises:
        ConfigError: It is no letter, or one of another format.
    """
    try:
        told = json.loads(str(content[_RECORD]["letter"]))
        kind, header, found = str(told["kind"]), dict(told["header"]), told["format"]
        json.dumps([kind, header], ensure_ascii=False).encode()  # half a character would break whoever writes it down
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"the message is none of FedHybrid's ({type(error).__name__}: {error!s:.200})") from error
    if found != FORMAT:
        raise ConfigError(
            f"the message has format {reprlib.repr(found)}, this side reads {FORMAT}; install the same version of "
            "fedhybrid at both"
        )
    groups: Mapping[str, Tensors] = {}
    if _TENSORS in content:
        array = content[_TENSORS].get(_BUNDLE)
        if not isinstance(array, Array) or array.stype != _STYPE:
            raise ConfigError(f"the message's tensors are not of the form {_STYPE}; send what `record_of` makes")
        _, groups = read_bundle_bytes(array.data)
    plans = {str(name): str(plan) for name, plan in content.get(_PLANS, {}).items()}
    return Letter(kind=kind, header=header, groups=groups, plans=plans)
