"""Keys and certificates of a deployment: one folder that the server's operator makes and keeps.

    FOLDER/ca.crt  ca.key             the certificate authority; every device gets ca.crt, nobody gets ca.key
    FOLDER/server.pem  server.key     the server's certificate for its host names and addresses
    FOLDER/nodes/NAME.key  NAME.pub   one pair for each device, in the OpenSSH form that Flower reads

A device gets `ca.crt` and its own `nodes/NAME.key`. Keys are elliptic (P-384, as Flower recommends). Files with private
keys are for their owner only (mode 0600). Nothing that exists is ever overwritten: a second call adds what is missing.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedhybrid.errors import ConfigError
from fedhybrid.integrations.flower.link.keyfiles import (
    load_certificate,
    load_node_key,
    load_server_key,
    public_key_bytes,
    read_public_key,
    write_new,
)
from fedhybrid.integrations.flower.link.waiting import utc_now
from fedhybrid.integrations.flower.names import is_node_name

__all__ = [
    "ALWAYS_HOSTS",
    "KeyFolder",
    "load_node_key",
    "make_keys",
    "public_key_bytes",
    "read_keys",
    "read_public_key",
]

ALWAYS_HOSTS = ("localhost", "127.0.0.1")
_T = TypeVar("_T")
_HOST = re.compile(
    r"(?=.{1,253}$)(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)
_CLOCK_SLACK = datetime.timedelta(days=1)  # devices without a battery clock start in the past


@dataclass(frozen=True, kw_only=True)
class KeyFolder:
    """Where the files of a deployment's keys are.

    Attributes:
        folder: The folder.
        node_names: Devices whose public keys are in it, sorted.
    """

    folder: Path
    node_names: tuple[str, ...]

    @property
    def ca_certificate(self) -> Path:
        """Certificate of the authority; public."""
        return self.folder / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """Private key of the authority; only making a server certificate needs it."""
        return self.folder / "ca.key"

    @property
    def server_certificate(self) -> Path:
        """The server's certificate; public."""
        return self.folder / "server.pem"

    @property
    def server_key(self) -> Path:
        """The server's private key."""
        return self.folder / "server.key"

    def node_key(self, name: str) -> Path:
        """Private key of device `name`."""
        return self.folder / "nodes" / f"{name}.key"

    def node_public_key(self, name: str) -> Path:
        """Public key of device `name`; the server registers it."""
        return self.folder / "nodes" / f"{name}.pub"


def make_keys(
    folder: str | Path, *, hosts: Sequence[str] = (), nodes: int | Sequence[str] = (), days: int = 365
) -> KeyFolder:
    """Makes what is missing in `folder`: authority, server certificate, one key pair for each node.

    Args:
        folder: Made if it is not there.
        hosts: Host names and IP addresses under which devices reach the server. `localhost` and `127.0.0.1` are always
            among them. Wanted where server.pem already exists, they must be in it.
        nodes: Names of devices, or how many: they are then called node-0, node-1, ...
        days: How long the certificates hold. Node keys do not expire.

    Raises:
        ConfigError: A name or host that cannot be used, an existing file that is damaged or does not fit; all together.
    """
    names = tuple(f"node-{i}" for i in range(nodes)) if isinstance(nodes, int) else tuple(nodes)
    problems = [
        f"node name {n!r}: use letters, digits, '.', '_' and '-', at most 64" for n in names if not is_node_name(n)
    ]
    problems += [f"node name {n!r} is given twice" for n in sorted({n for n in names if names.count(n) > 1})]
    problems += [
        f"host {h!r} is neither a host name nor an IP address" for h in hosts if not (_address(h) or _fits(_HOST, h))
    ]
    if days < 1:
        problems.append(f"days must be at least 1, got {days}")
    if problems:
        raise ConfigError(problems)
    home = KeyFolder(folder=Path(folder), node_names=())
    (home.folder / "nodes").mkdir(parents=True, exist_ok=True)
    if not home.ca_certificate.exists():
        _make_authority(home, days)
    if not home.server_certificate.exists():
        _make_server(home, (*hosts, *ALWAYS_HOSTS), days)
    elif lacking := sorted(set(hosts) - set(_hosts_of(load_certificate(home.server_certificate)))):
        problems.append(
            f"{home.server_certificate} is not for {', '.join(lacking)}: remove it and {home.server_key.name}, "
            "then make the keys again; node keys stay valid"
        )
    for name in names:
        try:
            _make_node(home, name)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return read_keys(folder)


