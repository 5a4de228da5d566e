"""Limits that end connections and calls of the native transport: counts, ages, pings and unfinished messages."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING

import pytest
from conftest import needs_native, until
from grpc import StatusCode, aio
from test_native import PREDICT, STREAM, images, request, running

from service.observability.statistics import Statistics
from service.pb.digits.v1.digits_pb2 import PredictResponse

if TYPE_CHECKING:
    from test_native import Running

pytestmark = needs_native

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # with empty SETTINGS
PING, GOAWAY = 6, 7
ENHANCE_YOUR_CALM = 11


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(name: bytes, value: bytes) -> bytes:
    """Encode a header in HPACK without tables; name and value are shorter than 127 bytes."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


HEADERS = (
    *(literal(b":method", b"POST"), literal(b":scheme", b"http"), literal(b":path", PREDICT.encode())),
    *(literal(b":authority", b"x"), literal(b"content-type", b"application/grpc"), literal(b"te", b"trailers")),
)


class Raw:
    """A peer that sends and receives frames."""

    def __init__(self, server: Running) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), 10)
        self.socket.settimeout(10)
        self.socket.sendall(PREFACE)
        self.received = b""

    def hears(self, expected: bytes) -> bool:
        """Return whether these bytes arrive."""
        received = b""
        while expected not in received and (more := self.socket.recv(65536)):
            received += more
        return expected in received

    def heard(self) -> list[tuple[int, bytes]]:
        """Read every frame and its payload until the server ends the connection."""
        with contextlib.suppress(ConnectionError):
            while more := self.socket.recv(65536):
                self.received += more
        self.socket.close()
        frames, rest = [], self.received
        while rest:
            length = int.from_bytes(rest[:3], "big")
            frames.append((rest[3], rest[9 : 9 + length]))
            rest = rest[9 + length :]
        return frames


async def test_a_connection_over_the_limit_is_closed_at_once_and_one_after_it_is_accepted() -> None:
    async with running(connections=2) as server:
        assert await server.predict(1) == [1]
        with contextlib.closing(Raw(server).socket) as second:
            assert await asyncio.to_thread(second.recv, 1)
            third = socket.create_connection(("127.0.0.1", server.port), 10)
            assert await asyncio.to_thread(ended, third)
            assert await server.predict(2) == [2]

        def again() -> bool:
            with contextlib.closing(Raw(server).socket) as peer, contextlib.suppress(ConnectionError):
                return bool(peer.recv(1))
            return False

        for _ in range(1000):
            if await asyncio.to_thread(again):
                return
            await asyncio.sleep(0.05)
        pytest.fail("the closed connection still counts")


def ended(peer: socket.socket) -> bool:
    with contextlib.closing(peer), contextlib.suppress(ConnectionError):
        return peer.recv(1) == b""
    return True


async def test_too_frequent_pings_close_the_connection_and_pings_at_the_interval_do_not() -> None:
    async with running(ping_interval=0.1) as server:
        calm = Raw(server)
        for _ in range(8):
            calm.socket.sendall(frame(PING, 0, 0, b"are you?"))
            assert await asyncio.to_thread(calm.hears, b"are you?")
            await asyncio.sleep(0.3)
        calm.socket.close()
        wild = Raw(server)
        wild.socket.sendall(frame(PING, 0, 0, bytes(8)) * 4)
        heard = await asyncio.to_thread(wild.heard)
        assert [payload[4:8] for kind, payload in heard if kind == GOAWAY] == [ENHANCE_YOUR_CALM.to_bytes(4, "big")]


async def test_a_connection_of_maximum_age_gets_a_goaway_and_its_open_calls_continue() -> None:
    async with running(connection_age=0.2) as server:
        stream = server.channel.stream_stream(STREAM)()
        for digit in range(8):
            await stream.write(request(digit))
            assert PredictResponse.FromString(await stream.read()).digits == [digit]
            await asyncio.sleep(0.1)
        await stream.done_writing()
        assert await stream.code() is StatusCode.OK
        peer, began = Raw(server), time.monotonic()
        peer.socket.sendall(frame(PING, 1, 0, bytes(8)))
        assert any(kind == GOAWAY for kind, _ in await asyncio.to_thread(answering, peer))
        assert time.monotonic() - began > 0.15
        assert [await server.predict(digit) for digit in range(3)] == [[0], [1], [2]]


