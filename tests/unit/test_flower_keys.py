"""Keys of a deployment: what is made can be used, what exists is never touched, what is wrong is said."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, uses_nist_ec_curve

from fedhybrid.errors import ConfigError
from fedhybrid.integrations.flower.link import keyfiles
from fedhybrid.integrations.flower.link.keys import KeyFolder, load_node_key, make_keys, read_keys, read_public_key


def handshake(made: KeyFolder, host: str, ca_file: Path | None = None) -> None:
    """A whole TLS handshake between the server's files and a client that knows only the CA, in memory."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.server_certificate, made.server_key)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(ca_file or made.ca_certificate)
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # Python's default from 3.13 on
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up, server_hostname=host), server.wrap_bio(up, down, server_side=True)]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert ends[0].version() is not None


def problems_of(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_keys(folder)
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_made_keys_are_those_that_flower_reads(tmp_path: Path) -> None:
    made = make_keys(tmp_path, nodes=["kitchen", "porch"])
    assert made.node_names == ("kitchen", "porch")
    private = serialization.load_ssh_private_key(made.node_key("porch").read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    public = bytes_to_public_key(read_public_key(made.node_public_key("porch")))
    assert uses_nist_ec_curve(public)
    assert public == private.public_key() == load_node_key(made.node_key("porch")).public_key()
    secret = {made.ca_key, made.server_key, made.node_key("kitchen"), made.node_key("porch")}
    assert {path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_mode & 0o777 == 0o600} == secret


def test_the_server_is_who_it_says_for_every_host(tmp_path: Path) -> None:
    made = make_keys(tmp_path / "keys", hosts=["192.168.1.5", "pi.local", "fd00::5"])
    for host in ("192.168.1.5", "pi.local", "fd00::5", "localhost", "127.0.0.1"):
        handshake(made, host)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(made, "192.168.1.6")
    other = make_keys(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        handshake(made, "localhost", ca_file=other.ca_certificate)


def test_nodes_can_be_added_and_nothing_is_overwritten(tmp_path: Path) -> None:
    make_keys(tmp_path, hosts=["pi.local"], nodes=1)
    before = contents(tmp_path)
    assert make_keys(tmp_path, hosts=["pi.local"], nodes=2).node_names == ("node-0", "node-1")
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"nodes/node-1.key", "nodes/node-1.pub"}
    (tmp_path / "ca.key").unlink()  # as somebody who keeps it elsewhere
    (tmp_path / "nodes" / "node-1.pub").unlink()
    assert make_keys(tmp_path, nodes=3).node_names == ("node-0", "node-1", "node-2")
    assert contents(tmp_path)["nodes/node-1.pub"] == after["nodes/node-1.pub"]


def test_a_server_certificate_can_be_made_again_for_other_hosts(tmp_path: Path) -> None:
    made = make_keys(tmp_path, nodes=1)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"server\.pem is not for 10\.0\.0\.2, pi\.local: remove it and server\.key"):
        make_keys(tmp_path, hosts=["pi.local", "10.0.0.2"])
    made.server_certificate.unlink()
    with pytest.raises(ConfigError, match=r"server\.key is there but server\.pem is not"):
        make_keys(tmp_path, hosts=["10.0.0.2"])
    made.server_key.unlink()
    handshake(make_keys(tmp_path, hosts=["10.0.0.2"]), "10.0.0.2")
    assert contents(tmp_path)["nodes/node-0.key"] == before["nodes/node-0.key"]


def test_all_that_cannot_be_asked_for_is_said_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        make_keys(tmp_path / "keys", hosts=["a b", "https://x"], nodes=["../x", "a", "a"], days=0)
    assert [line.split(":")[0] for line in caught.value.problems] == [
        "node name '../x'", "node name 'a' is given twice", "host 'a b' is neither a host name nor an IP address",
        "host 'https", "days must be at least 1, got 0",
    ]  # fmt: skip
    assert not (tmp_path / "keys").exists()


def test_all_that_is_wrong_in_a_folder_is_said_together(tmp_path: Path) -> None:
    made = make_keys(tmp_path, nodes=2)
    made.ca_certificate.unlink()
    made.server_key.write_text("no key")
    made.node_public_key("node-1").write_text("no key")
    said = problems_of(tmp_path).splitlines()
    assert len(said) == 3
    assert "ca.crt: a certificate is needed, but it cannot be read (No such file or directory)" in said[0]
    assert "server.key is no readable private key" in said[1]
    assert "node-1.pub is no readable public key in OpenSSH form" in said[2]


def test_files_that_do_not_belong_together_are_noticed(tmp_path: Path) -> None:
    made, other = make_keys(tmp_path / "made"), make_keys(tmp_path / "other")
    made.server_key.write_bytes(other.server_key.read_bytes())
    assert "server.key does not belong to" in problems_of(made.folder)
    made.server_certificate.write_bytes(other.server_certificate.read_bytes())
    assert "server.pem is not signed by" in problems_of(made.folder)


@pytest.mark.parametrize(("days", "words"), [(31, "expired on"), (-2, "set the clock")])
def test_a_certificate_holds_for_its_days(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, words: str
) -> None:
    make_keys(tmp_path, days=30)
    now = keyfiles.utc_now() + datetime.timedelta(days=days)
    monkeypatch.setattr(keyfiles, "utc_now", lambda: now)
    assert problems_of(tmp_path).count(words) == 2  # the authority's and the server's


def test_a_key_of_the_wrong_kind_is_named(tmp_path: Path) -> None:
    made = make_keys(tmp_path, nodes=1)
    with pytest.raises(ConfigError, match=r"node-0\.pub is a public key: the node needs the private one"):
        load_node_key(made.node_public_key("node-0"))
    with pytest.raises(ConfigError, match=r"node-0\.key is a private key: give the public one"):
        read_public_key(made.node_key("node-0"))
    with pytest.raises(ConfigError, match=r"server\.key is no readable private key in OpenSSH form"):
        load_node_key(made.server_key)
    with pytest.raises(ConfigError, match="node's private key is needed"):
        load_node_key(tmp_path / "nowhere")
    form, unlocked = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    edwards = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "edwards").write_bytes(edwards.private_bytes(serialization.Encoding.PEM, form, unlocked))
    with pytest.raises(ConfigError, match="a key of another kind"):
        load_node_key(tmp_path / "edwards")
