"""Hostile HTTP/2 peers, frame by frame, and checks that a server still serves other clients."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from conftest import ANSWERS_WITHIN
from digitserve_client import DigitsClient

from bench.messages import framed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import ServiceProcess

LONG = bool(os.environ.get("CHAOS"))
PREDICT = "/digits.v1.DigitService/Predict"
INFER = "/inference.GRPCInferenceService/ModelInfer"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # with empty SETTINGS
HEADERS_FRAME, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 1, 3, 4, 6, 7, 8
BLANK = np.zeros((1, 784), np.uint8)


class Addressed(Protocol):
    """A server, in its own process or in the process of the test."""

    @property
    def address(self) -> str: ...


def resident(service: ServiceProcess) -> float:
    return service.series()["process_resident_memory_bytes", ()] / 2**20


def handles(service: ServiceProcess) -> float:
    return service.series()["process_open_fds", ()]


def still_serves(service: ServiceProcess) -> None:
    """Check that the server answers a call, a health check and a scrape."""
    with DigitsClient(service.address, timeout=ANSWERS_WITHIN) as client:
        assert len(client.predict(BLANK).digits) == 1
    still_reports(service)


def still_reports(service: ServiceProcess) -> None:
    """Check that health and metrics answer."""
    with DigitsClient(service.address) as client:
        assert client.is_serving(timeout=ANSWERS_WITHIN)
    assert service.series()["digits_serving", ()] == 1
    assert service.get("/healthz").startswith("SERVING")


def connected(service: Addressed, sent: bytes) -> socket.socket:
    host, port = service.address.rsplit(":", 1)
    peer = socket.create_connection((host, int(port)), ANSWERS_WITHIN)
    peer.settimeout(ANSWERS_WITHIN)
    with contextlib.suppress(ConnectionError):
        peer.sendall(sent)
    return peer


def attached(service: ServiceProcess, settings: bytes = b"") -> Peer:
    host, port = service.address.rsplit(":", 1)
    return Peer(host, int(port), settings)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(name: bytes, value: bytes) -> bytes:
    """Encode a header in HPACK without tables; name and value are shorter than 127 bytes."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


HEADERS = (
    literal(b":method", b"POST")
    + literal(b":scheme", b"http")
    + literal(b":path", PREDICT.encode())
    + literal(b":authority", b"x")
    + literal(b"content-type", b"application/grpc")
    + literal(b"te", b"trailers")
)


def frames(peer: socket.socket, until: int, within: float = ANSWERS_WITHIN) -> list[tuple[int, bytes]]:
    """Read frames, kind and payload, until one of kind `until`, the end of the connection or the timeout."""
    peer.settimeout(within)
    found, data = list[tuple[int, bytes]](), b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        while got := peer.recv(65536):
            data += got
            while len(data) >= 9 and len(data) >= (whole := 9 + int.from_bytes(data[:3])):
                found.append((data[3], data[9:whole]))
                data = data[whole:]
                if found[-1][0] == until:
                    return found
    return found


def each_frame(peer: socket.socket) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield kind, flags, stream and payload of each frame."""
    peer.settimeout(ANSWERS_WITHIN)
    data = b""
    while True:
        data += peer.recv(2**20)
        while len(data) >= 9 and len(data) >= (whole := 9 + int.from_bytes(data[:3])):
            yield data[3], data[4], int.from_bytes(data[5:9]), data[9:whole]
            data = data[whole:]


def ended_by_server(peer: socket.socket, within: float = ANSWERS_WITHIN) -> bool:
    """Return whether the connection ends within that many seconds."""
    peer.settimeout(within)
    try:
        while peer.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def kernel_waits(port: int) -> int:
    """Return the kernel's timeout, in milliseconds, of this process's connection to `port`."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(entry.name))) as end:
            if end.family != socket.AF_UNIX and end.getpeername()[1] == port:
                return end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    raise LookupError(port)