def answering(peer: Raw) -> list[tuple[int, bytes]]:
    """Read the frames of a peer that answers pings, as a draining server expects."""
    read = b""
    with contextlib.suppress(ConnectionError):
        while more := peer.socket.recv(65536):
            read += more
            peer.received += more
            while len(read) >= 9 and len(read) >= (size := 9 + int.from_bytes(read[:3], "big")):
                if read[3] == PING and not read[4] & 1:
                    peer.socket.sendall(frame(PING, 1, 0, read[9:size]))
                read = read[size:]
    return peer.heard()


async def test_an_idle_connection_is_closed_and_one_with_an_open_call_is_not() -> None:
    async with running(connection_idle=0.2) as server:
        stream = server.channel.stream_stream(STREAM)()
        await stream.write(request(3))
        assert PredictResponse.FromString(await stream.read()).digits == [3]
        assert any(kind == GOAWAY for kind, _ in await asyncio.to_thread(answering, Raw(server)))
        await asyncio.sleep(0.8)
        await stream.write(request(4))
        assert PredictResponse.FromString(await stream.read()).digits == [4]
        await stream.done_writing()
        assert await stream.code() is StatusCode.OK


async def test_a_stalled_message_is_rejected_and_a_stream_may_be_idle_between_messages() -> None:
    async with running(message_timeout=0.3) as server:
        stream = server.channel.stream_stream(STREAM)()
        await stream.write(request(3))
        assert PredictResponse.FromString(await stream.read()).digits == [3]
        peer = Raw(server)
        half = b"\0\0\0\3\x13\x0a\x90\x06" + bytes(100)
        peer.socket.sendall(frame(1, 4, 1, b"".join(HEADERS)) + frame(0, 0, 1, half))
        labels = {"grpc_type": "unary", "grpc_service": "digits.v1.DigitService", "grpc_method": "Predict"}
        handled = "grpc_server_handled_total"
        await until(lambda: server.value(handled, grpc_code="DeadlineExceeded", **labels) == 1)
        peer.socket.close()
        await asyncio.sleep(0.5)
        await stream.write(request(4))
        assert PredictResponse.FromString(await stream.read()).digits == [4]


async def test_calls_over_the_limit_of_a_connection_wait_at_the_client() -> None:
    async with running(streams=2) as server:
        server.model.gate.clear()
        calls = [asyncio.ensure_future(server.predict(digit, digit, digit)) for digit in range(5)]
        await until(lambda: server.model.runs)
        await asyncio.sleep(0.2)
        assert server.value("digits_queue_images") <= 3
        server.model.gate.set()
        assert await asyncio.gather(*calls) == [[digit] * 3 for digit in range(5)]


async def test_metadata_over_the_limit_is_rejected_and_other_calls_continue() -> None:
    async with running() as server:
        with pytest.raises(aio.AioRpcError, match="RESOURCE_EXHAUSTED") as caught:
            await server.predict(1, metadata=[("x-long", "y" * 40_000)])
        assert "bytes; at most 16384 are allowed" in str(caught.value.details())
        assert await server.predict(2, metadata=[("x-long", "y" * 4_000)]) == [2]


async def test_a_call_without_a_message_is_unimplemented() -> None:
    async with running() as server:
        with pytest.raises(aio.AioRpcError, match="UNIMPLEMENTED") as caught:
            await server.channel.stream_unary("/digits.v1.DigitService/Predict")(iter(()), timeout=10)
        assert caught.value.details() == "the call holds no message; expected one"


async def test_a_request_is_answered_by_the_model_it_arrived_under_and_no_batch_spans_a_swap() -> None:
    async with running(io_threads=1) as server:
        first, second = server.model, type(server.model)()
        first.gate.clear()
        early = [asyncio.ensure_future(server.batcher.predict(images(1, 1, 1)))]
        await until(lambda: first.runs)
        early.append(asyncio.ensure_future(server.batcher.predict(images(1, 1, 1))))
        await until(lambda: server.value("digits_queue_images") == 3)
        statistics = Statistics()
        server.batcher.swap(second, statistics)  # type: ignore[arg-type]
        late = asyncio.ensure_future(server.predict(2, 2, 2))
        await until(lambda: server.value("digits_queue_images") == 6)
        first.gate.set()
        assert [found.digit.tolist() for found in await asyncio.gather(*early)] == [[1, 1, 1]] * 2
        assert await late == [2, 2, 2]
        assert (first.runs, second.runs) == ([[1, 1, 1]] * 2, [[2, 2, 2]])
