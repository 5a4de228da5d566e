"""The page's client over HTTP: servers that are not digitserve, and the addresses that get a token."""

from __future__ import annotations

import contextlib
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from conftest import ANSWERS_WITHIN
from digitserve_client.address import is_loopback, validate_url
from digitserve_client.messages import DigitsError

from playground.http_client import HttpClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Answer = tuple[int, dict[str, str], bytes]


class Server(ThreadingHTTPServer):
    """Gives each request the same answer, and keeps their headers."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.requests: list[dict[str, str]] = []
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.requests.append({key.lower(): value for key, value in self.headers.items()})
        status, headers, body = self.server.answer
        self.send_response(status)
        for key, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def answering(status: int, body: bytes, **headers: str) -> Iterator[Server]:
    with Server((status, headers, body)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


async def network_of(address: str, within: float = ANSWERS_WITHIN, token_file: Path | None = None) -> None:
    async with HttpClient(address, timeout=within, token_file=token_file) as client:
        await client.network()


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (200, b"<html>", "UNKNOWN", "{}: 200 OK; expected the HTTP port of a server"),
        (200, b"7", "UNKNOWN", "{}: 200 OK; expected the HTTP port of a server"),
        (302, b"", "UNKNOWN", "{}: 302 Found; expected the HTTP port of a server"),
        (502, b"no healthy upstream", "UNAVAILABLE", "{}: 502 Bad Gateway; expected the HTTP port of a server"),
        (404, b'{"detail": "x"}', "NOT_FOUND", "{}: 404 Not Found; expected the HTTP port of a server"),
        (503, b'{"error": "the server is stopping"}', "UNAVAILABLE", "the server is stopping"),
    ],
)
async def test_an_answer_that_is_none_is_an_error(status: int, body: bytes, code: str, message: str) -> None:
    with answering(status, body) as server, pytest.raises(DigitsError) as raised:
        await network_of(server.address)
    assert (raised.value.code.name, raised.value.message) == (code, message.format(server.address))
    assert raised.value.request_id == server.requests[0]["x-request-id"]


async def test_an_overloaded_server_says_when_to_try_again() -> None:
    with (
        answering(429, b'{"error": "queue full"}', **{"retry-after": "3"}) as server,
        pytest.raises(DigitsError) as raised,
    ):
        await network_of(server.address)
    assert (raised.value.code, raised.value.retry_after) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 3.0)


async def test_a_server_that_does_not_answer_is_one_whose_deadline_passed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DigitsError) as raised:
            await network_of(address, within=0.3)
    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert raised.value.message == f"{address}: no answer within 0.3 s"


async def test_a_token_follows_no_redirect_and_passes_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-of-this-test")
    with answering(200, b"{}") as other, answering(302, b"", location=f"{other.address}/") as server:
        monkeypatch.setenv("http_proxy", other.address)
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(DigitsError, match="302 Found"):
            await network_of(server.address, token_file=token)
    assert server.requests[0]["authorization"] == "Bearer a-token-of-this-test"
    assert other.requests == []


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://localhost", True),
        ("https://LOCALHOST:8000/", True),
        ("http://127.1.2.3:8000", True),
        ("http://[::1]:8000", True),
        ("http://127.0.0.1.example.com", False),
        ("http://localhost.example.com:80", False),
        ("http://unix:80", False),
        ("http://[::2]", False),
        ("http://localhost@example.com", False),
    ],
)
def test_only_urls_of_this_machine_are_loopback(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


@pytest.mark.parametrize(
    "address", ["http://a:65536", "http://a:0", "http://a b", "http://a?b", "http://a#b", "http://a\\b", "http://:80"]
)
def test_a_url_that_names_no_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="expected http://host:port"):
        validate_url(address)