class Peer:
    """A peer that follows HTTP/2, answers every ping, and reads only when the test calls for it."""

    def __init__(self, host: str, port: int, settings: bytes = b"") -> None:
        self.socket = socket.create_connection((host, port), 10)
        self.socket.settimeout(60)
        self.socket.sendall(PREFACE[:24] + frame(SETTINGS, 0, 0, settings))
        self.ended = list[bytes]()
        """The last headers, or the reset, of each ended call, in order."""
        self.is_closed = False
        self._unread = b""
        self._over = set[int]()
        self._first_window = 65535
        self._windows = {0: 65535}
        self._unacknowledged = 1
        """SETTINGS frames sent."""

    def close(self) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        """Send frames unchanged. A closed connection is detected when reading."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(b"".join(frames))

    def call(self, stream: int, head: bytes, body: bytes, *, end: bool = True) -> None:
        """Send the headers, and the body as the server's windows allow; stop if the connection has ended."""
        self.send(frame(1, 4, stream, head))
        while body and not self.is_closed and stream not in self._over:
            room = min(16384, len(body), self._windows[0], self._windows.get(stream, self._first_window))
            if room <= 0:
                self.read()
                continue
            self.send(frame(0, int(end and room == len(body)), stream, body[:room]))
            self._windows[0] -= room
            self._windows[stream] = self._windows.get(stream, self._first_window) - room
            body = body[room:]

    def read(self, within: float = 60) -> bool:
        """Read received frames, or wait for some; return False at the timeout or at the end of the connection."""
        self.socket.settimeout(within)
        try:
            more = self.socket.recv(1 << 20)
        except TimeoutError:
            return False
        except ConnectionError:
            more = b""
        self.is_closed = not more
        self._unread += more
        while len(self._unread) >= 9 and len(self._unread) >= (whole := 9 + int.from_bytes(self._unread[:3])):
            kind, flags, stream = self._unread[3], self._unread[4], int.from_bytes(self._unread[5:9])
            self._take(kind, flags, stream, self._unread[9:whole])
            self._unread = self._unread[whole:]
        return not self.is_closed

    def synchronize(self) -> None:
        """Wait until the server has read every frame sent so far: it acknowledges a SETTINGS frame after them."""
        self.send(frame(SETTINGS, 0, 0, b""))
        self._unacknowledged += 1
        while self._unacknowledged and self.read():
            pass

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if (kind == RST_STREAM and stream not in self._over) or (kind == HEADERS_FRAME and flags & 1):
            self.ended.append(payload)
            self._over.add(stream)
        elif kind == WINDOW_UPDATE:
            before = self._windows.get(stream, self._first_window)
            self._windows[stream] = before + int.from_bytes(payload)
        elif kind == SETTINGS and not flags & 1:
            found = {payload[at + 1]: int.from_bytes(payload[at + 2 : at + 6]) for at in range(0, len(payload), 6)}
            more = found.get(4, self._first_window) - self._first_window
            self._first_window += more
            self._windows = {at: room + more if at else room for at, room in self._windows.items()}
            self.send(frame(SETTINGS, 1, 0, b""))
        elif kind == SETTINGS:
            self._unacknowledged -= 1
        elif kind == PING and not flags & 1:
            self.send(frame(PING, 1, 0, payload))

    def answers(self, calls: int = 1) -> list[bytes]:
        """Return the ends of that many calls, or of those that ended before the connection."""
        while len(self.ended) < calls and self.read():
            pass
        return self.ended[:calls]

    def is_ended(self, within: float) -> bool:
        """Return whether the server ends the connection while this peer answers every ping."""
        until = time.monotonic() + within
        while not self.is_closed and (left := until - time.monotonic()) > 0:
            self.read(left)
        return self.is_closed


class Loaded(NamedTuple):
    """The report of h2load: answered HTTP requests, with any status, and unanswered ones."""

    answered: int
    failed: int


def h2load(
    service: ServiceProcess, folder: Path, message: bytes, *options: str | int, path: str = PREDICT
) -> subprocess.Popen[str]:
    """Start a load of calls with the message. h2load is written in C, so that the load is not the bottleneck."""
    body = Path(folder) / f"{len(message)}.body"
    body.write_bytes(framed(message))
    headers = ("--header", "content-type: application/grpc", "--header", "te: trailers")
    command = ["h2load", "--threads=1", f"--data={body}", *headers, *map(str, options)]
    return subprocess.Popen([*command, f"http://{service.address}{path}"], stdout=subprocess.PIPE, text=True)


def loaded(process: subprocess.Popen[str]) -> Loaded:
    report, _ = process.communicate()
    assert process.returncode == 0, report
    found = re.search(r"requests: .* (\d+) done, (\d+) succeeded, (\d+) failed", report)
    assert found is not None, report
    return Loaded(int(found[2]), int(found[3]))
