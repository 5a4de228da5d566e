"""Bearer tokens: the authentication of calls."""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import TYPE_CHECKING, Any

from service.errors import CredentialsError, Unauthenticated
from service.security.file_watcher import FileWatcher, read_file, warn_if_world_readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from service.observability.metrics import Metrics

MIN_TOKEN_LENGTH = 16
"""Characters; a shorter token can be guessed."""

_FLAG = "--tokens-file"
_DIGEST = re.compile("sha256:[0-9a-f]{64}")


def missing_token() -> Unauthenticated:
    """Return the error for a call without a token."""
    return Unauthenticated("authorization: missing; expected metadata `authorization: Bearer TOKEN`")


def invalid_token() -> Unauthenticated:
    """Return the error for a call with a token that is not in the file."""
    return Unauthenticated("authorization: invalid bearer token")


class Tokens:
    """The bearer tokens of a file, one per line; `#` begins a comment, `sha256:` and 64 digits stand for a token.

    Only digests are kept. Raises CredentialsError, naming the file, if it contains no token or an invalid one. If the
    file becomes invalid later, the previous tokens stay active.
    """

    def __init__(self, path: Path, metrics: Metrics, log: FilteringBoundLogger) -> None:
        self._path = path
        self._log = log
        self._watcher = FileWatcher((path,), "tokens", metrics, log)
        self._subscriber: Callable[[tuple[bytes, ...]], None] | None = None
        self.digests = _read_digests(path)
        """SHA-256 of each token."""
        warn_if_world_readable(path, _FLAG, log)

    def subscribe(self, subscriber: Callable[[tuple[bytes, ...]], None]) -> None:
        """Call the subscriber, of a transport, with the digests now and after each change."""
        self._subscriber = subscriber
        subscriber(self.digests)

    def check(self, metadata: Iterable[tuple[str, Any]]) -> None:
        """Raise Unauthenticated unless the metadata has `authorization: Bearer` and a valid token."""
        authorization = next((str(value) for key, value in metadata if key == "authorization"), None)
        if authorization is None:
            raise missing_token()
        scheme, _, token = authorization.partition(" ")
        digest = hashlib.sha256(token.encode()).digest()
        # Compares every digest, each in constant time: the time does not depend on a guess.
        matches = sum(hmac.compare_digest(digest, known) for known in self.digests)
        if scheme.lower() != "bearer" or not matches:
            raise invalid_token()

    def poll(self) -> None:
        """Use the file if it has changed."""
        self._watcher.poll(self._load)

    def _load(self) -> dict[str, Any]:
        self.digests = _read_digests(self._path)
        warn_if_world_readable(self._path, _FLAG, self._log)
        if self._subscriber is not None:
            self._subscriber(self.digests)
        return {"tokens": len(self.digests)}


def _read_digests(path: Path) -> tuple[bytes, ...]:
    try:
        lines = read_file(path, _FLAG).decode().splitlines()
    except UnicodeDecodeError:
        raise CredentialsError(f"{_FLAG} {path}: is not text") from None
    digests = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        if _DIGEST.fullmatch(line):
            digests.append(bytes.fromhex(line.removeprefix("sha256:")))
        elif len(line) < MIN_TOKEN_LENGTH or not (line.isascii() and line.isprintable() and " " not in line):
            raise CredentialsError(
                f"{_FLAG} {path}: line {number} is no token; expected at least {MIN_TOKEN_LENGTH} printable "
                "characters without a space, or sha256: and 64 hexadecimal digits"
            )
        else:
            digests.append(hashlib.sha256(line.encode()).digest())
    if not digests:
        raise CredentialsError(f"{_FLAG} {path}: holds no token; expected one a line")
    return tuple(digests)
