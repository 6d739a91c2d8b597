"""Files with keys and certificates: read with a sentence about what is wrong with them, written once.

A device needs no more of this folder's key handling than this module.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedhybrid.errors import ConfigError
from fedhybrid.integrations.flower.link.waiting import utc_now

__all__ = [
    "load_certificate",
    "load_node_key",
    "load_server_key",
    "public_key_bytes",
    "read_public_key",
    "write_new",
]

_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm)


def load_node_key(path: str | Path) -> ec.EllipticCurvePrivateKey:
    """A device's private key, from its OpenSSH file.

    Raises:
        ConfigError: Missing, damaged, protected by a password, or no elliptic key.
    """
    path = Path(path)
    data = _bytes(path, "the node's private key")
    if data.lstrip().startswith((b"ecdsa-", b"ssh-")):
        raise ConfigError(f"{path} is a public key: the node needs the private one ({path.stem}.key)")
    try:
        key = serialization.load_ssh_private_key(data, None)
    except _UNREADABLE as error:
        raise ConfigError(
            f"{path} is no readable private key in OpenSSH form without a password: {_said(error)}"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(
            f"{path} holds a key of another kind ({type(key).__name__}); an elliptic one (P-384) is needed"
        )
    return key


def read_public_key(path: str | Path) -> bytes:
    """A device's public key, from its OpenSSH file, as Flower sends it (PEM).

    Raises:
        ConfigError: Missing, damaged or no elliptic key.
    """
    path = Path(path)
    data = _bytes(path, "a node's public key")
    if b"PRIVATE KEY" in data:
        raise ConfigError(
            f"{path} is a private key: give the public one ({path.stem}.pub), the private one stays on its device"
        )
    try:
        key = serialization.load_ssh_public_key(data)
    except _UNREADABLE as error:
        raise ConfigError(f"{path} is no readable public key in OpenSSH form: {_said(error)}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(
            f"{path} holds a key of another kind ({type(key).__name__}); an elliptic one (P-384) is needed"
        )
    return public_key_bytes(key)


def public_key_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """The form in which Flower knows a node by its key: PEM of the SubjectPublicKeyInfo."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def load_certificate(path: Path) -> x509.Certificate:
    """The certificate in `path`.

    Raises:
        ConfigError: Missing, damaged, expired or not valid yet.
    """
    try:
        certificate = x509.load_pem_x509_certificate(_bytes(path, "a certificate"))
    except _UNREADABLE as error:
        raise ConfigError(f"{path} is no readable certificate: {_said(error)}") from error
    now = utc_now()
    if now > certificate.not_valid_after_utc:
        ended = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
        raise ConfigError(f"{path} expired on {ended}: remove it and its key, make the keys again and hand out ca.crt")
    if now < certificate.not_valid_before_utc:
        starts = f"{certificate.not_valid_before_utc:%Y-%m-%d}"
        raise ConfigError(
            f"{path} is valid from {starts} on, but this machine's clock says {now:%Y-%m-%d}: set the clock"
        )
    return certificate


def load_server_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A server's or authority's private key (PEM without a password).

    Raises:
        ConfigError: Missing, damaged or of another kind.
    """
    try:
        key = serialization.load_pem_private_key(_bytes(path, "a private key"), None)
    except _UNREADABLE as error:
        raise ConfigError(f"{path} is no readable private key without a password: {_said(error)}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(
            f"{path} holds a key of another kind ({type(key).__name__}); an elliptic one (P-384) is needed"
        )
    return key


def write_new(path: Path, data: bytes, *, private: bool = False) -> None:
    """Writes a new file; one that is there stays as it is."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
    with os.fdopen(handle, "wb") as file:
        file.write(data)


def _bytes(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: {what} is needed, but it cannot be read ({error.strerror}); `fedhybrid flower keys` makes keys"
        ) from error


def _said(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".") or type(error).__name__
