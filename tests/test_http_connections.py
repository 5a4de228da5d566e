"""HTTP connections: limits for clients without a token, slow clients and too many clients."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import uvloop
from certificates import Authority
from conftest import ANSWERS_WITHIN, until, wait_until
from http_in_process import infer_request, running, send
from http_requests import INFER, Client, http_address, infer_document, serving_http

from service.inference.model import Model
from service.transports.http import connection
from service.transports.http.application import CANCELLED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

TOKEN = "a-token-of-this-test"  # noqa: S105 (no secret)
PIXELS = np.zeros((1, 784), np.uint8)


@pytest.fixture(scope="module")
def model(model_path: Path) -> Model:
    return Model(model_path)


async def closed(reader: asyncio.StreamReader) -> bool:
    """Wait until the server closes the connection."""
    async with asyncio.timeout(ANSWERS_WITHIN):
        try:
            return await reader.read() == b""
        except ConnectionResetError:
            return True


async def disconnected(reader: asyncio.StreamReader) -> bool:
    """Wait until the server closes the connection; discard its data."""
    async with asyncio.timeout(ANSWERS_WITHIN):
        try:
            while await reader.read(2**16):
                pass
        except ConnectionResetError:
            pass
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
        assert http.ended(CANCELLED) == 1


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
        assert (http.ended(200), http.ended(429)) == (2, 2)


async def test_requests_in_progress_are_counted(model: Model) -> None:
    async with running(model) as http:
        assert http.active() == 0
        tasks = [asyncio.create_task(http.infer()) for _ in range(3)]
        await until(lambda: http.active() == 3)
        http.held.go.set()
        assert [(await task)[0] for task in tasks] == [200, 200, 200]
        assert http.active() == 0


async def test_a_request_whose_timeout_passes_in_the_queue_never_runs(model: Model) -> None:
    async with running(model) as http:
        first = asyncio.create_task(http.infer())
        await until(lambda: http.held.sizes == [1])
        late = asyncio.create_task(http.infer(2, timeout=200_000))
        await until(lambda: http.registry.get_sample_value("digits_queue_images") == 2 or late.done())
        await asyncio.sleep(0.3)  # past its timeout
        http.held.go.set()
        status, _, body = await late
        assert (status, json.loads(body)) == (504, {"error": "the deadline passed before the model could run"})
        assert (await first)[0] == 200
        assert http.held.sizes == [1]
        assert (http.dropped("deadline"), http.ended(504)) == (1, 1)


async def test_an_internal_error_is_logged_and_its_text_stays_in_the_server(model: Model) -> None:
    async with running(model) as http:
        http.held.fail = {2}
        http.held.go.set()
        status, headers, body = await http.infer(2)
        assert (status, json.loads(body)) == (500, {"error": "internal error"})
        [line] = [call.kwargs for call in http.log.calls if "exc_info" in call.kwargs]
        assert str(line["exc_info"]) == "device lost"
        assert (line["request_id"], line["code"]) == (headers["x-request-id"], "500")
        assert (await http.infer(1))[0] == 200
        assert http.ended(500) == 1


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
        with pytest.raises(OSError, match=r"Connection refused|Connect call failed"):
            await http.connect()
        assert not stopped.done()
        http.held.go.set()
        status, headers, _ = await busy
        assert (status, headers["connection"]) == (200, "close")
        await stopped
        for writer in (idle_writer, partial_writer):
            writer.close()


async def test_stop_cancels_requests_that_outlast_the_grace(model: Model) -> None:
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
        assert await disconnected(reader)
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


GET = b"GET /v2 HTTP/1.1\r\nhost: a\r\n"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: a\r\n\r\n"
CHUNKED = b"POST /v2/repository/index HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
NOT_HTTP = (400, "request: Invalid HTTP request received.")
NOT_CHUNKED = (501, "transfer-encoding: unsupported; expected chunked")
HEADERS_TOO_LARGE = (431, "headers: have more than 16384 bytes; expected at most 16384")


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", NOT_HTTP, id="TLS"),
        pytest.param(b"POST /v2 HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", NOT_HTTP, id="negative length"),
        pytest.param(GET + b"content-length: 1\r\ncontent-length: 2\r\n\r\n", NOT_HTTP, id="two lengths"),
        pytest.param(GET + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", NOT_HTTP, id="length, chunks"),
        pytest.param(b"GET / HTTP/1.1\nhost: a\n\n", NOT_HTTP, id="bare line feeds"),
        pytest.param(GET + b"x\r\n\r\n", NOT_HTTP, id="header without a value"),
        pytest.param(b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n", NOT_HTTP, id="target that is not ASCII"),
        pytest.param(b"GET /v2\r\n\r\n", (505, "version: is HTTP/0.9; expected HTTP/1.1 or HTTP/1.0"), id="no version"),
        pytest.param(b"GET /v2 HTTP/1.1\r\n\r\n", (400, "host: is in 0 headers; expected 1"), id="no host"),
        pytest.param(GET + b"host: b\r\n\r\n", (400, "host: is in 2 headers; expected 1"), id="two hosts"),
        pytest.param(GET + b"x: " + b"a" * 2**20 + b"\r\n\r\n", HEADERS_TOO_LARGE, id="large header"),
        pytest.param(GET + b"x: a\r\n" * 10_000 + b"\r\n", HEADERS_TOO_LARGE, id="many headers"),
        pytest.param(b"\r\n" * 2**16, HEADERS_TOO_LARGE, id="empty lines"),
        pytest.param(
            b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
            (414, "path: has more than 16384 bytes; expected at most 16384"),
            id="long target",
        ),
        pytest.param(GET + b"a:\r\n" * 1000 + b"\r\n", HEADERS_TOO_LARGE, id="many empty headers"),
        pytest.param(GET + b"transfer-encoding: gzip\r\n\r\n", NOT_CHUNKED, id="no chunks"),
        pytest.param(GET + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", NOT_CHUNKED, id="compressed chunks"),
        pytest.param(
            b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
            (501, "method: CONNECT is unsupported; expected GET or POST"),
            id="CONNECT",
        ),
    ],
)
async def test_an_invalid_request_is_answered_and_disconnected(
    model: Model, request_: bytes, error: tuple[int, str]
) -> None:
    async with running(model) as http:
        reader, writer = await http.connect()
        status, _, body = await send(reader, writer, request_)
        assert (status, json.loads(body)) == (error[0], {"error": error[1]})
        assert await closed(reader)
        assert http.ended(status, "", "_OTHER") == 1
        writer.close()


async def test_trailers_are_ignored(model: Model) -> None:
    async with running(model) as http:
        reader, writer = await http.connect()
        status, headers, _ = await send(reader, writer, CHUNKED + b"2\r\n{}\r\n0\r\nx-request-id: of-a-trailer\r\n\r\n")
        assert status == 200
        assert headers.get("x-request-id") != "of-a-trailer"
        writer.close()


@pytest.mark.parametrize(
    ("rest", "error"),
    [
        pytest.param(b"-1\r\n", NOT_HTTP, id="negative size"),
        pytest.param(b"2\r\n{}}\r\n", NOT_HTTP, id="more than its size"),
        pytest.param(b"f" * 17 + b"\r\n", NOT_HTTP, id="size over 64 bits"),
        pytest.param(b"1;" + b"a" * 2**20, HEADERS_TOO_LARGE, id="long extension"),
        pytest.param(b"0\r\nx: " + b"a" * 2**20, HEADERS_TOO_LARGE, id="long trailer"),
        pytest.param(b"0\r\n" + b"x:\r\n" * 10_000, HEADERS_TOO_LARGE, id="many trailers"),
        pytest.param(
            b"0\r\nconnection: close\r\n\r\n",
            (400, "connection: is a trailer; expected a header"),
            id="end in a trailer",
        ),
    ],
)
async def test_an_invalid_body_is_answered_and_disconnected(model: Model, rest: bytes, error: tuple[int, str]) -> None:
    async with running(model) as http:
        reader, writer = await http.connect()
        writer.write(CHUNKED + b"1\r\n{\r\n" if rest[:1] != b"0" else CHUNKED)
        status, headers, body = await send(reader, writer, rest)
        assert (status, json.loads(body)) == (error[0], {"error": error[1]})
        assert headers["connection"] == "close"
        assert await closed(reader)
        await until(lambda: http.ended(CANCELLED, "/v2/repository/index") == 1)
        writer.close()


async def received(reader: asyncio.StreamReader) -> list[tuple[int, bytes]]:
    """The status and body of each response until the connection ends."""
    async with asyncio.timeout(ANSWERS_WITHIN):
        content = await reader.read()
    responses = [response.split(b"\r\n\r\n", 1) for response in content.split(b"HTTP/1.1 ")[1:]]
    return [(int(head[:3]), body) for head, body in responses]


async def test_pipelined_requests_are_answered_in_order_up_to_a_limit(model: Model) -> None:
    async with running(model) as http:
        reader, writer = await http.connect()
        writer.write(LIVE + GET + b"\r\n" + LIVE + GET + b"connection: close\r\n\r\n")
        assert [(status, b'"live"' in body) for status, body in await received(reader)] == [
            (200, True),
            (200, False),
        ] * 2
        writer.close()
        reader, writer = await http.connect()
        writer.write(LIVE * 1000)
        *answers, error = await received(reader)
        assert answers == [(200, b'{"live":true}')] * (1 + connection.MAX_PIPELINED)
        assert error == (400, b'{"error":"request: is pipelined; expected at most 16 without a response"}')
        assert http.ended(400, "", "_OTHER") == 1
        writer.close()


@pytest.mark.parametrize(
    "invalid",
    [
        b"not HTTP\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\n\r\n",
        b"{",
        b"POST /v2 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nz",
    ],
    ids=["not HTTP", "no host", "more than the content-length", "invalid body"],
)
async def test_requests_before_an_invalid_one_are_answered(model: Model, invalid: bytes) -> None:
    async with running(model) as http:
        reader, writer = await http.connect()
        writer.write(infer_request() + LIVE + invalid)
        await until(lambda: http.held.sizes == [1])
        http.held.go.set()
        first, second, third = await received(reader)
        assert (first[0], second, third[0]) == (200, (200, b'{"live":true}'), 400)
        writer.close()


async def test_a_request_has_one_response_though_its_body_is_invalid(model: Model) -> None:
    async with running(model) as http:
        reader, writer = await http.connect()
        request = b"POST /nothing HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
        assert (await send(reader, writer, request))[0] == 404
        writer.write(b"not a chunk\r\n")
        assert await received(reader) == []
        writer.close()


def test_pipelined_requests_of_a_client_that_disconnects_do_not_run(model: Model) -> None:
    """On uvloop, as in production: it raises an error for a response to such a client."""

    async def disconnect() -> None:
        async with running(model) as http:
            first = asyncio.create_task(http.infer())
            await until(lambda: http.held.sizes == [1])
            _, writer = await http.connect()
            writer.write(infer_request(2) + infer_request(3) + infer_request(4))
            await until(lambda: http.registry.get_sample_value("digits_queue_images") == 2)
            tasks = asyncio.all_tasks()
            writer.transport.abort()
            await until(lambda: http.ended(CANCELLED) == 1)
            http.held.go.set()
            assert (await first)[0] == 200
            await until(lambda: http.registry.get_sample_value("http_server_connections") == 0)
            assert (http.held.sizes, http.active()) == ([1], 0)
        assert not any(task.exception() for task in tasks if task.done() and not task.cancelled())

    uvloop.run(disconnect())


@pytest.mark.parametrize(
    "request_",
    [
        b"content-length: 2\r\n\r\n{}",
        b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"\r\n",
    ],
    ids=["length", "chunks", "no body"],
)
@pytest.mark.parametrize("part", [1, 1000], ids=["byte by byte", "whole"])
async def test_a_request_to_upgrade_is_answered_as_if_without(model: Model, request_: bytes, part: int) -> None:
    """The HTTP client of Java sends `upgrade: h2c` with its first request, also with a body."""
    upgrade = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
    sent = b"POST /v2/repository/index HTTP/1.1\r\nhost: a\r\n" + upgrade + request_ + GET + upgrade + b"\r\n" + LIVE
    async with running(model) as http:
        reader, writer = await http.connect()
        for start in range(0, len(sent), part):
            writer.write(sent[start : start + part])
            await asyncio.sleep(0.001)
        bodies = [(await send(reader, writer, b""))[2] for _ in range(3)]
        assert [json.loads(body) for body in bodies][::2] == [
            [{"name": "digits", "version": "1", "state": "READY", "reason": ""}],
            {"live": True},
        ]
        assert json.loads(bodies[1])["name"] == "digitserve"
        writer.close()


async def test_a_client_that_was_not_told_to_continue_is_disconnected(model: Model) -> None:
    """It may send its next request instead of the body, which would be taken for the body."""
    async with running(model) as http:
        reader, writer = await http.connect()
        expect = b"expect: 100-continue\r\ncontent-length: 100000\r\n\r\n"
        status, headers, _ = await send(reader, writer, b"POST /nothing HTTP/1.1\r\nhost: a\r\n" + expect)
        assert (status, headers["connection"]) == (404, "close")
        writer.write(LIVE)
        assert await received(reader) == []
        writer.close()


@pytest.mark.parametrize(("version", "statuses"), [(b"1.1", [100, 200]), (b"1.0", [200])])
async def test_only_http_1_1_has_an_interim_response(model: Model, version: bytes, statuses: list[int]) -> None:
    async with running(model) as http:
        reader, writer = await http.connect()
        head = b"POST /v2/repository/index HTTP/" + version + b"\r\nhost: a\r\nconnection: close\r\n"
        writer.write(head + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        writer.write(b"{}")
        assert [status for status, _ in await received(reader)] == statuses
        writer.close()


async def test_empty_lines_do_not_keep_a_connection(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADER_TIMEOUT", 0.5)
    async with running(model) as http:
        reader, writer = await http.connect()
        ended = asyncio.create_task(disconnected(reader))
        while not ended.done():
            writer.write(b"\r\n")
            await asyncio.sleep(0.05)
        assert await ended
        writer.close()


async def test_a_body_behind_a_request_in_progress_has_no_time_limit_yet(model: Model) -> None:
    async with running(model, message_timeout=0.2) as http:
        reader, writer = await http.connect()
        writer.write(infer_request() + infer_request(2)[:-1])
        await until(lambda: http.held.sizes == [1])
        await asyncio.sleep(0.5)  # past the limit
        http.held.go.set()
        assert (await send(reader, writer, b""))[0] == 200
        assert await disconnected(reader), "its time began"
        await until(lambda: http.ended(CANCELLED) == 1)
        writer.close()


async def test_a_connection_that_closes_waits_for_the_rest_of_the_body(model: Model) -> None:
    """A reset could overtake the response."""
    async with running(model) as http:
        reader, writer = await http.connect()
        writer.write(b"POST /nothing HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 5000000\r\n\r\n")
        [(status, _)] = await received(reader)
        writer.write(bytes(5_000_000))
        await writer.drain()
        assert status == 404
        assert http.registry.get_sample_value("http_server_connections") == 1
        writer.close()
        await until(lambda: http.registry.get_sample_value("http_server_connections") == 0)


async def test_a_body_that_the_response_did_not_wait_for_may_still_be_sent(model: Model) -> None:
    async with running(model) as http:
        reader, writer = await http.connect()
        request = f"POST {INFER} HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000000\r\n\r\n".encode()
        assert (await send(reader, writer, request + bytes(1000)))[0] == 413
        writer.write(bytes(100_000))
        await writer.drain()
        writer.close()
        reader, writer = await http.connect()
        request = b"POST /nothing HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n"
        assert (await send(reader, writer, request))[0] == 404
        assert (await send(reader, writer, bytes(100_000) + GET + b"\r\n"))[0] == 200
        writer.close()


async def test_requests_may_arrive_in_any_parts(model: Model) -> None:
    """Whole, in two parts cut anywhere, and byte by byte."""
    request = b"POST /v2/repository/index HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    cuts = [[request], *([request[:i], request[i:]] for i in range(1, len(request))), [bytes([b]) for b in request]]
    async with running(model) as http:
        reader, writer = await http.connect()
        answers = set()
        for parts in cuts:
            for part in parts[:-1]:
                writer.write(part)
                await asyncio.sleep(0.001)
            status, headers, body = await send(reader, writer, parts[-1])
            answers.add((status, headers["content-length"], body))
        assert len(answers) == 1
        writer.close()


def read_all(client: Client, request: bytes) -> bytes:
    """Send bytes on a new connection, and return the bytes that come before its end."""
    host, port = http_address(client.service).rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=ANSWERS_WITHIN) as one:
        one.sendall(request)
        return b"".join(iter(lambda: one.recv(4096), b""))


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
        assert read_all(client, b"GET /v2 HTTP/1.1\r\nhost: a\r\n\r\n").startswith(b"HTTP/1.1 401")

    def test_a_connection_without_token_is_closed_before_the_rest_of_its_body(self, client: Client) -> None:
        content = read_all(
            client, b"GET /v2/health/live HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n"
        )
        assert content.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in content

    def test_health_needs_none(self, client: Client) -> None:
        assert client.get("/v2/health/live").status == client.get("/v2/health/ready").status == 200

    def test_health_can_need_one_too(self, model_path: Path, tmp_path: Path) -> None:
        tokens = tmp_path / "tokens"
        tokens.write_text(TOKEN)
        with serving_http(model_path, "--tokens-file", tokens, "--no-health-without-token") as client:
            assert client.get("/v2/health/ready").status == 401
            assert client.get("/v2/health/ready", authorization=f"Bearer {TOKEN}").status == 200

    def test_a_new_token_replaces_the_old_one(self, client: Client, tmp_path: Path) -> None:
        renewed = f"{TOKEN}-2"
        (tmp_path / "new").write_text(renewed)
        (tmp_path / "new").chmod(0o600)
        (tmp_path / "new").replace(tmp_path / "tokens")
        client.service.wait_for("credentials loaded", kind="tokens")
        assert client.get("/v2", authorization=f"Bearer {TOKEN}").status == 401
        assert client.get("/v2", authorization=f"Bearer {renewed}").status == 200

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


def test_plain_http_gets_no_answer_from_a_port_with_tls(model_path: Path, tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("server")
    with serving_http(model_path, "--tls-cert", pair.certificate, "--tls-key", pair.key) as plain:
        with pytest.raises((OSError, HTTPException)):
            plain.get("/v2/health/live")
        assert plain.service.process.poll() is None


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
