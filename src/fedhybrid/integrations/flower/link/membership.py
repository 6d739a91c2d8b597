"""How a device gets into a superlink, stays in it, and comes back.

Flower knows a node by its key. A node that is let in sends heartbeats, or else it counts as gone. Refusals look alike:
a key that is not registered and a key that is in use by another process get the same answer, so a second question, with
a heartbeat interval that is never accepted, tells them apart (Flower looks the key up before it looks at the interval).
"""

from __future__ import annotations

import email.utils
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import final

import httpx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fedhybrid.errors import ConfigError
from fedhybrid.integrations.flower import private
from fedhybrid.integrations.flower.link.endpoint import Endpoint, lasting_problem, passing_problem, refusal_code
from fedhybrid.integrations.flower.link.keyfiles import load_node_key, public_key_bytes
from fedhybrid.integrations.flower.link.waiting import Deadline, Heart, utc_now

__all__ = ["Membership"]

_HEARTBEAT_S = 10.0  # the shortest that Flower accepts: a node counts as gone after two of them
_BEAT_S = 6.0
_CALL_LIMIT_S = 60.0
_IN_USE_LIMIT_S = 3 * _HEARTBEAT_S
_REGISTERING_LIMIT_S = 4.0  # a superlink answers a moment before its owner has registered the nodes
_FIRST_BACKOFF_S, _LAST_BACKOFF_S = 0.1, 3.0
# Flower's reasons, in the body of a refusal.
_KEY_IS_OLD, _REGISTRATION_OFF, _BAD_INTERVAL, _NOT_ACTIVATED = 23, 2001, 2003, 2004


class _NotYetError(Exception):
    """The server answers but does not let this node in; that may change."""


