"""A certificate authority for tests: it issues real certificates, valid and expired ones."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from pathlib import Path

PrivateKey = ec.EllipticCurvePrivateKey | ed448.Ed448PrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

HOSTS: tuple[x509.GeneralName, ...] = (
    x509.DNSName("localhost"),
    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
)
PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Pair:
    """The paths of a certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """An authority that signs certificates for localhost; its own is in `certificate`."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._builder(self._name, self._key, days=10).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.certificate = folder / "ca.crt"
        put(self.certificate, certificate.sign(self._key, hashes.SHA256()).public_bytes(PEM))

    def issue(
        self,
        name: str,
        *,
        days: float = 5,
        key: PrivateKey | None = None,
        names: tuple[x509.GeneralName, ...] = HOSTS,
        is_ca: bool = False,
        begins: dt.datetime | None = None,
    ) -> Pair:
        """Issue a pair for localhost and 127.0.0.1, valid from `begins` on; a negative `days` makes it expired."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(subject, key, days=days, begins=begins)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if is_ca:
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        put(pair.key, private_pem(key))
        put(pair.certificate, builder.sign(self._key, hashes.SHA256()).public_bytes(PEM))
        return pair

    def intermediate(self, name: str) -> Authority:
        """Create an authority whose certificate this one signs."""
        pair = self.issue(name, names=(), is_ca=True)
        below = Authority(self._folder / name, name)
        key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        below._key, below.certificate = key, pair.certificate
        return below

    def _builder(
        self, subject: x509.Name, key: PrivateKey, *, days: float, begins: dt.datetime | None = None
    ) -> x509.CertificateBuilder:
        ends = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins or ends - dt.timedelta(days=20))
            .not_valid_after(ends)
        )


def private_pem(
    key: PrivateKey,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
    passphrase: bytes = b"",
) -> bytes:
    """Encode a key as PEM, encrypted if there is a passphrase."""
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(PEM, form, encryption)


def put(path: Path, content: bytes) -> None:
    """Replace a file atomically, by renaming, with a file that only its owner can read."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_bytes(content)
    beside.chmod(0o600)
    os.replace(beside, path)  # noqa: PTH105 (states that it replaces)