def read_keys(folder: str | Path) -> KeyFolder:
    """Checks every file that a server needs and says where they are.

    Raises:
        ConfigError: What is missing, damaged, expired, of another kind or does not belong together, one line each.
    """
    home = Path(folder)
    found = tuple(sorted(path.stem for path in (home / "nodes").glob("*.pub")))
    keys = KeyFolder(folder=home, node_names=found)
    problems: list[str] = []

    def tried(read: Callable[[Path], _T], path: Path) -> _T | None:
        try:
            return read(path)
        except ConfigError as error:
            problems.extend(error.problems)
            return None

    authority = tried(load_certificate, keys.ca_certificate)
    server = tried(load_certificate, keys.server_certificate)
    private = tried(load_server_key, keys.server_key)
    for name in found:
        tried(read_public_key, keys.node_public_key(name))
    if authority is not None and server is not None:
        try:
            server.verify_directly_issued_by(authority)
        except (InvalidSignature, ValueError, TypeError):
            problems.append(f"{keys.server_certificate} is not signed by {keys.ca_certificate}: make one of them again")
    if server is not None and private is not None and server.public_key() != private.public_key():
        problems.append(f"{keys.server_key} does not belong to {keys.server_certificate}: make both again")
    if problems:
        raise ConfigError(problems)
    return keys


def _make_authority(home: KeyFolder, days: int) -> None:
    if home.ca_key.exists():
        raise ConfigError(
            f"{home.ca_key} is there but {home.ca_certificate.name} is not: bring it back, or move the key away"
        )
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "FedHybrid certificate authority")])
    uses = _key_uses(signs_certificates=True)
    certificate = (
        _draft(name, name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(uses, critical=True)
        .sign(key, hashes.SHA384())
    )
    write_new(home.ca_key, _private_pem_bytes(key), private=True)
    write_new(home.ca_certificate, certificate.public_bytes(serialization.Encoding.PEM))


def _make_server(home: KeyFolder, hosts: Sequence[str], days: int) -> None:
    if home.server_key.exists():
        raise ConfigError(
            f"{home.server_key} is there but {home.server_certificate.name} is not: bring it back, or move the key away"
        )
    authority, authority_key = load_certificate(home.ca_certificate), load_server_key(home.ca_key)
    key = ec.generate_private_key(ec.SECP384R1())
    known = dict.fromkeys(hosts)
    names = [x509.IPAddress(a) if (a := _address(h)) else x509.DNSName(h) for h in known]
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _draft(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "FedHybrid server")]),
            authority.subject,
            key.public_key(),
            days,
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_uses(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer_id, critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    write_new(home.server_key, _private_pem_bytes(key), private=True)
    write_new(home.server_certificate, certificate.public_bytes(serialization.Encoding.PEM))


def _make_node(home: KeyFolder, name: str) -> None:
    private, public = home.node_key(name), home.node_public_key(name)
    if public.exists():
        read_public_key(public)  # its device may be the only one that has the private key
        return
    if private.exists():
        key = load_node_key(private)
    else:
        key = ec.generate_private_key(ec.SECP384R1())
        form, unlocked = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        write_new(private, key.private_bytes(serialization.Encoding.PEM, form, unlocked), private=True)
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_new(public, line + f" {name}\n".encode())


def _draft(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = utc_now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_uses(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=signs_certificates, crl_sign=signs_certificates, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _private_pem_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    form, unlocked = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, unlocked)


def _hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _fits(pattern: re.Pattern[str], text: str) -> bool:
    return pattern.fullmatch(text) is not None
