"""The HTTP port for metrics: its answers, and its limits for hostile peers."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from conftest import ANSWERS_WITHIN, launch, serving
from prometheus_client import CollectorRegistry, Gauge

from service.observability.metrics_server import MetricsServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import ServiceProcess


@pytest.fixture
def endpoint() -> Iterator[MetricsServer]:
    registry = CollectorRegistry()
    Gauge("digits", "A gauge.", registry=registry).set(7)
    http_endpoint = MetricsServer(registry, is_serving=lambda: True)
    http_endpoint.start("127.0.0.1", 0)
    yield http_endpoint
    http_endpoint.stop()


def request(port: int, method: str, path: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWERS_WITHIN)) as connection:
        connection.request(method, path, headers=headers)
        reply = connection.getresponse()
        return reply, reply.read()


def port_of(service: ServiceProcess) -> int:
    port = urlsplit(service.metrics_url).port
    assert port is not None
    return port


def exchange(port: int, sent: bytes) -> bytes:
    """Send bytes; return the reply until the connection ends."""
    with socket.create_connection(("127.0.0.1", port), ANSWERS_WITHIN) as peer:
        received = b""
        with contextlib.suppress(ConnectionError):
            peer.sendall(sent)
        with contextlib.suppress(ConnectionError):
            while more := peer.recv(65536):
                received += more
        return received


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/", "/nothing"])
def test_head_has_the_headers_of_get_and_no_body(endpoint: MetricsServer, path: str) -> None:
    got, body = request(endpoint.port, "GET", path)
    head, nothing = request(endpoint.port, "HEAD", path)
    assert body
    assert nothing == b""
    assert (head.status, head.headers["Content-Type"]) == (got.status, got.headers["Content-Type"])
    raw = exchange(endpoint.port, f"HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert raw.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"])
@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
def test_other_methods_are_not_allowed(endpoint: MetricsServer, method: str, path: str) -> None:
    reply, body = request(endpoint.port, method, path)
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD")
    assert body == b"expected GET or HEAD\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"rubbish\r\n\r\n", b"400"),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 2**20 + b"\r\n\r\n", b"431"),
        (b"".join((b"GET / HTTP/1.1\r\n", *(b"A%d: x\r\n" % i for i in range(100_000)), b"\r\n")), b"431"),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n", b"413"),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFF\r\n" + b"x" * 10_000, b"413"),
    ],
    ids=["rubbish", "path", "a long header", "many headers", "a large body", "a large chunk"],
)
def test_a_bad_request_is_rejected_without_naming_the_software(
    endpoint: MetricsServer, sent: bytes, status: bytes
) -> None:
    received = exchange(endpoint.port, sent)
    # A reset of the connection can discard the reply.
    if received:
        assert received.split(b" ")[1] == status
    assert b"Server:" not in received
    assert b"ython" not in received
    assert b"waitress" not in received
    assert request(endpoint.port, "GET", "/healthz")[0].status == 200


def test_no_answer_names_the_software(endpoint: MetricsServer) -> None:
    for path in ("/metrics", "/healthz", "/nothing"):
        reply, _ = request(endpoint.port, "GET", path)
        assert "Server" not in reply.headers


def test_headers_that_never_end_are_not_kept(model_path: Path) -> None:
    with serving(model_path) as service, contextlib.ExitStack() as peers:
        port = port_of(service)
        request(port, "GET", "/metrics")
        before = service.series()["process_resident_memory_bytes", ()]
        for _ in range(60):
            peer = peers.enter_context(socket.create_connection(("127.0.0.1", port), ANSWERS_WITHIN))
            with contextlib.suppress(OSError):  # the server has closed the connection
                peer.sendall(b"GET /metrics HTTP/1.1\r\n")
                for _ in range(100):
                    peer.sendall(b"A: " + b"x" * 60_000 + b"\r\n")
        assert request(port, "GET", "/healthz")[0].status == 200
        assert service.series()["process_resident_memory_bytes", ()] - before < 60e6


def test_a_client_that_hangs_up_in_a_scrape_leaves_no_traceback_in_the_log(model_path: Path) -> None:
    service = launch("--model", model_path, "--port", "0", "--metrics-port", "0")
    try:
        service.wait_for("serving")
        port = port_of(service)
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", port), ANSWERS_WITHIN) as peer:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # close with a reset
                peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 4)
        assert request(port, "GET", "/healthz")[0].status == 200
        assert service.stop() == 0  # every line has been read as JSON
        assert {line["event"] for line in service.lines} <= {"starting", "serving", "stopping", "stopped"}
    finally:
        service.close()


def test_log_lines_of_libraries_are_events_of_the_log(tmp_path: Path) -> None:
    script = """
import logging, threading, warnings
from service.observability.logs import capture_libraries, make_logger
capture_libraries(make_logger("json", "info"))
try:
    raise ValueError("inside")
except ValueError:
    for _ in range(1000):
        logging.getLogger("a.library").exception("it failed: %s", "why")
warnings.warn("old")
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    first, *rest = (json.loads(line) for line in done.stderr.splitlines())
    assert (first["event"], first["logger"], first["message"]) == ("library log", "a.library", "it failed: why")
    assert first["exception"][0]["exc_value"] == "inside"
    assert rest[-1]["event"] == "thread crashed"
    assert rest[-1]["thread"] == "worker"
    assert rest[-1]["exception"][0]["exc_type"] == "ZeroDivisionError"
    assert len(rest) <= 3
