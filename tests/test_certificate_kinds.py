"""Each kind of certificate serves our client or is rejected with the reason, at the start and in rotation."""

from __future__ import annotations

import datetime as dt
import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from certificates import HOSTS, Authority, Pair, private_pem, put
from conftest import ANSWERS_WITHIN, launch, on_both_transports, serving
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from digitserve_client import DigitsClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from conftest import ServiceProcess

    Make = Callable[[Authority], "Files"]

pytestmark = pytest.mark.slow  # a handshake of gRPC for each kind

EXPECTED_KEY = "expected RSA of 2048 bits or more, P-256 or P-384"


class Files(NamedTuple):
    """The content of the two files."""

    certificate: bytes
    key: bytes


def of(pair: Pair) -> Files:
    return Files(pair.certificate.read_bytes(), pair.key.read_bytes())


def with_key(key: ec.EllipticCurvePrivateKey | ed448.Ed448PrivateKey | ed25519.Ed25519PrivateKey) -> Make:
    return lambda authority: of(authority.issue("server", key=key))


def with_rsa(bits: int) -> Make:
    return lambda authority: of(authority.issue("server", key=rsa.generate_private_key(65537, bits)))


def with_form(form: PrivateFormat, passphrase: bytes = b"", *, is_rsa: bool = False) -> Make:
    def make(authority: Authority) -> Files:
        key = rsa.generate_private_key(65537, 2048) if is_rsa else ec.generate_private_key(ec.SECP256R1())
        pair = authority.issue("server", key=key)
        return Files(pair.certificate.read_bytes(), private_pem(key, form, passphrase))

    return make


def changed(change: Callable[[Files, Files], Files]) -> Make:
    """Apply `change` to a good pair and another one."""
    return lambda authority: change(of(authority.issue("server")), of(authority.issue("other")))


def with_intermediate(*, in_order: bool) -> Make:
    def make(authority: Authority) -> Files:
        below = authority.intermediate("below")
        server, between = of(below.issue("server")), below.certificate.read_bytes()
        return Files(server.certificate + between if in_order else between + server.certificate, server.key)

    return make


def by_openssl(*new_key: str, digest: str = "-sha256") -> Make:
    """Create a pair by openssl, of a kind that Python's `cryptography` does not support."""

    def make(authority: Authority) -> Files:
        folder, openssl = authority.certificate.parent, str(shutil.which("openssl"))
        names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        issuer = ["-CA", "root.crt", "-CAkey", "root.key"] if digest != "-sha256" else []
        for command in (
            ["genpkey", *new_key, "-out", "server.key"],
            [
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-subj",
                "/CN=root",
                "-out",
                "root.crt",
                "-keyout",
                "root.key",
            ],
            [
                "req",
                "-x509",
                "-new",
                "-key",
                "server.key",
                "-subj",
                "/CN=server",
                digest,
                *names,
                *issuer,
                "-out",
                "server.crt",
            ],
        ):
            subprocess.run([openssl, *command], cwd=folder, check=True, capture_output=True, timeout=ANSWERS_WITHIN)
        return Files((folder / "server.crt").read_bytes(), (folder / "server.key").read_bytes())

    return make


def der(files: Files) -> Files:
    return Files(ssl.PEM_cert_to_DER_cert(files.certificate.decode()), files.key)


def key_in_der(authority: Authority) -> Files:
    key = ec.generate_private_key(ec.SECP256R1())
    pair = authority.issue("server", key=key)
    return Files(pair.certificate.read_bytes(), key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))


def with_mark(files: Files) -> Files:
    return Files(*(b"\xef\xbb\xbf" + content for content in files))


def with_line_ends_of_windows(files: Files) -> Files:
    return Files(*(content.replace(b"\n", b"\r\n") for content in files))


