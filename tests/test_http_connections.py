"""HTTP connections: what a client without a token, a slow client or too many clients can take of the server."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from certificates import Authority
from conftest import ANSWERS_WITHIN, until, wait_until
from gated_model import Held
from http_requests import INFER, Client, binary_infer, http_address, infer_document, serving_http
from prometheus_client import CollectorRegistry
from structlog.testing import CapturingLogger

from service.batching.batcher import Batcher
from service.inference.model import Model
from service.observability.metrics import Metrics
from service.observability.telemetry import Telemetry
from service.runtime.pipeline import PipelineConfig, ServerInfo, compose_pipeline
from service.security.config import SecurityConfig
from service.transports.config import TransportConfig
from service.transports.http import connection
from service.transports.http.application import HttpApplication
from service.transports.http.routes import make_routes
from service.transports.http.server import HttpServer
from service.transports.limits import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    import numpy.typing as npt
    from structlog.typing import FilteringBoundLogger

TOKEN = "a-token-of-this-test"  # noqa: S105 (no secret)
PIXELS = np.zeros((1, 784), np.uint8)


@pytest.fixture(scope="module")
def model(model_path: Path) -> Model:
    return Model(model_path)


class Running:
    """An HTTP server in this process, over a gated model."""

    def __init__(self, server: HttpServer, held: Held, registry: CollectorRegistry) -> None:
        self.server = server
        self.held = held
        self.registry = registry
        self.port = server.port

    def dropped(self, reason: str) -> float | None:
        return self.registry.get_sample_value("digits_requests_dropped_total", {"reason": reason})

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def infer(self, images: int = 1) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await self.connect()
        try:
            return await send(reader, writer, infer_request(images))
        finally:
            writer.close()


def infer_request(images: int = 1) -> bytes:
    body, headers = binary_infer(np.zeros((images, 784), np.uint8))
    lines = [f"POST {INFER} HTTP/1.1", "host: a", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, *(f"{key}: {value}" for key, value in headers.items()), "", ""]).encode() + body


async def send(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, dict[str, str], bytes]:
    writer.write(request)
    async with asyncio.timeout(ANSWERS_WITHIN):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


@asynccontextmanager
async def running(model: Model, *, max_queued_images: int = 1000, **limits: Any) -> AsyncIterator[Running]:
    held, registry, log = Held(model), CollectorRegistry(), CapturingLogger()
    telemetry = Telemetry(Metrics(registry), cast("FilteringBoundLogger", log))
    pipeline = compose_pipeline(
        Batcher,
        held,
        telemetry,
        PipelineConfig(max_batch_size=64, max_queued_images=max_queued_images, inline_images=0),
        ServerInfo(),
    )
    config = TransportConfig(limits=Limits(max_batch_size=64, **limits))
    routes = make_routes(pipeline.services, config.limits)
    application = HttpApplication(routes, telemetry, registry, config, SecurityConfig(), pipeline.batcher)
    server = HttpServer(application, limits=config.limits)
    await server.start("127.0.0.1", 0)
    try:
        yield Running(server, held, registry)
    finally:
        held.go.set()
        await server.stop(0)
        await pipeline.batcher.close()


async def closed(reader: asyncio.StreamReader) -> bool:
    """Wait until the server closes the connection."""
    async with asyncio.timeout(ANSWERS_WITHIN):
        try:
            return await reader.read() == b""
        except ConnectionResetError:
            return True


async def test_a_client_that_disconnects_cancels_its_request(model: Model) -> None:
    async with running(model) as http:
        first = asyncio.create_task(http.infer())
        await until(lambda: http.held.sizes == [1])
        _reader, writer = await http.connect()
        writer.write(infer_request(3))
        await until(lambda: http.registry.get_sample_value("digits_queue_images") == 3)
        writer.close()
        await writer.wait_closed()
        await until(lambda: http.registry.get_sample_value("http_server_connections") == 1)
        http.held.go.set()
        assert (await first)[0] == 200
        await until(lambda: http.dropped("cancelled") == 1)
        assert http.held.sizes == [1]


async def test_a_full_queue_rejects_before_the_body_is_read(model: Model) -> None:
    async with running(model, max_queued_images=4) as http:
        first = asyncio.create_task(http.infer())
        await until(lambda: http.held.sizes == [1])
        queued = asyncio.create_task(http.infer(4))
        await until(lambda: http.registry.get_sample_value("digits_queue_images") == 4)
        status, headers, body = await http.infer()
        assert (status, json.loads(body)) == (429, {"error": "queue full: 4 images queued, limit 4"})
        assert int(headers["retry-after"]) >= 1
        reader, writer = await http.connect()
        request = f"POST {INFER} HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n".encode()
        assert (await send(reader, writer, request))[0] == 429
        writer.close()
        http.held.go.set()
        assert [(await task)[0] for task in (first, queued)] == [200, 200]


async def test_stop_lets_requests_finish_and_closes_idle_connections(model: Model) -> None:
    async with running(model) as http:
        idle, idle_writer = await http.connect()
        partial, partial_writer = await http.connect()
        partial_writer.write(b"GET /v2 HTT")
        busy = asyncio.create_task(http.infer())
        await until(lambda: http.held.sizes == [1])
        stopped = asyncio.create_task(http.server.stop(ANSWERS_WITHIN))
        assert await closed(idle)
        assert await closed(partial)
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await http.connect()
        assert not stopped.done()
        http.held.go.set()
        status, headers, _ = await busy
        assert (status, headers["connection"]) == (200, "close")
        await stopped
        for writer in (idle_writer, partial_writer):
            writer.close()


async def test_stop_cancels_what_outlasts_the_grace(model: Model) -> None:
    async with running(model) as http:
        reader, writer = await http.connect()
        writer.write(infer_request())
        await until(lambda: http.held.sizes == [1])
        await http.server.stop(0.05)
        assert await closed(reader)
        writer.close()


async def test_one_connection_too_many_is_closed(model: Model) -> None:
    async with running(model, connections=2) as http:
        writers = [(await http.connect())[1] for _ in range(2)]
        await until(lambda: http.registry.get_sample_value("http_server_connections") == 2)
        reader, writer = await http.connect()
        assert await closed(reader)
        for one in (*writers, writer):
            one.close()


@pytest.mark.parametrize(
    "begin",
    [b"", b"GET /v2 HTTP/1.1\r\nhost:", b"GET /v2/health/live HTTP/1.1\r\nhost: a\r\n\r\nGET"],
    ids=["nothing", "headers", "second request"],
)
async def test_a_client_that_sends_no_request_is_disconnected(
    model: Model, begin: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEADER_TIMEOUT", 0.2)
    async with running(model) as http:
        reader, writer = await http.connect()
        writer.write(begin)
        async with asyncio.timeout(ANSWERS_WITHIN):
            try:
                while await reader.read(1000):
                    pass
            except ConnectionResetError:
                pass
        writer.close()


async def test_an_unfinished_body_is_given_limited_time(model: Model) -> None:
    async with running(model, message_timeout=0.2) as http:
        reader, writer = await http.connect()
        writer.write(infer_request()[:-1])
        assert await closed(reader)
        await until(lambda: http.registry.get_sample_value("http_server_connections") == 0)
        assert http.held.sizes == []
        writer.close()


async def test_a_client_that_does_not_read_is_disconnected(model: Model) -> None:
    async with running(model, message_timeout=0.2) as http:
        http.held.go.set()
        with socket.create_connection(("127.0.0.1", http.port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            document = json.dumps(infer_document(np.zeros((64, 784), np.uint8))).encode()
            head = f"POST {INFER} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(document)}\r\n\r\n".encode()
            loop = asyncio.get_running_loop()

            async def send_until_disconnected() -> None:
                while True:
                    await loop.sock_sendall(client, head + document)

            with pytest.raises(ConnectionError):
                await asyncio.wait_for(send_until_disconnected(), ANSWERS_WITHIN)
        await until(lambda: http.registry.get_sample_value("http_server_connections") == 0)


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /v2\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 2**20 + b"\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    ],
    ids=["TLS", "no version", "large headers", "negative length", "two lengths"],
)
async def test_invalid_http_is_answered_and_disconnected(model: Model, request_: bytes) -> None:
    async with running(model) as http:
        reader, writer = await http.connect()
        status, _, body = await send(reader, writer, request_)
        assert status == 400
        assert json.loads(body) == {"error": "request: Invalid HTTP request received."}
        assert await closed(reader)
        writer.close()


class TestTokens:
    """With `--tokens-file`."""

    @pytest.fixture
    def client(self, model_path: Path, tmp_path: Path) -> Iterator[Client]:
        tokens = tmp_path / "tokens"
        tokens.write_text(TOKEN)
        tokens.chmod(0o600)
        with serving_http(model_path, "--tokens-file", tokens) as found:
            yield found

    def test_a_request_needs_a_token(self, client: Client, digits: npt.NDArray[np.uint8]) -> None:
        missing = client.post(INFER, infer_document(digits[:1]))
        assert missing.status == 401
        assert missing.json["error"].startswith("authorization: missing")
        assert missing.headers["www-authenticate"] == "Bearer"
        wrong = client.get("/v2", authorization="Bearer another-token-of-this-test")
        assert (wrong.status, wrong.json) == (401, {"error": "authorization: invalid bearer token"})
        good = client.post(INFER, infer_document(digits[:1]), authorization=f"Bearer {TOKEN}")
        assert good.status == 200

    def test_a_connection_without_token_is_closed_after_its_response(self, client: Client) -> None:
        host, port = http_address(client.service).rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=ANSWERS_WITHIN) as one:
            one.sendall(b"GET /v2 HTTP/1.1\r\nhost: a\r\n\r\n")
            received = b""
            while chunk := one.recv(4096):
                received += chunk
            assert received.startswith(b"HTTP/1.1 401")

    def test_health_needs_none(self, client: Client) -> None:
        assert client.get("/v2/health/live").status == client.get("/v2/health/ready").status == 200

    def test_paths_are_not_revealed(self, client: Client) -> None:
        assert client.get("/nothing").status == 401

    def test_the_body_of_a_client_without_token_is_not_read(self, client: Client) -> None:
        host, port = http_address(client.service).rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=ANSWERS_WITHIN) as one:
            one.sendall(f"POST {INFER} HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n".encode())
            assert one.recv(12) == b"HTTP/1.1 401"


def client_context(authority: Authority, pair: Any = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.certificate)
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    return context


def test_tls_uses_a_renewed_certificate(model_path: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    with serving_http(model_path, "--tls-cert", pair.certificate, "--tls-key", pair.key) as plain:
        secure = Client(plain.service, client_context(authority))
        assert secure.get("/v2/health/live").status == 200

        def serial() -> str:
            address = ("127.0.0.1", int(http_address(plain.service).rsplit(":", 1)[1]))
            return ssl.get_server_certificate(address, timeout=ANSWERS_WITHIN)

        first = serial()
        renewed = authority.issue("renewed")
        renewed.key.replace(pair.key)
        renewed.certificate.replace(pair.certificate)
        wait_until(lambda: serial() != first, OSError)
        assert secure.get("/v2/health/live").status == 200, "an open connection stays"
        secure.connection.close()


def test_client_certificates(model_path: Path, tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    pair = authority.issue("server")
    options = ("--tls-cert", pair.certificate, "--tls-key", pair.key, "--tls-client-ca", authority.certificate)
    with serving_http(model_path, *options) as plain:
        good = Client(plain.service, client_context(authority, authority.issue("client")))
        assert good.get("/v2/health/live").status == 200
        good.connection.close()
        for pair in (None, other.issue("client")):
            bad = Client(plain.service, client_context(authority, pair))
            with pytest.raises(OSError, match=r"alert|reset|EOF|closed"):
                bad.get("/v2/health/live")
            bad.connection.close()


def test_readiness_ends_with_the_drain(model_path: Path) -> None:
    with serving_http(model_path, "--drain-wait", "60") as client:
        assert client.get("/v2/health/ready").status == 200
        client.service.process.terminate()
        wait_until(lambda: client.get("/v2/health/ready").status == 503)
        assert client.get("/v2/health/ready").json == {"ready": False}
        assert client.post(INFER, infer_document(PIXELS)).status == 200
        client.service.process.terminate()
        assert client.service.ended() == 0
