"""The nodes of a deployment: what each has said of itself, which client it is, how much of its memory is believed."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from fedhybrid.devices import DeviceProfile, parse_profile
from fedhybrid.engine.files import write_atomically
from fedhybrid.errors import ConfigError
from fedhybrid.integrations.flower.names import is_node_name
from fedhybrid.units import Budget, parse_budget

__all__ = ["Node", "Roll", "count_of", "readable"]

_FALL_RATIO = 0.75  # of what a lost task needed: so much is believed to be there afterwards
_TRUSTED_AGAIN = 5  # completed tasks until a fall is taken back
_MOST_BYTES = 2**63 - 1
_MOST_SAMPLES = 2**53 - 1  # a float counts so many exactly


@dataclass(kw_only=True)
class Node:
    """A device that has registered.

    Attributes:
        node_id: Flower's number of it.
        name: Its own, unique among the nodes of a run.
        client: Its number in the run.
        budget: What it promises now.
        device: Its profile, called by the node's name and a digest of its figures.
        versions: Of its libraries.
        runtime_bytes: Memory of its program beside any training.
        num_samples: That it trains on; None before it has joined.
        believed_bytes: Below what it promises after lost tasks; None where it is believed.
        completed: Tasks since the last that was lost.
    """

    node_id: int
    name: str
    client: int
    budget: Budget
    device: DeviceProfile
    versions: Mapping[str, str]
    runtime_bytes: int
    num_samples: int | None = None
    believed_bytes: int | None = None
    completed: int = 0

    def budget_bytes(self, *, resident_bytes: int, eager_peak_bytes: int) -> int:
        """What the server plans for."""
        said = self.budget.resolve_bytes(resident_bytes=resident_bytes, eager_peak_bytes=eager_peak_bytes)
        return said if self.believed_bytes is None else min(said, self.believed_bytes)

    def lost(self, needed_bytes: int, least_bytes: int) -> None:
        """A task that needed so much has not come back: perhaps it was ended for its memory.

        A smaller plan is tried next, at last the smallest.
        """
        self.believed_bytes, self.completed = max(int(_FALL_RATIO * needed_bytes), least_bytes), 0

    def succeeded(self) -> None:
        """A task came back."""
        self.completed += 1
        if self.completed >= _TRUSTED_AGAIN:
            self.believed_bytes = None


@final
class Roll:
    """Who is who. Client numbers are kept with the run: a node that comes back under its name is the same client.

    Attributes:
        by_client: Those who are connected.
        last_known: The same and those who were since this process began.
        refused: Why others are not among them, by Flower's number.
        changes: Grows with every change.
    """

    def __init__(
        self,
        path: Path,
        clients: int,
        versions: Mapping[str, str],
        *,
        name_of_key: Callable[[int], str | None] = lambda node_id: None,
    ) -> None:
        """Reads the numbers that nodes have had.

        Args:
            path: The file of the numbers.
            clients: Of the recipe.
            versions: Of the server's libraries, with which a node's must agree.
            name_of_key: The name of the key that a node (by Flower's number) has shown; None where nobody knows.

        Raises:
            ConfigError: The file is damaged.
        """
        self._path, self._clients, self._versions = path, clients, dict(versions)
        self._name_of_key = name_of_key
        self._numbers: dict[str, int] = {}
        self._names_of: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self.by_client: dict[int, Node] = {}
        self.last_known: dict[int, Node] = {}
        self.refused: dict[int, str] = {}
        self.changes = 0
        if path.is_file():
            try:
                self._numbers = {str(name): int(number) for name, number in json.loads(path.read_bytes()).items()}
            except (ValueError, AttributeError, TypeError) as error:
                raise ConfigError(f"{path} is damaged ({error}); take it away, nodes get new numbers then") from error

    def enter(self, node_id: int, said: Mapping[str, Any]) -> Node:
        """Registers a node, or what it says anew.

        Args:
            node_id: Flower's number.
            said: Header of its letter "here"; from outside.

        Raises:
            ConfigError: Something is missing or makes no sense, somebody else has its name, or there are as many nodes
                as the recipe has clients.
        """
        name = said.get("name")
        if not isinstance(name, str) or not is_node_name(name):
            raise ConfigError(
                f"node {reprlib.repr(name)}: a name has letters, digits, '.', '_' and '-', at most 64; give --name"
            )
        own = self._name_of_key(node_id)
        if own is not None and own != name:
            raise ConfigError(f"node {name!r} has the key of {own!r}; join with --name {own}")
        _check_versions(name, said.get("versions"), self._versions)
        other = self.at(node_id)
        twin = next((n for n in self.by_client.values() if n.name == name and n.node_id != node_id), None)
        if twin is not None:
            raise ConfigError(f"node {name!r}: another node that is connected has this name; give each its own --name")
        if other is not None and other.name != name:
            self.leave(node_id)
        client = self._number_for(name, said.get("client"))
        table = said.get("device")
        if not isinstance(table, Mapping):
            raise ConfigError(f"node {name!r} says nothing of its device; it needs --device or a measured profile")
        device = parse_profile({**table, "name": _device_name(name, table)}, f"node {name!r}")
        versions = said["versions"]
        try:
            budget = parse_budget(said["budget"] if isinstance(said.get("budget"), (int, str)) else "")
        except ConfigError as error:
            raise ConfigError(f"node {name!r}: {error}") from error
        node = Node(
            node_id=node_id,
            name=name,
            client=client,
            budget=budget,
            device=device,
            versions={k: v for k, v in versions.items() if isinstance(v, str)},
            runtime_bytes=count_of(said.get("runtime_bytes")),
        )
        before = self.last_known.get(client)
        if before is not None:
            node.believed_bytes, node.completed = before.believed_bytes, before.completed
        self.by_client[client] = self.last_known[client] = node
        self.changes += 1
        return node

    def joined(self, client: int, said: Mapping[str, Any]) -> None:
        """The node has its data and its program.

        Raises:
            ConfigError: It does not say how much it holds.
        """
        count = said.get("num_samples")
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MOST_SAMPLES:
            raise ConfigError(
                f"node {self.by_client[client].name!r} must say num_samples, at least 0 and below 2**53, "
                f"got {reprlib.repr(count)}"
            )
        self.by_client[client].num_samples = count
        self.changes += 1

    def promises(self, client: int, budget: Any) -> None:
        """The node promises something else from now on; what is no budget is not heard."""
        if not isinstance(budget, (int, str)) or isinstance(budget, bool) or client not in self.by_client:
            return
        try:
            parsed = parse_budget(budget)
        except ConfigError:
            return
        if parsed != self.by_client[client].budget:
            self.by_client[client].budget = parsed
            self.changes += 1

    def leave(self, node_id: int) -> None:
        """The node is not there any more; its number stays its own."""
        node = self.at(node_id)
        if node is not None:
            del self.by_client[node.client]
            self.changes += 1

    def name_of(self, client: int) -> str:
        """The name of the node that is this client, or was."""
        if self._names_of != self._numbers:
            self._names_of, self._names = dict(self._numbers), {n: name for name, n in self._numbers.items()}
        return self._names.get(client, f"client {client}")

    def at(self, node_id: int) -> Node | None:
        """The node with Flower's number."""
        return next((node for node in self.by_client.values() if node.node_id == node_id), None)

    @property
    def ready(self) -> dict[int, Node]:
        """Those that have joined, by client."""
        return {client: node for client, node in self.by_client.items() if node.num_samples is not None}

    def _number_for(self, name: str, wanted: Any) -> int:
        if isinstance(wanted, int) and not isinstance(wanted, bool):
            if not 0 <= wanted < self._clients:
                raise ConfigError(
                    f"node {name!r} wants to be client {reprlib.repr(wanted)}; the recipe has 0 to {self._clients - 1}"
                )
            holder = self.by_client.get(wanted)
            if holder is not None and holder.name != name:
                raise ConfigError(f"node {name!r} wants to be client {wanted}, which {holder.name!r} is already")
            number: int = wanted
        else:
            taken = set(self._numbers.values()) | set(self.by_client)
            free = (n for n in range(self._clients) if n not in taken)
            found = self._numbers.get(name, next(free, None))
            if found is None:
                raise ConfigError(
                    f"node {name!r}: the recipe has {self._clients} clients, all are taken; raise data.clients"
                )
            number = found
        if self._numbers.get(name) != number:
            self._numbers = {n: c for n, c in self._numbers.items() if c != number} | {name: number}
            write_atomically(self._path, json.dumps(self._numbers, indent=2, sort_keys=True) + "\n")
        return number


def readable(text: str, most: int = 500) -> str:
    r"""Words that came from outside, for consoles and records: one line without control characters, not too long.

    >>> readable("a\x1b[31m\n b")
    'a[31m b'
    """
    line = " ".join("".join(c if c.isprintable() or c.isspace() else "" for c in text).split())
    return line if len(line) <= most else line[: most - 3] + "..."


def _device_name(name: str, profile: Mapping[str, Any]) -> str:
    """Plans are known by it: a node that comes back with another profile gets plans of its own."""
    figures = {key: value for key, value in profile.items() if key not in ("name", "title", "sources")}
    digest = hashlib.blake2b(json.dumps(figures, sort_keys=True).encode(), digest_size=3).hexdigest()
    return f"{name}-{digest}"


def _check_versions(name: str, said: Any, ours: Mapping[str, str]) -> None:
    """Programs and plans are of one version of torch, messages of one of this package."""
    theirs = said if isinstance(said, Mapping) else {}
    texts = {library: text for library, text in theirs.items() if isinstance(text, str)}
    wrong = [
        f"{library} {texts.get(library, 'of no version'):.40}, the server {ours[library]}"
        for library in ("torch", "fedhybrid")
        if texts.get(library, "").split(".")[:2] != ours[library].split(".")[:2]
    ]
    if wrong:
        raise ConfigError(f"node {name!r} has {' and '.join(wrong)}; install the same versions at both")


def count_of(found: Any) -> int:
    """A number that came from outside; 0 where it is none that 64 bits hold."""
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 <= found <= _MOST_BYTES else 0
