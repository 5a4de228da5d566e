"""Clients that do not read their replies, on grpcio: bounded memory and time, and no delay of other clients."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from bare_grpcio import Bare, listening
from conftest import ANSWERS_WITHIN, serving, until
from hostile import HEADERS, PREDICT, PREFACE, SETTINGS, connected, each_frame, frame, literal, resident, still_serves

from bench.messages import framed
from service.pb.digits.v1.digits_pb2 import ExplainRequest, Neuron
from service.transports.grpcio import unsent_replies

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

EXPLAIN = "/digits.v1.DigitService/Explain"
HEALTH = "/grpc.health.v1.Health"
NO_WINDOW = PREFACE.replace(b"\0\0\0\4\0\0\0\0\0", b"") + frame(SETTINGS, 0, 0, b"\0\4\0\0\0\0")
WINDOW = frame(SETTINGS, 0, 0, b"\0\4\x7f\xff\xff\xff") + frame(8, 0, 0, (2**30).to_bytes(4, "big"))
HEADERS_FRAME, RST_STREAM = 1, 3
REPLY = 300_000


def called(stream: int, path: str, message: bytes) -> bytes:
    head = HEADERS.replace(literal(b":path", PREDICT.encode()), literal(b":path", path.encode()))
    data = framed(message)
    parts = [data[at : at + 16384] for at in range(0, len(data), 16384)]
    return frame(1, 4, stream, head) + b"".join(
        frame(0, int(part is parts[-1]), stream, part) for part in parts
    )  # END_STREAM with the last frame


def ended(peer: socket.socket, streams: int, kinds: tuple[int, ...] = (RST_STREAM,)) -> set[int]:
    """Wait until the server has ended that many streams, by reset by default; return them."""
    found: set[int] = set()
    for kind, flags, stream, _ in each_frame(peer):
        if kind in kinds and (kind == RST_STREAM or flags & 1):
            found.add(stream)
        if len(found) == streams:
            return found
    return found


def echoing() -> Any:
    async def answer(_: bytes, __: float) -> bytes:
        return bytes(REPLY)

    def answer_batch(*_: object) -> None:
        return None

    return SimpleNamespace(
        name="t.T", unary={"One": answer}, streams={"Many": answer}, batches={"Many": answer_batch}, alternatives={}
    )


def ended_calls(server: Bare, reason: str) -> float:
    return server.value("digits_calls_ended_total", reason=reason)


def test_unread_explanations_take_bounded_memory_and_later_calls_wait(
    model_path: Path, tell: Callable[[str], None]
) -> None:
    neurons = [Neuron(layer=layer, index=index) for layer, size in ((1, 16), (2, 16), (3, 10)) for index in range(size)]
    message = ExplainRequest(pixels=bytes(784 * 17), neurons=neurons).SerializeToString()
    calls = 60  # of 3.1 MB each
    with serving(model_path, "--transport", "grpcio") as service:
        still_serves(service)
        before = resident(service)
        with contextlib.closing(connected(service, NO_WINDOW)) as peer:
            for n in range(calls):
                peer.sendall(called(2 * n + 1, EXPLAIN, message))
            still_serves(service)
            explained = ("grpc_server_handled_total", ("OK", "Explain", "digits.v1.DigitService", "unary"))
            while service.series()[explained] < 3:
                still_serves(service)
            held = resident(service)
            assert held < before + 90
            peer.sendall(WINDOW)
            assert len(ended(peer, calls, (HEADERS_FRAME,))) == calls
        tell(f"{calls} unread replies of 3.1 MB: {before:.0f} -> {held:.0f} MB")


@pytest.mark.parametrize("path", ["/t.T/One", "/t.T/Many", f"{HEALTH}/Check", f"{HEALTH}/Watch"])
async def test_only_the_call_with_an_unread_reply_ends(path: str) -> None:
    async with listening([echoing()], message_timeout=0.3) as server:
        with contextlib.closing(connected(server, NO_WINDOW)) as peer:
            peer.sendall(called(1, path, b""))
            assert await asyncio.to_thread(ended, peer, 1) == {1}
            assert ended_calls(server, "unread") == 1
            # The connection continues.
            peer.sendall(WINDOW + called(3, "/t.T/One", b""))
            assert await asyncio.to_thread(ended, peer, 1, (HEADERS_FRAME,)) == {3}
        async with grpc.aio.insecure_channel(server.address) as channel:
            one: Any = channel.unary_unary("/t.T/One")
            assert len(await one(b"", timeout=ANSWERS_WITHIN)) == REPLY


async def test_beyond_the_bound_of_the_process_the_largest_connection_loses_its_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unsent_replies, "MAX_PROCESS_BYTES", 5 * REPLY)
    async with listening([echoing()], message_timeout=60) as server:
        with (
            contextlib.closing(connected(server, NO_WINDOW)) as little,
            contextlib.closing(connected(server, NO_WINDOW)) as most,
        ):
            handled = {"grpc_type": "unary", "grpc_service": "t.T", "grpc_method": "One", "grpc_code": "OK"}
            little.sendall(b"".join(called(stream, "/t.T/One", b"") for stream in (1, 3)))
            await until(lambda: server.value("grpc_server_handled_total", **handled) == 2)
            most.sendall(b"".join(called(stream, "/t.T/One", b"") for stream in (1, 3, 5, 7)))
            assert await asyncio.to_thread(ended, most, 4) == {1, 3, 5, 7}
            assert ended_calls(server, "memory") == 4
            little.sendall(WINDOW)
            assert await asyncio.to_thread(ended, little, 2, (HEADERS_FRAME,)) == {1, 3}


async def test_the_next_call_of_a_connection_with_unread_replies_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unsent_replies, "MAX_CONNECTION_BYTES", 2 * REPLY)
    async with listening([echoing()], message_timeout=60) as server:
        with contextlib.closing(connected(server, NO_WINDOW)) as peer:
            calls = {"grpc_type": "unary", "grpc_service": "t.T", "grpc_method": "One"}
            peer.sendall(b"".join(called(stream, "/t.T/One", b"") for stream in (1, 3)))
            await until(lambda: server.value("grpc_server_handled_total", grpc_code="OK", **calls) == 2)
            peer.sendall(b"".join(called(stream, "/t.T/One", b"") for stream in (5, 7, 9)))
            await until(lambda: server.value("grpc_server_started_total", **calls) == 5)
            async with grpc.aio.insecure_channel(server.address) as channel:
                one: Any = channel.unary_unary("/t.T/One")
                assert await one(b"", timeout=ANSWERS_WITHIN)
            assert server.value("grpc_server_handled_total", grpc_code="OK", **calls) == 3
            peer.sendall(WINDOW)
            assert await asyncio.to_thread(ended, peer, 5, (HEADERS_FRAME,)) == {1, 3, 5, 7, 9}
