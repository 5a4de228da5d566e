"""Every channel argument of the grpcio transport has its effect; grpcio ignores unknown keys."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bare_grpcio import Bare, listening
from conftest import ROOT
from grpc import StatusCode, aio
from grpc._cython import cygrpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hostile import (
    GOAWAY,
    HEADERS,
    PING,
    PREDICT,
    PREFACE,
    SETTINGS,
    connected,
    each_frame,
    ended_by_server,
    frame,
    frames,
    kernel_waits,
    literal,
)

from service.transports.grpcio.channel_options import channel_options
from service.transports.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

CHECK = "/grpc.health.v1.Health/Check"
ACK = END = 1
RST_STREAM = 3
NO_ERROR = bytes(4)
OWN = ("service", "client", "cluster", "play", "bench")


def keys_in_sources(*folders: str) -> set[str]:
    """Return the first elements of pairs that look like channel arguments."""
    trees = (ast.parse(path.read_text()) for folder in folders for path in (ROOT / folder).rglob("*.py"))
    pairs = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Tuple) and len(node.elts) == 2)
    firsts = (pair.elts[0] for pair in pairs)
    values = (first.value for first in firsts if isinstance(first, ast.Constant))
    return {value for value in values if isinstance(value, str) and value.startswith("grpc.")}


def test_grpcio_knows_every_channel_argument() -> None:
    assert cygrpc.__file__ is not None
    library, keys = Path(cygrpc.__file__).read_bytes(), keys_in_sources(*OWN)
    assert "grpc.keepalive_time_ms" in keys
    assert [key for key in sorted(keys) if key.encode() + b"\0" not in library] == []


async def check(server: Bare, size: int = 0, **options: Any) -> StatusCode:
    """Return the status of a health check with a name of that length; NOT_FOUND if the call is admitted."""
    sends = [("grpc.use_local_subchannel_pool", 1)]
    async with aio.insecure_channel(server.address, sends) as channel_:
        stub: Any = health_pb2_grpc.HealthStub(channel_)
        try:
            await stub.Check(health_pb2.HealthCheckRequest(service="x" * size), timeout=20, **options)
        except aio.AioRpcError as e:
            return e.code()
        return StatusCode.OK


async def heard(peer: socket.socket, until: int, within: float = 20) -> list[tuple[int, bytes]]:
    """Read `frames` in a thread, so that the server of this process continues."""
    return await asyncio.to_thread(frames, peer, until, within)


async def met(server: Bare) -> socket.socket:
    """Connect and exchange settings."""
    peer = connected(server, PREFACE)
    await heard(peer, SETTINGS)
    peer.sendall(frame(SETTINGS, ACK, 0, b""))
    return peer


async def no_port_is_shared() -> None:
    async with listening() as server:
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", int(server.address.rpartition(":")[2])))


async def messages_are_as_large_as_a_batch() -> None:
    async with listening(max_batch_size=1) as server:
        assert await check(server, 19_000) is StatusCode.NOT_FOUND
        assert await check(server, 20_000) is StatusCode.RESOURCE_EXHAUSTED
    async with listening(max_batch_size=2000) as server:
        assert await check(server, 5_000_000) is StatusCode.NOT_FOUND


async def metadata_has_one_bound() -> None:
    """Between two bounds, gRPC rejects calls at random, so the test sends many."""
    for limit, allowed, refused in ((16_384, 15_000, 17_000), (4_096, 3_000, 5_000)):
        async with listening(max_metadata_bytes=limit) as server:
            for size, code in ((allowed, StatusCode.OK), (refused, StatusCode.RESOURCE_EXHAUSTED)):
                tries = [check(server, metadata=[("x-long", "y" * size)]) for _ in range(20)]
                assert await asyncio.gather(*tries) == [code] * 20


async def connections_are_bounded() -> None:
    async with listening(connections=2) as server:
        first, second, third = await met(server), await met(server), connected(server, PREFACE)
        with contextlib.closing(first), contextlib.closing(second), contextlib.closing(third):
            assert await asyncio.to_thread(ended_by_server, third, 20)


async def streams_are_bounded() -> None:
    async with listening(streams=7) as server:
        with contextlib.closing(connected(server, PREFACE)) as peer:
            settings = (await heard(peer, SETTINGS))[-1][1]
            assert bytes([0, 3, 0, 0, 0, 7]) in [settings[at : at + 6] for at in range(0, len(settings), 6)]


async def a_peer_within_the_bound_is_not_refused() -> None:
    """The peer opens a stream as soon as another has ended, before the server has removed it."""
    async with listening(streams=4) as server:
        with contextlib.closing(await met(server)) as peer:
            assert await asyncio.to_thread(refused, peer, 4, 4000) == 0


def refused(peer: socket.socket, at_a_time: int, count: int) -> int:
    """Return how many of `count` health checks end without an answer."""
    path = HEADERS.replace(literal(b":path", PREDICT.encode()), literal(b":path", CHECK.encode()))
    calls = [frame(1, 4, stream, path) + frame(0, END, stream, bytes(5)) for stream in range(1, 2 * count, 2)]
    peer.sendall(b"".join(calls[:at_a_time]))
    answered, without = 0, 0
    for kind, flags, _, payload in each_frame(peer):
        is_answered, is_refused = kind == 1 and flags & END, kind == RST_STREAM and payload != NO_ERROR
        if is_answered or is_refused:
            answered, without = answered + bool(is_answered), without + is_refused
            if answered + without == count:
                break
            peer.sendall(b"".join(calls[answered + without + at_a_time - 1 :][:1]))
    return without


async def calls_that_nobody_takes_are_bounded() -> None:
    """The event loop is blocked: gRPC admits all calls up to 4,096, and rejects a growing share beyond."""
    async with listening(streams=20_000) as server:
        with contextlib.closing(await met(server)) as peer:
            path = HEADERS.replace(literal(b":path", PREDICT.encode()), literal(b":path", CHECK.encode()))
            peer.sendall(b"".join(frame(1, 4, stream, path) for stream in range(1, 28_000, 2)))
            with ThreadPoolExecutor(1) as thread:
                refused = thread.submit(lambda: list(islice(reset(peer), 1000))).result()  # blocks the loop
            assert min(refused) > 2 * 4000
            assert max(refused) > 2 * 6000  # some calls in between were admitted


def reset(peer: socket.socket) -> Iterator[int]:
    """Yield the streams that are reset."""
    return (stream for kind, _, stream, _ in each_frame(peer) if kind == RST_STREAM)


async def an_old_connection_is_asked_to_end() -> None:
    async with listening(connection_age=0.2) as server:
        with contextlib.closing(await met(server)) as peer:
            peer.sendall(frame(1, 4, 1, HEADERS))  # not idle
            assert GOAWAY in {kind for kind, _ in await heard(peer, GOAWAY)}


async def an_idle_connection_is_asked_to_end() -> None:
    async with listening(connection_idle=0.2) as server:
        with contextlib.closing(await met(server)) as peer:
            assert GOAWAY in {kind for kind, _ in await heard(peer, GOAWAY)}


async def pings_at_the_interval_are_welcome_without_a_call() -> None:
    """Each ping follows the answer to the last one with a delay, so that none is too early on a busy machine."""
    async with listening(ping_interval=0.1) as server:
        with contextlib.closing(await met(server)) as calm:
            for number in range(8):
                calm.sendall(frame(PING, 0, 0, number.to_bytes(8)))
                assert (await heard(calm, PING))[-1] == (PING, number.to_bytes(8))
                await asyncio.sleep(0.3)
        with contextlib.closing(await met(server)) as wild:
            wild.sendall(frame(PING, 0, 0, bytes(8)) * 20)
            assert (await heard(wild, GOAWAY))[-1][1].endswith(b"too_many_pings")


async def a_silent_peer_is_asked_whether_it_is_there() -> None:
    async with listening(keepalive=0.2) as server:
        with contextlib.closing(await met(server)) as peer:
            for _ in range(2):
                kind, payload = (await heard(peer, PING))[-1]
                assert kind == PING
                peer.sendall(frame(PING, ACK, 0, payload))


async def a_peer_whose_kernel_does_not_answer_is_left() -> None:
    """The kernel ends a connection after that time without an acknowledgement; the C core relies on it."""
    async with listening(keepalive_timeout=17) as server:
        with contextlib.closing(await met(server)) as peer:
            assert kernel_waits(peer.getsockname()[1]) == 17_000


SERVER = {
    "grpc.so_reuseport": no_port_is_shared,
    "grpc.max_receive_message_length": messages_are_as_large_as_a_batch,
    "grpc.max_metadata_size": metadata_has_one_bound,
    "grpc.absolute_max_metadata_size": metadata_has_one_bound,
    "grpc.max_allowed_incoming_connections": connections_are_bounded,
    "grpc.max_concurrent_streams": streams_are_bounded,
    "grpc.http.overload_protection": a_peer_within_the_bound_is_not_refused,
    "grpc.server.max_pending_requests": calls_that_nobody_takes_are_bounded,
    "grpc.server.max_pending_requests_hard_limit": calls_that_nobody_takes_are_bounded,
    "grpc.max_connection_age_ms": an_old_connection_is_asked_to_end,
    "grpc.max_connection_idle_ms": an_idle_connection_is_asked_to_end,
    "grpc.http2.min_ping_interval_without_data_ms": pings_at_the_interval_are_welcome_without_a_call,
    "grpc.keepalive_permit_without_calls": pings_at_the_interval_are_welcome_without_a_call,
    "grpc.keepalive_time_ms": a_silent_peer_is_asked_whether_it_is_there,
    "grpc.keepalive_timeout_ms": a_peer_whose_kernel_does_not_answer_is_left,
}


def test_each_argument_of_the_server_has_a_test_of_its_effect() -> None:
    assert [key for key, _ in channel_options(Limits(max_batch_size=1))] == list(SERVER)


@pytest.mark.parametrize("effect", dict.fromkeys(SERVER.values()), ids=lambda effect: effect.__name__)
async def test_server(effect: Callable[[], Awaitable[None]]) -> None:
    await effect()


def test_the_documented_keepalive_of_grpc_clients_is_permitted_with_slack() -> None:
    """grpc-go and grpc-java ping at most every 10 s, and a busy network delays packets."""
    assert 2 * Limits(max_batch_size=1).ping_interval <= 10
