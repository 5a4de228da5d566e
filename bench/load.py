"""Load on a server: h2load of nghttp2 for throughput, which is C and no limit itself; grpcio's client for latency."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np

from bench import http_call
from bench.messages import HTTP_INFER, framed, http_infer_headers

if TYPE_CHECKING:
    from bench.servers import Running

_GRPC_FRAME = 5  # bytes before each message
_GRPC_HEADERS = {"content-type": "application/grpc", "te": "trailers"}


class LoadError(Exception):
    """A measurement failed, or its answers were wrong; the text has the difference."""


@dataclass(frozen=True)
class Load:
    """The result of one measurement: calls/s, the server's CPU per call and the latency, in microseconds."""

    rate: float
    cpu_us: float
    p50: float
    p99: float
    answered: float = 1.0
    """The share of answered calls: below 1 only in open loop, if a slow server rejects some."""


H2LOAD_MISSING = "h2load is not installed (on Debian and Ubuntu: apt install nghttp2-client)"


def have_h2load() -> bool:
    """Whether the load generator is installed."""
    return shutil.which("h2load") is not None


def calls(
    running: Running,
    path: str,
    messages: list[bytes],
    *,
    connections: int,
    in_flight: int,
    count: int,
    rate: float = 0.0,
    threads: int = 1,
) -> Load:
    """`count` calls of `path`, each sending these messages, `in_flight` on each of the connections at any time.

    With `rate` they are sent at that many a second in all, whether or not earlier ones are answered (open loop).
    Raises LoadError if an answer is no success. Except in an open loop, it must also be as long as the first one of the
    same messages. Over HTTP/1.1, calls in flight on a connection are pipelined; servers answer them one by one.
    """
    length = _reply_length(running, path, messages)
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder) / "body", Path(folder) / "log"
        body.write_bytes(messages[0] if path == HTTP_INFER else b"".join(map(framed, messages)))
        options = {
            "requests": str(count),  # never a duration: at its end h2load cancels calls, which can crash Triton 2.51
            "clients": str(connections),
            "max-concurrent-streams": str(in_flight),
            "threads": str(threads),
            "data": str(body),
            "log-file": str(log),
            **({"rps": f"{rate / connections:.3f}"} if rate else {}),
        }
        command = ["h2load", *(f"--{name}={value}" for name, value in options.items())]
        command += _target(running, path, messages[0])
        cpu, began = running.cpu_seconds(), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        seconds, cpu = time.perf_counter() - began, running.cpu_seconds() - cpu
        answered = _received(done.stdout, count) / (count * length)
        starts, _, took = np.loadtxt(log, dtype=np.int64, unpack=True, ndmin=2)
    # From the first call sent to the last one answered, without connecting.
    span = (starts + took).max() - starts.min()
    p50, p99 = np.percentile(took, (50, 99))
    if answered != 1 and not rate:
        raise LoadError(f"{running.server.name}: h2load received {answered:.2%} of the bytes that replies have")
    return Load(count / float(min(seconds, span / 1e6)), cpu / count * 1e6, float(p50), float(p99), answered)


def _target(running: Running, path: str, message: bytes) -> list[str]:
    """Return h2load's arguments for the server, the protocol and its headers."""
    if path == HTTP_INFER:
        return ["--h1", *_header_options(http_infer_headers(message)), f"http://{running.http_address}{path}"]
    headers = _header_options(_GRPC_HEADERS)
    if running.address.startswith("unix:"):
        return [*headers, f"--base-uri={running.address}", f"http://localhost{path}"]
    return [*headers, f"http://{running.address}{path}"]


def _header_options(headers: dict[str, str]) -> list[str]:
    return [f"--header={name}: {value}" for name, value in headers.items()]


def one_after_the_other(running: Running, path: str, messages: list[bytes], count: int) -> Load:
    """`count` calls by grpcio's client, the next when the last is answered: latency as a user of Python sees it."""
    times = np.empty(count)
    with grpc.insecure_channel(running.address) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
        for message in messages[:1] * 100:
            call(message, timeout=60)
        cpu, began = running.cpu_seconds(), time.perf_counter()
        for i in range(count):
            sent = time.perf_counter()
            call(messages[i % len(messages)], timeout=60)
            times[i] = time.perf_counter() - sent
        seconds, cpu = time.perf_counter() - began, running.cpu_seconds() - cpu
    p50, p99 = np.percentile(times * 1e6, (50, 99))
    return Load(count / seconds, cpu / count * 1e6, float(p50), float(p99))


def _reply_length(running: Running, path: str, messages: list[bytes]) -> int:
    """Return the bytes of a reply, from a call of a client that knows the protocol's statuses."""
    if path == HTTP_INFER:
        try:
            return len(http_call.infer(running.http_address, messages[0]))
        except http_call.HttpCallError as e:
            raise LoadError(f"{running.server.name} rejects {path}: {e}") from e
    with grpc.insecure_channel(running.address, [("grpc.max_receive_message_length", -1)]) as channel:
        try:
            if path.endswith("Stream"):
                stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(path)
                replies = list(stream(iter(messages), timeout=60))
            else:
                unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
                replies = [unary(messages[0], timeout=60)]
        except grpc.RpcError as e:
            raise LoadError(f"{running.server.name} rejects {path}: {e.details()}") from e
    if len(replies) != len(messages):
        raise LoadError(f"{running.server.name} answered {len(replies)} of {len(messages)} messages")
    return sum(len(reply) + _GRPC_FRAME for reply in replies)


def _received(report: str, count: int) -> int:
    """Bytes of replies in the report of h2load."""
    succeeded = re.search(r"(\d+) succeeded", report)
    received = re.search(r"traffic:.*\((\d+)\) data", report)
    if not succeeded or not received or int(succeeded[1]) != count:
        raise LoadError(f"h2load: {report[-800:]}")
    return int(received[1])