TOMORROW = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
PSS = ("-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048")
RSA = ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")
SERVED: dict[str, Make] = {
    "RSA 2048": with_rsa(2048),
    "RSA 3072": with_rsa(3072),
    "RSA 4096": with_rsa(4096),
    "P-256": with_key(ec.generate_private_key(ec.SECP256R1())),
    "P-384": with_key(ec.generate_private_key(ec.SECP384R1())),
    "key in PKCS#1": with_form(PrivateFormat.TraditionalOpenSSL, is_rsa=True),
    "key in SEC1": with_form(PrivateFormat.TraditionalOpenSSL),
    "byte order mark": changed(lambda good, _: with_mark(good)),
    "CRLF": changed(lambda good, _: with_line_ends_of_windows(good)),
    "with intermediate": with_intermediate(in_order=True),
    "authority as server": lambda authority: of(authority.issue("server", is_ca=True)),
    "wildcard": lambda authority: of(authority.issue("server", names=(x509.DNSName("*.example.org"), *HOSTS))),
    "two keys": changed(lambda good, other: Files(good.certificate, good.key + other.key)),
    "certificate and key in one file": changed(lambda good, _: Files(good.certificate + good.key, good.key)),
}
REFUSED: dict[str, tuple[Make, str]] = {
    "RSA 1024": (with_rsa(1024), f"the key is RSA 1024; {EXPECTED_KEY}"),
    "RSA-PSS": (by_openssl(*PSS), f"the key is RSA-PSS; {EXPECTED_KEY}"),
    "P-521": (with_key(ec.generate_private_key(ec.SECP521R1())), f"the key is P-521; {EXPECTED_KEY}"),
    "secp256k1": (with_key(ec.generate_private_key(ec.SECP256K1())), f"the key is secp256k1; {EXPECTED_KEY}"),
    "brainpool": (
        with_key(ec.generate_private_key(ec.BrainpoolP256R1())),
        f"the key is of another curve; {EXPECTED_KEY}",
    ),
    "Ed25519": (with_key(ed25519.Ed25519PrivateKey.generate()), f"the key is Ed25519; {EXPECTED_KEY}"),
    "Ed448": (with_key(ed448.Ed448PrivateKey.generate()), f"the key is Ed448; {EXPECTED_KEY}"),
    "SHA-1": (
        by_openssl(*RSA, digest="-sha1"),
        "a signature of the chain is of SHA-1 or weaker; expected SHA-256 or stronger",
    ),
    "no alternative name": (
        lambda authority: of(authority.issue("server", names=())),
        "the certificate names no host; expected a subject alternative name",
    ),
    "encrypted key": (with_form(PrivateFormat.PKCS8, b"secret"), "is encrypted; expected a key without passphrase"),
    "encrypted key in SEC1": (
        with_form(PrivateFormat.TraditionalOpenSSL, b"secret"),
        "is encrypted; expected a key without passphrase",
    ),
    "intermediate first": (
        with_intermediate(in_order=False),
        "the chain begins with an issuer; expected the server's certificate first, then its issuers'",
    ),
    "another's key": (
        changed(lambda good, other: Files(good.certificate, other.key)),
        "the key is not that of the certificate",
    ),
    "another's key first": (
        changed(lambda good, other: Files(good.certificate, other.key + good.key)),
        "the key is not that of the certificate",
    ),
    "expired": (lambda authority: of(authority.issue("server", days=-1)), "certificate has expired"),
    "not yet valid": (lambda authority: of(authority.issue("server", begins=TOMORROW)), "certificate is not yet valid"),
    "DER": (changed(lambda good, _: der(good)), "is DER; expected PEM"),
    "key in DER": (key_in_der, "is DER; expected PEM"),
    "empty certificate": (changed(lambda good, _: Files(b"", good.key)), "is empty; expected a certificate in PEM"),
    "empty key": (changed(lambda good, _: Files(good.certificate, b"\n")), "is empty; expected a private key in PEM"),
    "cut short": (changed(lambda good, _: Files(good.certificate[:300], good.key)), "holds no certificate in PEM"),
    "swapped": (changed(lambda good, _: Files(good.key, good.certificate)), "holds no certificate in PEM"),
    "damaged": (
        changed(lambda good, _: Files(good.certificate.replace(b"MII", b"MIJ", 1), good.key)),
        "not a certificate and its key in PEM",
    ),
}
needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl: install it")


