"""The Unix domain socket of the server: the option's value, and the file of the socket from its start to its end."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from service.errors import AddressInUse

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PATH_BYTES = 95
"""macOS allows 103 bytes and Linux 107; a suffix of the process takes up to 8."""

_UMASK = 0o117
"""The owner and the group of the file may connect: its mode is 0660."""

_ADDRESS = re.compile(r"unix:(?://(?=/))?(?!//)([^%?#]+)")
"""gRPC reads the address as a URI, in which `%`, `?` and `#` have a meaning."""

_PROBE_TIMEOUT = 5.0
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_EXPECTED = f"expected unix:PATH, the path printable, without %, ? and #, of at most {MAX_PATH_BYTES} bytes"


def parse_address(text: str) -> str:
    """Return the path of `unix:PATH`; ValueError for anything else, TLS and abstract names included."""
    match = _ADDRESS.fullmatch(text)
    if match is None or not match[1].isprintable() or match[1].endswith("/"):
        raise ValueError(_EXPECTED)
    if (size := len(os.fsencode(match[1]))) > MAX_PATH_BYTES:
        raise ValueError(f"the path has {size} bytes; {_EXPECTED}")
    return match[1]


class UnixSocketFile:
    """The file of a listening Unix domain socket.

    The socket is bound under another name and then renamed, so `path` always leads to a socket that listens. One step
    replaces the file of a server that has died. The kernel shows the socket as `bound_path`.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.bound_path = f"{path}.{os.getpid()}"
        self._identity: tuple[int, int, int] | None = None

    def ensure_bindable(self) -> None:
        """Raise AddressInUse, with the reason, unless the server can listen here and no other server does."""
        self._ensure_free()
        try:
            with self._umask(), socket.socket(socket.AF_UNIX) as trial:
                trial.bind(self.bound_path)
        except OSError as e:
            raise _bind_error(self.path, e) from None
        finally:
            self._unlink_bound()

    @contextlib.contextmanager
    def binding(self) -> Iterator[str]:
        """Yield the name under which to bind and listen; the file has its mode and its path afterwards."""
        self._unlink_bound()
        with self._umask():
            yield self.bound_path
        try:
            self._identity = _identity(Path(self.bound_path))
            Path(self.bound_path).rename(self.path)
        except OSError as e:
            raise _bind_error(self.path, e) from None

    def remove(self) -> None:
        """Remove the file, unless it is another server's by now."""
        with contextlib.suppress(OSError):
            if _identity(self.path) == self._identity:
                self.path.unlink()

    def _ensure_free(self) -> None:
        try:
            if not stat.S_ISSOCK(self.path.lstat().st_mode):
                raise AddressInUse(f"--listen: {self.path} is no socket; expected the path of a socket or of no file")
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(_PROBE_TIMEOUT)
                probe.connect(str(self.path))
        except (FileNotFoundError, ConnectionRefusedError):  # the server that listened there has ended
            return
        except TimeoutError:
            pass  # its backlog is full
        except OSError as e:
            raise _bind_error(self.path, e) from None
        raise AddressInUse(
            f"--listen: a server listens on {self.path}; expected a path of its own, or stop that server"
        )

    @contextlib.contextmanager
    def _umask(self) -> Iterator[None]:
        previous = os.umask(_UMASK)
        try:
            yield
        finally:
            os.umask(previous)

    def _unlink_bound(self) -> None:
        with contextlib.suppress(OSError):
            Path(self.bound_path).unlink()


def _identity(path: Path) -> tuple[int, int, int]:
    """Return the identity that a rename keeps; an inode alone is soon reused."""
    status = path.lstat()
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _bind_error(path: Path, error: OSError) -> AddressInUse:
    """Describe the error for the operator."""
    reason = f"cannot create {path}: {error.strerror or error}; expected a path for a socket"
    if error.errno == errno.ENOENT:
        reason = f"the folder {path.parent} does not exist; expected one that does"
    elif error.errno == errno.ENOTDIR:
        reason = f"{path.parent} is no folder; expected one"
    elif error.errno in _FORBIDDEN:
        reason = f"not permitted to create {path}; expected a folder that this user may write to"
    return AddressInUse(f"--listen: {reason}")
