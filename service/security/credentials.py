"""Who is let in, and under which certificate: files that are read again when they change, each whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import ssl
import stat
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from service.errors import CredentialsError, Unauthenticated
from service.security.certificates import BYTE_ORDER_MARK
from service.security.handshake import name_of, verify_in_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from service.observability.metrics import Metrics

SHORTEST_TOKEN = 16
"""Characters: what is shorter can be guessed."""
LOOK_AGAIN = 0.25
"""Seconds between two looks at whether files have changed; of two that find them alike the second takes them up."""

_RETRY_INTERVAL = 1.0
"""Seconds between two attempts at files that were refused and have not changed since."""

_DIGEST = re.compile("sha256:[0-9a-f]{64}")
_Stamps = tuple[tuple[int, ...], ...]


async def watch(files: Tls | Tokens, log: FilteringBoundLogger) -> None:
    """Look after them for ever, on a thread: neither calls nor handshakes wait for a volume that does not answer."""
    while True:
        await asyncio.sleep(LOOK_AGAIN)
        try:
            await asyncio.to_thread(files.poll)
        except Exception:  # whatever failed, those before are in force and later looks may succeed
            log.exception("credentials poll failed")


def missing_token() -> Unauthenticated:
    """What a call hears that brings no token."""
    return Unauthenticated("authorization: missing; expected metadata `authorization: Bearer TOKEN`")


def invalid_token() -> Unauthenticated:
    """What a call hears that brings another than ours."""
    return Unauthenticated("authorization: not `Bearer` and a token that is known here")


class Tokens:
    """The bearer tokens of a file, one a line; `#` begins a comment, `sha256:` with 64 digits stands for a token.

    Only digests are kept. Raises CredentialsError, naming the file, where it holds no token or what is none. A file
    that changes to such a one later leaves the tokens before it in force.
    """

    def __init__(self, path: Path, metrics: Metrics, log: FilteringBoundLogger) -> None:
        self._path = path
        self._log = log
        self._files = FileWatcher((path,), "tokens", metrics, log)
        self._use: Callable[[tuple[bytes, ...]], None] | None = None
        self.digests = _read_tokens(path)
        """SHA-256 of each."""
        _warn_if_exposed(path, "--tokens-file", log)

    def subscribe(self, use: Callable[[tuple[bytes, ...]], None]) -> None:
        """Have `use`, a transport's own, take the digests, now and whenever they are others."""
        self._use = use
        use(self.digests)

    def check(self, metadata: Iterable[tuple[str, Any]]) -> None:
        """Unauthenticated unless the metadata of a call brings `authorization: Bearer` with one of the tokens."""
        presented = next((str(value) for key, value in metadata if key == "authorization"), None)
        if presented is None:
            raise missing_token()
        scheme, _, token = presented.partition(" ")
        digest = hashlib.sha256(token.encode()).digest()
        # Every digest is compared, each in constant time: how long it takes tells nothing of how near a guess was.
        known = sum(hmac.compare_digest(digest, one) for one in self.digests)
        if scheme.lower() != "bearer" or not known:
            raise invalid_token()

    def poll(self) -> None:
        """Take up what the file holds now, where it has changed."""
        self._files.read(self._read)

    def _read(self) -> dict[str, Any]:
        self.digests = _read_tokens(self._path)
        _warn_if_exposed(self._path, "--tokens-file", self._log)
        if self._use is not None:
            self._use(self.digests)
        return {"tokens": len(self.digests)}


class Pem(NamedTuple):
    """What the files of TLS held at one moment; without `client_ca` callers need no certificate."""

    chain: bytes
    key: bytes
    client_ca: bytes | None


class _Found(NamedTuple):
    """Usable files, when the certificate expires in Unix time, and what the log says of them."""

    pem: Pem
    expires: float
    about: dict[str, Any]


class Tls:
    """A certificate with its key, and the CA of the callers' certificates where callers need one.

    Connections that begin get what `poll` last found good; files that change to something unusable leave those before
    in force. Raises CredentialsError, naming the file, for what is missing, unreadable, no PEM, mismatched or expired.
    """

    def __init__(
        self, certificate: Path, key: Path, client_ca: Path | None, metrics: Metrics, log: FilteringBoundLogger
    ) -> None:
        self._paths = (certificate, key, client_ca)
        self._metrics = metrics
        self._log = log
        self._files = FileWatcher([path for path in self._paths if path], "tls", metrics, log)
        self._use: Callable[[Pem], None] | None = None
        self._found = self._read()
        metrics.tls_expiry.set(self._found.expires)
        log.info("certificate loaded", **self._found.about)

    @property
    def needs_client_certificates(self) -> bool:
        """Whether callers have to show one."""
        return self._paths[2] is not None

    def subscribe(self, use: Callable[[Pem], None]) -> None:
        """Have `use`, a transport's own, take what the files hold, now and whenever that is something else.

        It raises ValueError for what the transport cannot use, which becomes CredentialsError.
        """
        self._use = use
        self._used(self._found.pem)

    def poll(self) -> None:
        """Take up what the files hold now, where they have changed."""
        self._files.read(self._take_up)

    def _take_up(self) -> dict[str, Any]:
        found = self._read()
        self._used(found.pem)
        self._found = found
        self._metrics.tls_expiry.set(found.expires)
        return found.about

    def _read(self) -> _Found:
        certificate, key, client_ca = self._paths
        chain, private = _content(certificate, "--tls-cert"), _content(key, "--tls-key")
        trusted = None if client_ca is None else _content(client_ca, "--tls-client-ca")
        pem = Pem(chain, private, trusted)
        peer, callers = verify_in_memory(certificate, key, client_ca, pem)
        _warn_if_exposed(key, "--tls-key", self._log)
        expires = ssl.cert_time_to_seconds(str(peer["notAfter"]))
        about = {"subject": name_of(peer), "expires": datetime.fromtimestamp(expires, UTC).isoformat()}
        return _Found(pem, expires, about if client_ca is None else {**about, "client_ca": callers})

    def _used(self, pem: Pem) -> None:
        try:
            if self._use is not None:
                self._use(pem)
        except ValueError as e:
            certificate, key, client_ca = self._paths
            with_ca = "" if client_ca is None else f", --tls-client-ca {client_ca}"
            raise CredentialsError(f"--tls-cert {certificate}, --tls-key {key}{with_ca}: cannot be used: {e}") from None


