"""Calls with a late or missing message."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from bare_grpcio import listening
from conftest import on_both_transports, serving, until
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hostile import HEADERS, PREDICT, PREFACE, connected, each_frame, frame, literal

from service.errors import DeadlineExceeded
from service.transports.grpcio import open_calls
from service.transports.grpcio.unfinished_calls import UnfinishedMessages

if TYPE_CHECKING:
    import socket
    from pathlib import Path

CHECK = "/grpc.health.v1.Health/Check"
PATHS = [
    *(PREDICT, "/digits.v1.DigitService/GetNetwork", "/inference.GRPCInferenceService/ModelInfer"),
    *(CHECK, "/grpc.health.v1.Health/Watch"),
]
END_STREAM, END_HEADERS = 1, 4


def headers(path: str) -> bytes:
    return HEADERS.replace(literal(b":path", PREDICT.encode()), literal(b":path", path.encode()))


def first_ends(peer: socket.socket, count: int) -> set[int]:
    """Return the first streams that the server ends; streams that end together do so in any order."""
    ends = (stream for kind, flags, stream, _ in each_frame(peer) if kind == 1 and flags & END_STREAM)
    return set(itertools.islice(ends, count))


@on_both_transports
def test_calls_without_a_message_are_answered_and_delay_no_stop(model_path: Path) -> None:
    with serving(model_path, "--shutdown-grace", "60") as service, grpc.insecure_channel(service.address) as channel:
        for path in PATHS:
            call: Any = channel.stream_unary(path)
            with pytest.raises(grpc.RpcError) as caught:
                call(iter(()), timeout=30)
            assert caught.value.code() is StatusCode.UNIMPLEMENTED
            assert caught.value.details() == "the call holds no message; expected one"
        predict: Any = channel.stream_unary(PREDICT)
        calls = [predict.future(iter(()), timeout=60) for _ in range(200)]
        assert {call.code() for call in calls} == {StatusCode.UNIMPLEMENTED}
        assert service.stop() == 0  # waits for a third of the grace


@on_both_transports
def test_a_call_without_a_token_ends_before_its_message(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("a-token-of-some-length")
    half = b"\0\0\0\3\x13\x0a\x90\x06" + bytes(100)
    with (
        serving(model_path, "--tokens-file", tmp_path / "tokens") as service,
        contextlib.closing(connected(service, PREFACE)) as peer,
    ):
        peer.sendall(frame(1, END_HEADERS, 1, HEADERS) + frame(0, 0, 1, half))
        assert first_ends(peer, 1) == {1}
        series = service.series()
        assert series["digits_requests_dropped_total", ("unauthenticated",)] == 1
        assert series["grpc_server_msg_received_total", ("Predict", "digits.v1.DigitService", "unary")] == 0


async def test_grpcio_only_ends_the_call_whose_message_does_not_arrive() -> None:
    async with listening(message_timeout=0.3) as server, grpc.aio.insecure_channel(server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert await watch.read()
        with contextlib.closing(connected(server, PREFACE)) as peer:
            peer.sendall(frame(1, END_HEADERS, 1, headers(CHECK)) + frame(0, 0, 1, b"\0\0\0\3\x13half"))
            assert await asyncio.to_thread(first_ends, peer, 1) == {1}
        labels = {"grpc_type": "unary", "grpc_service": "grpc.health.v1.Health", "grpc_method": "Check"}
        assert server.value("grpc_server_handled_total", grpc_code="DeadlineExceeded", **labels) == 1
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert not watch.done()


async def test_grpcio_bounds_how_many_slow_messages_of_single_calls_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(message: bytes, _: float) -> bytes:
        return message

    echo: Any = SimpleNamespace(name="t.T", unary={"One": answer}, streams={}, batches={}, alternatives={})
    monkeypatch.setattr(open_calls, "_UNFINISHED_BYTES", 0)  # 4 messages of any size
    async with listening([echo], message_timeout=60) as server:
        with contextlib.closing(connected(server, PREFACE)) as peer:
            for stream in range(1, 21, 2):
                peer.sendall(frame(1, END_HEADERS, stream, headers("/t.T/One")) + frame(0, 0, stream, b"\0\0\0\0\4ha"))
            assert await asyncio.to_thread(first_ends, peer, 6) == {1, 3, 5, 7, 9, 11}
            labels = {"grpc_type": "unary", "grpc_service": "t.T", "grpc_method": "One"}
            late = {**labels, "grpc_code": "DeadlineExceeded"}
            await until(lambda: server.value("grpc_server_handled_total", **late) == 6)
            for stream in range(13, 21, 2):
                peer.sendall(frame(0, END_STREAM, stream, b"lf"))
            await until(lambda: server.value("grpc_server_handled_total", **{**labels, "grpc_code": "OK"}) == 4)


async def test_of_many_unfinished_messages_those_older_than_a_second_end() -> None:
    messages, never = UnfinishedMessages(60, limit=3), asyncio.Event()
    waiting = [asyncio.create_task(messages.wait(never.wait())) for _ in range(10)]
    done, _ = await asyncio.wait(waiting[:7], timeout=60)
    assert len(done) == 7
    assert all(isinstance(task.exception(), DeadlineExceeded) for task in done)
    assert not any(task.done() for task in waiting[7:])
    never.set()
    assert await asyncio.gather(*waiting[7:]) == [True] * 3
