"""A reader of the parts of TLS files that errors name: PEM blocks, the order of a chain, the key of a certificate."""

from __future__ import annotations

import base64
import ipaddress
import re
from typing import NamedTuple

SERVED_KEYS = "RSA of 2048 bits or more, P-256 or P-384"
"""The keys that clients on gRPC's C core, such as ours, accept from a server of either transport."""

_SHORTEST_RSA = 2048
_PRIVATE_KEY = re.compile(rb"-----BEGIN ((?:[A-Z0-9]+ )*PRIVATE KEY)-----(.*?)-----END \1-----", re.DOTALL)
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)

_DER_SEQUENCE = b"\x30"
_EXPLICIT_VERSION, _EXPLICIT_EXTENSIONS, _DNS_NAME, _IP_ADDRESS = 0xA0, 0xA3, 0x82, 0x87
_RSA, _EC = "2a864886f70d010101", "2a8648ce3d0201"
_SUBJECT_ALTERNATIVE_NAME = "551d11"
_ALGORITHMS = {"2a864886f70d01010a": "RSA-PSS", "2a8648ce380401": "DSA", "2b6570": "Ed25519", "2b6571": "Ed448"}
_CURVES = {
    "2a8648ce3d030107": "P-256",
    "2b81040022": "P-384",
    "2b81040023": "P-521",
    "2b81040021": "P-224",
    "2b8104000a": "secp256k1",
}
_Element = tuple[int, bytes]
"""A tag of DER and its content."""


class Pem(NamedTuple):
    """The content of the TLS files at one moment; without `client_ca` clients need no certificate."""

    chain: bytes
    key: bytes
    client_ca: bytes | None


class Certificate(NamedTuple):
    """The fields of a certificate that errors name, parsed from DER as RFC 5280 defines it."""

    subject: bytes
    issuer: bytes
    key: str
    """Its algorithm and size, such as `P-256` or `RSA 2048`."""
    hosts: tuple[str, ...]
    """Its DNS names and IP addresses."""
    has_names: bool
    """Whether it has a subject alternative name of any kind, such as a SPIFFE ID."""

    @property
    def has_served_key(self) -> bool:
        """Whether its key is one of `SERVED_KEYS`."""
        kind, _, bits = self.key.partition(" ")
        return self.key in {"P-256", "P-384"} or (kind == "RSA" and int(bits) >= _SHORTEST_RSA)


def check_certificates(pem: bytes) -> None:
    """Raise ValueError, with the file's actual kind, unless it has a certificate in PEM."""
    _check(pem, "certificate", _CERTIFICATE)


def check_key(pem: bytes) -> None:
    """Raise ValueError, with the file's actual kind, unless it has an unencrypted private key in PEM."""
    label, content = _check(pem, "private key", _PRIVATE_KEY).groups()
    if b"ENCRYPTED" in label or b"Proc-Type: 4,ENCRYPTED" in content:
        raise ValueError("is encrypted; expected a key without passphrase")


def _check(pem: bytes, kind: str, block: re.Pattern[bytes]) -> re.Match[bytes]:
    if match := block.search(pem):
        return match
    if not pem.strip():
        raise ValueError(f"is empty; expected a {kind} in PEM")
    if pem.startswith(_DER_SEQUENCE):
        raise ValueError("is DER; expected PEM")
    raise ValueError(f"holds no {kind} in PEM")


def parse(pem: bytes) -> list[Certificate]:
    """Parse the certificates of a file, in its order, up to the first damaged one."""
    certificates = []
    try:
        for block in _CERTIFICATE.finditer(pem):
            certificates.append(_parse(base64.b64decode(block[1])))  # noqa: PERF401 (keeps those before a damaged one)
    except (IndexError, ValueError):
        pass
    return certificates


def begins_with_issuer(chain: list[Certificate]) -> bool:
    """Check whether the first certificate, which should be the server's own, has signed a later one."""
    first = chain[:1]
    return any(later.issuer == own.subject != later.subject for own in first for later in chain[1:])


def _parse(der: bytes) -> Certificate:
    tbs = _children(_children(_children(der)[0][1])[0][1])
    if tbs[0][0] == _EXPLICIT_VERSION:
        del tbs[0]
    _serial, _algorithm, (_, issuer), _validity, (_, subject), (_, public_key), *more = tbs
    names = _alternative_names(next((content for tag, content in more if tag == _EXPLICIT_EXTENSIONS), b""))
    dns = [content.decode("ascii", "replace") for tag, content in names if tag == _DNS_NAME]
    ips = [str(ipaddress.ip_address(content)) for tag, content in names if tag == _IP_ADDRESS]
    return Certificate(subject, issuer, _key(public_key), (*dns, *ips), bool(names))


def _alternative_names(extensions: bytes) -> list[_Element]:
    for _, sequence in _children(extensions):
        for _, extension in _children(sequence):
            (_, identifier), *_critical, (_, value) = _children(extension)
            if identifier.hex() == _SUBJECT_ALTERNATIVE_NAME:
                return _children(_children(value)[0][1])
    return []


def _key(public_key: bytes) -> str:
    (_, algorithm), (_, bits) = _children(public_key)
    (_, identifier), *parameters = _children(algorithm)
    name = identifier.hex()
    if name == _RSA:
        modulus = _children(_children(bits[1:])[0][1])[0][1]  # the first byte counts unused bits
        return f"RSA {int.from_bytes(modulus, 'big').bit_length()}"
    if name == _EC:
        return _CURVES.get(parameters[0][1].hex(), "of another curve")
    return _ALGORITHMS.get(name, "of another algorithm")


def _children(der: bytes) -> list[_Element]:
    children, at = [], 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size], "big"), at + size
        children.append((tag, der[at : at + length]))
        at += length
    return children