class FileWatcher:
    """Whether files have changed since they were last read, and what became of that."""

    def __init__(self, paths: Iterable[Path], what: str, metrics: Metrics, log: FilteringBoundLogger) -> None:
        self._paths = tuple(paths)
        self._what = what
        self._metrics = metrics
        self._log = log
        self._read = self._looked_at = self._stamps()
        self._refusal = ""
        self._retry_at = 0.0

    def read(self, content: Callable[[], dict[str, Any]]) -> None:
        """Have `content` read files that are others than before, and as they were at the last look.

        So a certificate whose key comes a moment later is not refused. It gives what the log says of them. Files that
        were refused are tried again while they stand: a certificate may become valid, a folder readable, without any
        change of theirs. A refusal for the reason of the last one is neither logged nor counted again.
        """
        before, stamps = self._looked_at, self._stamps()
        self._looked_at = stamps
        if stamps != before or (stamps == self._read and not self._is_due()):
            return
        if stamps != self._read:
            self._refusal = ""
        self._read, self._retry_at = stamps, time.monotonic() + _RETRY_INTERVAL
        try:
            about = content()
        except CredentialsError as e:
            self._refuse(str(e))
            return
        except Exception as e:  # noqa: BLE001 (a fault of ours: refused as well, and so tried again and told once)
            self._refuse(f"{type(e).__name__}: {e}")
            return
        self._refusal = ""
        self._metrics.credential_rotations.labels(self._what, "loaded").inc()
        self._metrics.last_reload_successful.labels(self._what).set(1)
        self._log.info("credentials loaded", kind=self._what, **about)

    def _is_due(self) -> bool:
        return bool(self._refusal) and time.monotonic() >= self._retry_at

    def _refuse(self, reason: str) -> None:
        if reason == self._refusal:
            return
        self._refusal = reason
        self._metrics.credential_rotations.labels(self._what, "rejected").inc()
        self._metrics.last_reload_successful.labels(self._what).set(0)
        self._log.error("credentials rejected", kind=self._what, reason=reason, active="the previous credentials")

    def _stamps(self) -> _Stamps:
        return tuple(map(_stamp, self._paths))


def _stamp(path: Path) -> tuple[int, ...]:
    """Changes with what the file holds, and with who may read it."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode, found.st_uid, found.st_gid)


def _warn_if_exposed(path: Path, flag: str, log: FilteringBoundLogger) -> None:
    """A secret that every user of the machine may read is one no more."""
    with suppress(OSError):
        if path.stat().st_mode & stat.S_IROTH:
            log.warning("secret file world-readable", file=f"{flag} {path}", expected="mode 0600 or 0640")


def _content(path: Path, flag: str) -> bytes:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # reading a pipe might never end
            raise CredentialsError(f"{flag} {path}: is no regular file")
        return path.read_bytes().removeprefix(BYTE_ORDER_MARK)  # as editors of Windows put it there
    except FileNotFoundError:
        raise CredentialsError(f"{flag} {path}: no such file") from None
    except OSError as e:
        raise CredentialsError(f"{flag} {path}: cannot be read: {e.strerror}") from None


def _read_tokens(path: Path) -> tuple[bytes, ...]:
    try:
        lines = _content(path, "--tokens-file").decode().splitlines()
    except UnicodeDecodeError:
        raise CredentialsError(f"--tokens-file {path}: is not text") from None
    digests = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        if _DIGEST.fullmatch(line):
            digests.append(bytes.fromhex(line.removeprefix("sha256:")))
        elif len(line) < SHORTEST_TOKEN or not (line.isascii() and line.isprintable() and " " not in line):
            raise CredentialsError(
                f"--tokens-file {path}: line {number} is no token; expected at least {SHORTEST_TOKEN} printable "
                "characters without a space, or sha256: and 64 hexadecimal digits"
            )
        else:
            digests.append(hashlib.sha256(line.encode()).digest())
    if not digests:
        raise CredentialsError(f"--tokens-file {path}: holds no token; expected one a line")
    return tuple(digests)
