"""Files that change while the server runs: polled on a thread, each change used completely or not at all."""

from __future__ import annotations

import asyncio
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from service.errors import CredentialsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from service.observability.metrics import Metrics

POLL_INTERVAL = 0.25
"""Seconds between two polls of the files; a change is used at the second poll that finds it."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_RETRY_INTERVAL = 1.0
"""Seconds between two attempts at rejected files that have not changed since."""

_Fingerprint = tuple[tuple[int, ...], ...]


class PolledFiles(Protocol):
    """Credentials that come from files."""

    def poll(self) -> None:
        """Use the files if they have changed."""
        ...


async def watch(files: PolledFiles, log: FilteringBoundLogger) -> None:
    """Poll the files until cancelled, on a thread: calls and handshakes do not wait for a volume that hangs."""
    while True:
        await asyncio.sleep(POLL_INTERVAL)
        try:
            await asyncio.to_thread(files.poll)
        except Exception:  # the previous credentials stay active, and a later poll may succeed
            log.exception("credentials poll failed")


class FileWatcher:
    """Detects changes of files, and logs and counts whether they were loaded or rejected; `kind` labels both."""

    def __init__(self, paths: Iterable[Path], kind: str, metrics: Metrics, log: FilteringBoundLogger) -> None:
        self._paths = tuple(paths)
        self._kind = kind
        self._metrics = metrics
        self._log = log
        self._loaded = self._polled = self._fingerprint()
        self._rejection = ""
        self._retry_at = 0.0

    def poll(self, load: Callable[[], dict[str, Any]]) -> None:
        """Call `load` if the files have changed and are the same as at the poll before; it returns fields for the log.

        So a certificate whose key is written a moment later is not rejected. Rejected files are loaded again every
        second: a certificate may become valid, or a folder readable, without a change of the files. A rejection for
        the same reason as the last one is neither logged nor counted again.
        """
        before, fingerprint = self._polled, self._fingerprint()
        self._polled = fingerprint
        if fingerprint != before or (fingerprint == self._loaded and not self._is_retry_due()):
            return
        if fingerprint != self._loaded:
            self._rejection = ""
        self._loaded, self._retry_at = fingerprint, time.monotonic() + _RETRY_INTERVAL
        try:
            fields = load()
        except CredentialsError as e:
            self._reject(str(e))
        except Exception as e:  # noqa: BLE001 (a bug, handled as a rejection: retried, and logged once)
            self._reject(f"{type(e).__name__}: {e}")
        else:
            self._rejection = ""
            self._metrics.record_reload(self._kind, "loaded")
            self._log.info("credentials loaded", kind=self._kind, **fields)

    def _is_retry_due(self) -> bool:
        return bool(self._rejection) and time.monotonic() >= self._retry_at

    def _reject(self, reason: str) -> None:
        if reason == self._rejection:
            return
        self._rejection = reason
        self._metrics.record_reload(self._kind, "rejected")
        self._log.error("credentials rejected", kind=self._kind, reason=reason, active="the previous credentials")

    def _fingerprint(self) -> _Fingerprint:
        return tuple(map(_file_fingerprint, self._paths))


def read_file(path: Path, flag: str) -> bytes:
    """Return the content of the file that `flag` names; CredentialsError if it cannot be read."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # reading a pipe might never end
            raise CredentialsError(f"{flag} {path}: is no regular file")
        return path.read_bytes().removeprefix(BYTE_ORDER_MARK)  # editors on Windows write one
    except FileNotFoundError:
        raise CredentialsError(f"{flag} {path}: no such file") from None
    except OSError as e:
        raise CredentialsError(f"{flag} {path}: cannot be read: {e.strerror}") from None


def warn_if_world_readable(path: Path, flag: str, log: FilteringBoundLogger) -> None:
    """Warn of a secret that every user of the machine can read."""
    with suppress(OSError):
        if path.stat().st_mode & stat.S_IROTH:
            log.warning("secret file world-readable", file=f"{flag} {path}", expected="mode 0600 or 0640")


def _file_fingerprint(path: Path) -> tuple[int, ...]:
    """Return a value that changes with the content of the file and with its permissions."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode, status.st_uid, status.st_gid)
