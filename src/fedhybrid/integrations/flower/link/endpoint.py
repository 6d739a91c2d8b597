"""Where a server answers, how its certificate is checked, and what went wrong in one sentence.

Some failures pass by themselves (a server that starts, a cable that is out); others never do (a certificate of another
authority). The first are worth waiting for, the second are said at once.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import httpx

from fedhybrid.errors import ConfigError

__all__ = ["Endpoint", "lasting_problem", "passing_problem", "refusal_code"]

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(\d{1,5})")
_PROBE_LIMIT_S = 5.0
# What OpenSSL says about a certificate (X509_V_ERR_...).
_NOT_YET_VALID, _EXPIRED, _WRONG_HOST, _WRONG_ADDRESS = 9, 10, 62, 64
# What OpenSSL says where the other side does not answer in TLS at all.
_NOT_TLS = (
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "HTTP_REQUEST",
    "UNEXPECTED_MESSAGE",
    "UNSUPPORTED_PROTOCOL",
)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One server.

    Attributes:
        address: HOST:PORT, an IPv6 address in brackets.
        ca_file: Certificate of the authority that signed the server's; None takes the system's authorities.
        insecure: Plain HTTP: nothing is encrypted, nobody is who they say.
    """

    address: str
    ca_file: Path | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        found = _ADDRESS.fullmatch(self.address)
        if found is None or not 0 < int(found[2]) < 2**16:
            raise ConfigError(f"address {self.address!r}: HOST:PORT is needed, such as 192.168.1.5:9092")
        if self.insecure and self.ca_file is not None:
            raise ConfigError(
                f"{self.ca_file} cannot be used on an insecure connection: give a CA certificate or insecure, not both"
            )

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"{'http' if self.insecure else 'https'}://{self.address}"

    @property
    def host(self) -> str:
        """Without the port, an IPv6 address without brackets."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """TCP port."""
        return int(self.address.rpartition(":")[2])

    def tls(self) -> ssl.SSLContext | bool:
        """How httpx should check the server's certificate.

        Raises:
            ConfigError: The CA certificate is missing or unreadable.
        """
        if self.insecure:
            return False
        if self.ca_file is None:
            return True
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cadata=self.ca_file.read_text("ascii"))
        except (OSError, ssl.SSLError, ValueError) as error:
            raise ConfigError(
                f"{self.ca_file}: the server's CA certificate (ca.crt) is needed here, but it cannot be read: {error}"
            ) from error
        return context


def lasting_problem(error: BaseException, endpoint: Endpoint) -> str | None:
    """The sentence about a failure that no waiting heals; None where waiting may help."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the certificate of the server at {endpoint.address} {_complaint(cause.verify_code, endpoint)}"
        if isinstance(cause, ssl.SSLError) and (cause.reason or "") in _NOT_TLS:
            return f"the server at {endpoint.address} does not speak TLS: start it with keys, or connect with insecure"
    if endpoint.insecure and isinstance(error, httpx.TransportError) and _speaks_tls(endpoint):
        return f"the server at {endpoint.address} speaks TLS: connect with its ca.crt, not with insecure"
    return None


def passing_problem(error: BaseException, endpoint: Endpoint) -> str:
    """The sentence about a failure that may pass, for a log, or an error when patience is at its end."""
    for cause in _causes(error):
        if isinstance(cause, socket.gaierror):
            return f"the host name {endpoint.host!r} is unknown here: check the address and the network"
        if isinstance(cause, ConnectionRefusedError):
            return f"nothing answers at {endpoint.address}: is the server running there, on that port?"
    if isinstance(error, httpx.TimeoutException):
        return f"no answer from {endpoint.address} in time: check the address, the network and the firewall"
    if isinstance(error, httpx.HTTPStatusError):
        return f"the server at {endpoint.address} answers with HTTP {error.response.status_code}"
    return f"the connection to {endpoint.address} broke: {error or type(error).__name__}"


def refusal_code(error: httpx.HTTPStatusError) -> int | None:
    """Flower's own number for why it refused, in the body of its answer."""
    try:
        code = json.loads(error.response.text).get("code")
    except (ValueError, AttributeError):
        return None
    return code if isinstance(code, int) else None


def _complaint(verify_code: int, endpoint: Endpoint) -> str:
    if verify_code in (_WRONG_HOST, _WRONG_ADDRESS):
        return (
            f"is not for {endpoint.host!r}: use an address that is in it, or have it made again with that host "
            "(`fedhybrid flower keys`)"
        )
    if verify_code == _EXPIRED:
        return "has expired: have it made again (or this machine's clock is wrong)"
    if verify_code == _NOT_YET_VALID:
        return "is not valid yet: set this machine's clock"
    if endpoint.ca_file is None:
        return "is not signed by an authority that this machine knows: give the ca.crt of this server"
    return f"is not signed by the CA in {endpoint.ca_file}: take the ca.crt of this server"


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _speaks_tls(endpoint: Endpoint) -> bool:
    """Tries a TLS handshake; nothing is sent after it, so the certificate need not be checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((endpoint.host, endpoint.port), timeout=_PROBE_LIMIT_S) as plain,
            context.wrap_socket(plain) as secure,
        ):
            return secure.version() is not None
    except OSError:
        return False
