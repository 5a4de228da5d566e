"""grpc.health.v1 with clients that do not read."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Any

import pytest
from bare_grpcio import listening
from conftest import ANSWERS_WITHIN, serving
from digitserve_client import AsyncDigitsClient
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hostile import BLANK, HEADERS, PREDICT, PREFACE, SETTINGS, connected, each_frame, frame, literal, still_reports

from service.transports.grpcio.health import HealthServicer

if TYPE_CHECKING:
    import socket
    from pathlib import Path

SERVICE = b"digits.v1.DigitService"
SERVING, NOT_SERVING, UNKNOWN = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
    health_pb2.HealthCheckResponse.SERVICE_UNKNOWN,
)
GOAWAY = 7
TRAILERS = (1, 5, 1)  # HEADERS with END_STREAM and END_HEADERS, of the first stream
NO_WINDOW = frame(SETTINGS, 0, 0, b"\0\4\0\0\0\0")  # SETTINGS_INITIAL_WINDOW_SIZE is 0
WATCH = HEADERS.replace(literal(b":path", PREDICT.encode()), literal(b":path", b"/grpc.health.v1.Health/Watch"))


def watch(peer: socket.socket, stream: int, service: bytes) -> None:
    """Open a Watch; return when the server has sent its headers."""
    request = b"\x0a" + bytes([len(service)]) + service
    peer.sendall(frame(1, 4, stream, WATCH) + frame(0, 1, stream, bytes(4) + bytes([len(request)]) + request))
    assert next(kind for kind, _, of, _ in each_frame(peer) if of == stream) == 1


@pytest.mark.usefixtures("transport")
async def test_a_watcher_that_does_not_read_delays_neither_others_nor_the_stop(
    model_path: Path,
) -> None:
    with (
        serving(model_path, "--shutdown-grace", "3") as service,
        contextlib.closing(connected(service, PREFACE + NO_WINDOW)) as peer,
    ):
        await asyncio.to_thread(watch, peer, 1, SERVICE)
        await asyncio.to_thread(watch, peer, 3, b"")
        async with AsyncDigitsClient(service.address, timeout=20) as client:
            assert len(await client.predict(BLANK)) == 1
        async with aio.insecure_channel(service.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            for name in (SERVICE.decode(), ""):
                other = stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=20)
                assert (await other.read()).status == SERVING
            await asyncio.to_thread(still_reports, service)
            service.process.send_signal(signal.SIGTERM)
            assert (await other.read()).status == NOT_SERVING
        assert await asyncio.to_thread(service.ended) == 0
        assert service.lines[-1]["event"] == "stopped"


@pytest.mark.usefixtures("transport")
async def test_every_watcher_receives_not_serving_before_its_stream_ends(model_path: Path) -> None:
    with serving(model_path) as service:
        async with aio.insecure_channel(service.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            calls = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=60) for _ in range(32)]
            assert {(await call.read()).status for call in calls} == {SERVING}
            service.process.send_signal(signal.SIGTERM)
            assert {(await call.read()).status for call in calls} == {NOT_SERVING}
        assert await asyncio.to_thread(service.ended) == 0


@pytest.mark.usefixtures("transport")
def test_a_stop_during_a_status_message_only_waits_for_that_message(model_path: Path) -> None:
    with (
        serving(model_path, "--shutdown-grace", str(10 * ANSWERS_WITHIN)) as service,
        contextlib.closing(connected(service, PREFACE + NO_WINDOW)) as peer,
    ):
        watch(peer, 1, SERVICE)
        service.process.send_signal(signal.SIGTERM)
        frames = each_frame(peer)
        assert GOAWAY in (kind for kind, _, _, _ in frames)
        peer.sendall(frame(SETTINGS, 0, 0, b"\0\4\0\0\xff\xff"))
        assert TRAILERS in ((kind, flags, stream) for kind, flags, stream, _ in frames)
        peer.close()
        assert service.ended() == 0
        assert "library log" not in {line["event"] for line in service.lines}, "grpcio rejected the status"


async def test_a_watcher_reads_the_latest_status_and_none_twice() -> None:
    async with listening() as server, aio.insecure_channel(server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        calls = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=30) for _ in range(2)]
        assert [(await call.read()).status for call in calls] == [SERVING] * 2
        for serving_ in (False, True, True, False):
            await server.transport.set_serving(serving_)
        assert [(await call.read()).status for call in calls] == [NOT_SERVING] * 2
        await server.transport.set_serving(True)
        assert [(await call.read()).status for call in calls] == [SERVING] * 2


@pytest.mark.usefixtures("transport")
async def test_an_unknown_service_can_be_watched_and_is_not_found_by_check(model_path: Path) -> None:
    with serving(model_path) as service:
        async with aio.insecure_channel(service.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            call = stub.Watch(health_pb2.HealthCheckRequest(service="other"), timeout=60)
            assert (await call.read()).status == UNKNOWN
            with pytest.raises(aio.AioRpcError) as caught:
                await stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=20)
            assert caught.value.code() is StatusCode.NOT_FOUND
            stopping = asyncio.create_task(asyncio.to_thread(service.stop))
            with pytest.raises(aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is StatusCode.UNAVAILABLE
            assert await stopping == 0


async def test_no_service_is_serving_after_the_stop() -> None:
    servicer = HealthServicer(["", "one"])
    request = health_pb2.HealthCheckRequest(service="one")
    assert (await servicer.Check(request, None)).status == NOT_SERVING
    servicer.set_serving(True)
    assert (await servicer.Check(request, None)).status == SERVING
    servicer.stop()
    servicer.set_serving(True)
    assert {status.status for status in (await servicer.List(None, None)).statuses.values()} == {NOT_SERVING}