def kinds(names: Iterable[str]) -> pytest.MarkDecorator:
    """Parametrize by the kinds; some need openssl."""
    made_by_openssl = {"RSA-PSS", "SHA-1"}
    return pytest.mark.parametrize(
        "kind", [pytest.param(name, marks=needs_openssl if name in made_by_openssl else ()) for name in names]
    )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


def put_both(place: Pair, files: Files) -> None:
    put(place.key, files.key)
    put(place.certificate, files.certificate)


def presented(service: ServiceProcess) -> str:
    """Return the certificate that a new connection receives."""
    host, port = service.address.rsplit(":", 1)
    return ssl.get_server_certificate((host, int(port)), timeout=ANSWERS_WITHIN)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Pair:
    """The paths of the files of the server that the tests of a transport share."""
    return Authority(tmp_path_factory.mktemp(transport)).issue("tls")


@pytest.fixture(scope="module")
def rotating(model_path: Path, place: Pair) -> Iterator[ServiceProcess]:
    """A server with TLS; each test changes its files."""
    with serving(model_path, "--tls-cert", place.certificate, "--tls-key", place.key) as service:
        yield service


@kinds(SERVED)
def test_a_usable_kind_serves_our_client(
    rotating: ServiceProcess, place: Pair, authority: Authority, kind: str
) -> None:
    files = SERVED[kind](authority)
    put_both(place, files)
    rotating.wait_for("credentials loaded", kind="tls")
    assert presented(rotating).strip().encode() in files.certificate.removeprefix(b"\xef\xbb\xbf").replace(b"\r", b"")
    with DigitsClient(rotating.address, timeout=ANSWERS_WITHIN, tls_ca=authority.certificate) as client:
        assert len(client.predict(np.zeros((1, 784), np.uint8)).digits) == 1


@kinds(REFUSED)
def test_an_unusable_kind_is_rejected_in_rotation_with_its_reason(
    rotating: ServiceProcess, place: Pair, authority: Authority, kind: str
) -> None:
    make, sentence = REFUSED[kind]
    files, before, loaded = make(authority), presented(rotating), count_of_loaded(rotating)
    expiry = rotating.series()["digits_tls_expiry_timestamp_seconds", ()]
    put_both(place, files)
    while sentence not in rotating.wait_for("credentials rejected", kind="tls")["reason"]:
        pass  # the server read the key before the test wrote the certificate
    assert presented(rotating) == before
    assert count_of_loaded(rotating) == loaded
    assert rotating.series()["digits_tls_expiry_timestamp_seconds", ()] == expiry


def count_of_loaded(service: ServiceProcess) -> float:
    return service.series().get(("digits_credentials_rotations_total", ("tls", "loaded")), 0.0)


@pytest.mark.slow
@kinds(REFUSED)
@on_both_transports
def test_an_unusable_kind_is_rejected_at_the_start_with_its_reason(
    model_path: Path, tmp_path: Path, authority: Authority, kind: str
) -> None:
    make, sentence = REFUSED[kind]
    own = Pair(tmp_path / "tls.crt", tmp_path / "tls.key")
    put_both(own, make(authority))
    files = ("--tls-cert", own.certificate, "--tls-key", own.key)
    service = launch("--model", model_path, "--port", "0", "--metrics-port", "0", *files)
    try:
        assert service.ended() == 1
        assert service.lines[-1]["event"] == "cannot start"
        assert service.lines[-1]["reason"].startswith(("--tls-cert", "--tls-key"))
        assert sentence in service.lines[-1]["reason"]
    finally:
        service.close()