@final
class _Signature:
    """Signs each call with the node's key and the time.

    Flower refuses signatures that are more than five seconds ahead of the server's clock. Small devices often have no
    clock of their own, so the difference, once it is known, is made up for.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self._shown = b64encode(public_key_bytes(key.public_key())).decode("ascii")
        self.server_is_ahead = timedelta()

    def intercept(self, context: private.ProtobufRequestContext, call_next: private.ProtobufCall) -> httpx.Response:
        """Called by Flower's client round each request."""
        time = (utc_now() + self.server_is_ahead).isoformat()
        signature = self._key.sign(time.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        context.request.headers[private.FLEET_HTTP_PUBLIC_KEY_HEADER] = self._shown
        context.request.headers[private.TIMESTAMP_HEADER] = time
        context.request.headers[private.FLEET_HTTP_SIGNATURE_HEADER] = b64encode(signature).decode("ascii")
        return call_next(context)


@final
class Membership:
    """One node's place in a superlink; see `connection.FleetConnection` for the arguments."""

    def __init__(
        self, endpoint: Endpoint, *, key_file: Path | None, patience_s: float | None, said: Callable[[str], None]
    ) -> None:
        self._endpoint, self._key_file, self._patience_s, self._said = endpoint, key_file, patience_s, said
        key = ec.generate_private_key(ec.SECP384R1()) if key_file is None else load_node_key(key_file)
        self._public_key = public_key_bytes(key.public_key())
        self._signature = _Signature(key)
        self.client = private.FleetHttpClient(endpoint.url, interceptors=(self._signature,))
        private.connect_directly(self.client, verify=endpoint.tls(), timeout_s=_CALL_LIMIT_S)
        self.node_id: int | None = None
        self._inside = self._was_inside = False
        self._last_said = ""
        self._patience = self._in_use_patience = self._registering = Deadline(None)
        self._next_try, self._backoff_s = Deadline(0.0), _FIRST_BACKOFF_S
        self._start_patience()
        self._heart = Heart(self._beat, every_s=_BEAT_S, name="fedhybrid-node-heartbeat")

    def ready(self) -> bool:
        """Whether this node is inside; tries to get in where it is not and the time for the next try has come.

        Raises:
            ConfigError: What waiting does not heal, or patience is at its end.
        """
        if self._inside:
            return True
        if not self._next_try.passed:
            return False
        try:
            self._enter()
        except (httpx.HTTPError, _NotYetError) as error:
            self._fail(error)
            return False
        self._inside = self._was_inside = True
        self._backoff_s = _FIRST_BACKOFF_S
        self._tell(f"connected to {self._endpoint.address} as node {self.node_id}")
        return True

    def lost(self, error: httpx.HTTPError) -> None:
        """Something broke: the next `ready` tries at once to get in again."""
        if self._inside:
            self._inside = False
            self._start_patience()
            self._next_try = Deadline(0.0)
            self._tell(passing_problem(error, self._endpoint) + "; trying again")

    def wait_s(self) -> float:
        """How long a pause makes sense before `ready` is asked again."""
        return 0.0 if self._inside else self._next_try.within_s(_LAST_BACKOFF_S)

    def leave(self) -> None:
        """Says goodbye, if anybody listens."""
        self._heart.stop()
        if self._inside and self.node_id is not None:
            with suppress(httpx.HTTPError):
                self.client.DeactivateNode(private.DeactivateNodeRequest(node_id=self.node_id))
                if self._key_file is None:  # an unregistered key can never come back
                    self.client.UnregisterNode(private.UnregisterNodeFleetRequest(node_id=self.node_id))
        self._inside = False
        self.client.close()

    def _start_patience(self) -> None:
        self._patience = Deadline(self._patience_s)
        self._in_use_patience = Deadline(_IN_USE_LIMIT_S)
        self._registering = Deadline(0.0 if self._key_file is None else _REGISTERING_LIMIT_S)

    def _enter(self) -> None:
        if self._still_known():
            return
        try:
            self.node_id = self._activated(_HEARTBEAT_S)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.UNAUTHORIZED:
                self._set_clock(error)
                self.node_id = self._activated(_HEARTBEAT_S)
            elif refusal_code(error) == _NOT_ACTIVATED:
                self._register()
                self.node_id = self._activated(_HEARTBEAT_S)
            else:
                raise

    def _activated(self, interval_s: float) -> int:
        request = private.ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=interval_s)
        return int(self.client.ActivateNode(request).node_id)

    def _still_known(self) -> bool:
        """After a mere break of the line, a heartbeat is enough; it brings back a node that counted as gone, too."""
        if self.node_id is None:
            return False
        try:
            return self._heartbeat()
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.UNAUTHORIZED:
                return False
            raise

    def _register(self) -> None:
        """What to do where a key is not let in: wait if it is in use, register it if the server allows that."""
        try:
            self._activated(0.0)
        except httpx.HTTPStatusError as error:
            if refusal_code(error) == _BAD_INTERVAL:
                raise _NotYetError(
                    f"another process uses this node's key at {self._endpoint.address}, or did a moment ago"
                ) from error
        try:
            self.client.RegisterNode(private.RegisterNodeFleetRequest(public_key=self._public_key))
        except httpx.HTTPStatusError as error:
            if refusal_code(error) == _KEY_IS_OLD:
                raise ConfigError(
                    f"the server at {self._endpoint.address} has struck off this node's key: make a new one"
                ) from error
            if refusal_code(error) != _REGISTRATION_OFF:
                raise
            if self._was_inside:
                raise _NotYetError(
                    f"the server at {self._endpoint.address} was restarted and does not know this node's key yet"
                ) from error
            if not self._registering.passed:
                raise _NotYetError(self._unregistered()) from error
            raise ConfigError(self._unregistered()) from error

    def _unregistered(self) -> str:
        if self._key_file is None:
            return f"the server at {self._endpoint.address} takes registered nodes only: give this node's key"
        public = self._key_file.with_suffix(".pub")
        return (
            f"this node's key is not registered at {self._endpoint.address}: give {public} to whoever runs the server, "
            "to be put among its nodes"
        )

    def _set_clock(self, error: httpx.HTTPStatusError) -> None:
        """A signature that fits the request is refused for its time only; the answer says what time it is there."""
        try:
            theirs = email.utils.parsedate_to_datetime(error.response.headers["date"])
        except (KeyError, ValueError):
            raise error from None
        self._signature.server_is_ahead = theirs - utc_now()
        seconds = abs(self._signature.server_is_ahead.total_seconds())
        self._tell(
            f"this machine's clock and that of {self._endpoint.address} differ by {seconds:.0f} s: set one of them"
        )

    def _fail(self, error: Exception) -> None:
        if isinstance(error, _NotYetError):
            sentence, over = (
                str(error),
                self._patience.passed or (not self._was_inside and self._in_use_patience.passed),
            )
        else:
            if (lasting := lasting_problem(error, self._endpoint)) is not None:
                raise ConfigError(lasting) from error
            sentence, over = passing_problem(error, self._endpoint), self._patience.passed
        if over:
            raise ConfigError(sentence) from error
        if sentence not in self._last_said:  # something has changed: soon more may
            self._backoff_s = _FIRST_BACKOFF_S
        self._tell(f"{sentence}; trying again")
        self._next_try = Deadline(self._patience.within_s(self._backoff_s))
        self._backoff_s = min(2 * self._backoff_s, _LAST_BACKOFF_S)

    def _heartbeat(self) -> bool:
        assert self.node_id is not None
        node = private.Node(node_id=self.node_id)
        request = private.SendNodeHeartbeatRequest(node=node, heartbeat_interval=_HEARTBEAT_S)
        return bool(self.client.SendNodeHeartbeat(request).success)

    def _beat(self) -> None:
        if not self._inside:
            return
        try:
            self._heartbeat()
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.UNAUTHORIZED:
                self.lost(error)
        except httpx.HTTPError:
            pass  # the next beat may get through; two may be missing

    def _tell(self, sentence: str) -> None:
        if sentence != self._last_said:
            self._last_said = sentence
            self._said(sentence)
