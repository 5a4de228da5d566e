"""Slow, silent, greedy and invalid peers only affect their own connection."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from conftest import ANSWERS_WITHIN, serving, wait_until
from grpc import StatusCode
from hostile import (
    HEADERS,
    LONG,
    PING,
    PREDICT,
    PREFACE,
    SETTINGS,
    connected,
    ended_by_server,
    frame,
    frames,
    handles,
    literal,
    resident,
    still_serves,
)

from bench.messages import framed
from service.pb.digits.v1.digits_pb2 import PredictRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.slow

# `grpc-status: 8` in HPACK, plain and in its Huffman code.
RESOURCE_EXHAUSTED = (b"\x0bgrpc-status\x018", b"\x88\x9a\xca\xc8\xb2\x12\x34\xda\x8f\x81\x7b")
SLOW = {
    "says nothing": b"",
    "half a preface": PREFACE[:10],
    "no stream": PREFACE,
    "headers and no message": PREFACE + frame(1, 4, 1, HEADERS),
    "half a message": PREFACE + frame(1, 4, 1, HEADERS) + frame(0, 0, 1, b"\0\0\0\3\x13\x0a\x90\x06" + bytes(100)),
    "headers without an end": PREFACE + frame(1, 0, 1, HEADERS),
    "nonsense": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}


def test_a_thousand_slow_or_silent_connections_take_bounded_memory_and_leave_no_handle(
    model_path: Path, tell: Callable[[str], None], transport: str
) -> None:
    count = 1000 if LONG else 210
    with serving(model_path) as service:
        still_serves(service)
        before, level = resident(service), handles(service)
        peers = [connected(service, sent) for sent in list(SLOW.values()) * (count // len(SLOW))]
        still_serves(service)
        held, most = resident(service), handles(service)
        for peer in peers:
            peer.close()
        wait_until(lambda: handles(service) <= level + 5)
        assert held - before < 0.25 * len(peers)  # at most 0.25 MB each
        still_serves(service)
        tell(
            f"{transport}: {len(peers)} connections of {len(SLOW)} kinds of slow: {before:.0f} -> {held:.0f} MB, "
            f"handles {level:.0f} -> {most:.0f} -> {handles(service):.0f}; every other call answered"
        )


@pytest.mark.usefixtures("transport")
def test_a_flood_of_pings_or_headers_does_not_affect_other_clients(model_path: Path) -> None:
    pings = b"".join(frame(6, 0, 0, n.to_bytes(8, "big")) for n in range(10_000))
    long_name = literal(b"x-flood", b"y" * 100) * 140
    headers = PREFACE + frame(1, 0, 1, HEADERS + long_name)
    flood = headers + b"".join(frame(9, 0, 1, long_name) for _ in range(400))  # 6 MB of headers that never end
    with serving(model_path) as service:
        before = resident(service)
        with contextlib.closing(connected(service, PREFACE + pings)) as peer:
            assert ended_by_server(peer)
            still_serves(service)
        with contextlib.closing(connected(service, flood)) as peer:
            ended_by_server(peer, within=1)  # ended or discarded; the check is below
            still_serves(service)
        assert resident(service) < before + 40


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("size", [20_000, 60_000, 90_000])
def test_metadata_over_the_limit_ends_its_call_alone_in_small_frames_too(model_path: Path, size: int) -> None:
    field = literal(b"x-large", b"y" * 100)
    block = HEADERS + field * (size // len(field))
    first, *more = [block[i : i + 16384] for i in range(0, len(block), 16384)]  # the largest allowed size
    sent = frame(1, 0, 1, first) + b"".join(frame(9, 0, 1, part) for part in more) + frame(9, 4, 1, b"")
    with serving(model_path) as service, contextlib.closing(connected(service, PREFACE)) as peer:
        frames(peer, SETTINGS)
        # First acknowledge the settings. Until then, grpcio has HTTP/2's default limits.
        peer.sendall(frame(SETTINGS, 1, 0, b"") + sent + frame(0, 1, 1, framed(b"")))
        kind, answer = frames(peer, 1)[-1]
        assert kind == 1
        assert any(status in answer for status in RESOURCE_EXHAUSTED)
        peer.sendall(frame(PING, 0, 0, b"are you?"))
        assert frames(peer, PING)[-1] == (PING, b"are you?")
        still_serves(service)


def test_a_message_over_the_limit_is_rejected_compressed_or_not_in_bounded_memory(
    model_path: Path, tell: Callable[[str], None], transport: str
) -> None:
    bomb = PredictRequest(pixels=bytes(100 * 2**20)).SerializeToString()
    times = 20 if LONG else 2
    with serving(model_path) as service:
        still_serves(service)
        before = resident(service)
        options = [("grpc.max_send_message_length", -1)]
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            with grpc.insecure_channel(service.address, options, compression) as channel:
                call: Any = channel.unary_unary(PREDICT)
                for _ in range(times):
                    with pytest.raises(grpc.RpcError) as caught:
                        call(bomb, timeout=ANSWERS_WITHIN)
                    assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED
        after = resident(service)
        assert after < before + 40
        still_serves(service)
        tell(
            f"{transport}: {2 * times} messages of 100 MB, half of them gzipped to 0.1 MB: "
            f"rejected, {before:.0f} -> {after:.0f} MB"
        )


@pytest.mark.usefixtures("transport")
def test_a_client_that_does_not_read_delays_no_other_client(model_path: Path) -> None:
    """Flow control limits the unread replies of a stream to its window."""
    message = PredictRequest(pixels=bytes(784 * 1000), include_hidden_layers=True).SerializeToString()
    data = b"\0" + len(message).to_bytes(4, "big") + message
    path = HEADERS.replace(literal(b":path", PREDICT.encode()), literal(b":path", f"{PREDICT}Stream".encode()))
    frames = b"".join(frame(0, 0, 1, data[i : i + 16384]) for i in range(0, len(data), 16384))
    with serving(model_path) as service:
        still_serves(service)
        before = resident(service)
        with contextlib.closing(connected(service, PREFACE + frame(1, 4, 1, path))) as peer:
            peer.settimeout(0.5)
            with contextlib.suppress(TimeoutError, ConnectionError):
                for _ in range(100):
                    peer.sendall(frames)
            still_serves(service)
            assert resident(service) < before + 60
