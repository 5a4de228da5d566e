"""Hostile peers of the native transport: each attack ends only the peer's own calls or connection."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import zlib
from typing import TYPE_CHECKING

import pytest
from conftest import needs_native, serving, until
from grpc import Compression, StatusCode, aio
from hostile import HEADERS_FRAME, SETTINGS, WINDOW_UPDATE, Peer, attached, frame, literal, resident, still_serves
from test_native import PREDICT, STREAM, running

from bench.messages import framed
from service.pb.digits.v1.digits_pb2 import ExplainRequest, Neuron, PredictRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import ServiceProcess
    from test_native import Running

pytestmark = needs_native

EXPLAIN = "/digits.v1.DigitService/Explain"
HEALTH = "/grpc.health.v1.Health/Check"
CONTINUATION = 9
CANCEL = (8).to_bytes(4, "big")
NO_WINDOW = b"\0\4\0\0\0\0"  # SETTINGS_INITIAL_WINDOW_SIZE 0
NEURONS = [(layer, index) for layer, size in ((1, 16), (2, 16), (3, 10)) for index in range(size)]
DIGIT_SERVICE = {"grpc_type": "unary", "grpc_service": "digits.v1.DigitService", "grpc_method": "Predict"}
DIGIT_STREAM = {**DIGIT_SERVICE, "grpc_type": "bidi_stream", "grpc_method": "PredictStream"}
# `grpc-status` as h2 encodes it, in HPACK's Huffman code.
NAME = b"\x88\x9a\xca\xc8\xb2\x12\x34\xda\x8f"


def block(path: bytes | str, *fields: bytes, method: bytes = b"POST", te: bool = True) -> bytes:
    """Encode the headers of a call."""
    path = path if isinstance(path, bytes) else path.encode()
    head = literal(b":method", method) + literal(b":scheme", b"http") + literal(b":path", path)
    head += literal(b":authority", b"x") + literal(b"content-type", b"application/grpc")
    return head + (literal(b"te", b"trailers") if te else b"") + b"".join(fields)


def compressed(message: bytes, flag: int = 1) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


def spelled(code: StatusCode) -> bytes:
    """Encode `grpc-status` and the code as in the first reply of a connection."""
    bits = "".join(f"{int(digit):05b}" if digit in "012" else f"{int(digit) + 22:06b}" for digit in str(code.value[0]))
    bits += "1" * (-len(bits) % 8)
    return NAME + bytes([0x80 | len(bits) // 8]) + int(bits, 2).to_bytes(len(bits) // 8, "big")


def connect(server: Running, settings: bytes = b"") -> Peer:
    return Peer("127.0.0.1", server.port, settings)


@pytest.fixture(scope="module")
def service(model_path: Path) -> Iterator[ServiceProcess]:
    with serving(model_path, "--transport", "native") as process:
        still_serves(process)
        yield process


async def test_a_message_without_images_is_limited_to_a_few_kilobytes_compressed_or_not() -> None:
    async with running(max_batch_size=1024) as server:
        bomb = b"\x10\x01" * 1_600_000
        for path in (HEALTH, "/grpc.health.v1.Health/List", "/inference.GRPCInferenceService/ModelMetadata"):
            for how in (Compression.Gzip, Compression.Deflate, Compression.NoCompression):
                with pytest.raises(aio.AioRpcError) as caught:
                    await server.channel.unary_unary(path)(bomb, compression=how, timeout=30)
                assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED
                assert "Received message larger than max" in str(caught.value.details())
            with contextlib.suppress(aio.AioRpcError):
                await server.channel.unary_unary(path)(b"\x10\x01" * 2000, compression=Compression.Gzip, timeout=30)
            labels = {"grpc_service": path.split("/")[1], "grpc_method": path.split("/")[2], "grpc_type": "unary"}
            handled = "grpc_server_handled_total"
            assert server.value(handled, grpc_code="ResourceExhausted", **labels) == 3, "the small one too"


async def test_large_compressed_messages_are_not_read_before_the_calls_of_others() -> None:
    message = gzip.compress(b"\x0a\x80\x80\xc4\x01" + bytes(3211264))[:-8] + bytes(8)  # with a wrong checksum
    head = block(PREDICT, literal(b"grpc-encoding", b"gzip"))
    calls = 200
    async with running(max_batch_size=1024) as server:
        with contextlib.closing(connect(server)) as peer:
            for n in range(calls):
                peer.call(2 * n + 1, head, compressed(message))
            labels = {**DIGIT_SERVICE, "grpc_code": "Internal"}
            await until(lambda: server.value("grpc_server_handled_total", **labels) >= 1)
            assert await server.predict(1) == [1]
            assert server.value("grpc_server_handled_total", **labels) < calls
            assert len(await asyncio.to_thread(peer.answers, calls)) == calls


PIXELS = PredictRequest(pixels=bytes(784)).SerializeToString()
GZIP, DEFLATE = literal(b"grpc-encoding", b"gzip"), literal(b"grpc-encoding", b"deflate")
AUTHORITY = b"\x00\x0a:authority\x7f" + b"\x80\x7f" + b"a" * (127 + 127 * 128)  # 16,383 bytes
TWICE = gzip.compress(PIXELS[:300]) + gzip.compress(PIXELS[300:])
WRONG = {
    "a query": (block(f"{PREDICT}?x=1"), framed(PIXELS), StatusCode.UNIMPLEMENTED),
    "GET": (block(PREDICT, method=b"GET"), framed(PIXELS), StatusCode.INTERNAL),
    "PUT": (block(PREDICT, method=b"PUT"), framed(PIXELS), StatusCode.INTERNAL),
    "no te": (block(PREDICT, te=False), framed(PIXELS), StatusCode.INTERNAL),
    "half a message": (block(PREDICT), framed(PIXELS)[:400], StatusCode.INTERNAL),
    "half a prefix": (block(PREDICT), b"\0\0", StatusCode.INTERNAL),
    "half a message in a stream": (block(STREAM), framed(PIXELS)[:400], StatusCode.INTERNAL),
    "a timeout without a unit": (block(PREDICT, literal(b"grpc-timeout", b"10")), framed(PIXELS), StatusCode.INTERNAL),
    "a negative timeout": (block(PREDICT, literal(b"grpc-timeout", b"-1S")), framed(PIXELS), StatusCode.INTERNAL),
    "a timeout too long": (
        block(PREDICT, literal(b"grpc-timeout", b"1" * 9 + b"S")),
        framed(PIXELS),
        StatusCode.INTERNAL,
    ),
    "flag 2": (block(PREDICT, GZIP), compressed(gzip.compress(PIXELS), 2), StatusCode.INTERNAL),
    "flag 255": (block(PREDICT, GZIP), compressed(gzip.compress(PIXELS), 255), StatusCode.INTERNAL),
    "behind zlib": (block(PREDICT, DEFLATE), compressed(zlib.compress(PIXELS) + b"x"), StatusCode.INTERNAL),
    "behind gzip": (block(PREDICT, GZIP), compressed(gzip.compress(PIXELS) + b"x"), StatusCode.INTERNAL),
    "two members": (block(PREDICT, GZIP), compressed(TWICE), StatusCode.INTERNAL),
    "a long authority": (
        block(PREDICT).replace(literal(b":authority", b"x"), AUTHORITY),
        b"",
        StatusCode.RESOURCE_EXHAUSTED,
    ),
    "field 0": (block(HEALTH), framed(b"\0\1"), StatusCode.INVALID_ARGUMENT),
    "11 bytes of varint": (block(HEALTH), framed(b"\x10" + b"\xff" * 10 + b"\1"), StatusCode.INVALID_ARGUMENT),
}


@pytest.mark.parametrize(("head", "body", "code"), WRONG.values(), ids=WRONG)
async def test_calls_that_grpc_forbids_are_rejected(head: bytes, body: bytes, code: StatusCode) -> None:
    async with running() as server:
        with contextlib.closing(connect(server)) as peer:
            size = 16384
            first, *more = [head[at : at + size] for at in range(0, len(head), size)]
            if more:
                peer.send(frame(HEADERS_FRAME, 0, 1, first), frame(CONTINUATION, 4, 1, *more))
            else:
                peer.call(1, head, body)
            [answer] = await asyncio.to_thread(peer.answers)
            assert spelled(code) in answer
            assert server.model.runs == []


async def test_a_request_id_is_returned_if_it_is_a_valid_header_value() -> None:
    async with running() as server:
        for value, is_repeated in ((b"plain-id", True), (b"a\xffb", False), (b"caf\xc3\xa9", False)):
            with contextlib.closing(connect(server)) as peer:
                peer.call(1, block(PREDICT, literal(b"x-request-id", value)), framed(PIXELS))
                [answer] = await asyncio.to_thread(peer.answers)
                assert len(answer) > 20 or not is_repeated
                assert (len(answer) > 20) == is_repeated


async def test_a_connection_whose_peer_reads_no_reply_is_ended_in_spite_of_other_frames() -> None:
    async with running(message_timeout=0.4, keepalive=0.1) as server:
        with contextlib.closing(connect(server, NO_WINDOW)) as peer:
            peer.call(1, block(PREDICT), framed(PIXELS))
            assert await asyncio.to_thread(peer.is_ended, 30)
        assert server.value("digits_connections_ended_total", reason="unread") == 1
        with contextlib.closing(connect(server)) as peer:
            peer.call(1, block(PREDICT), framed(PIXELS))
            assert spelled(StatusCode.OK) in (await asyncio.to_thread(peer.answers))[0]
            assert not await asyncio.to_thread(peer.is_ended, 2)  # the peer has read all replies


def test_unread_replies_take_bounded_memory_and_later_calls_wait(
    service: ServiceProcess, tell: Callable[[str], None]
) -> None:
    neurons = [Neuron(layer=layer, index=index) for layer, index in NEURONS]
    message = framed(ExplainRequest(pixels=bytes(784 * 17), neurons=neurons).SerializeToString())
    before = resident(service)
    head, calls = block(EXPLAIN), 40  # of 3.1 MB of reply each
    with contextlib.closing(attached(service, NO_WINDOW)) as peer:
        for n in range(calls):
            peer.call(2 * n + 1, head, message)
        assert not peer.is_ended(5)
        held = resident(service)
        assert held < before + 80
        still_serves(service)
        # A call behind the same proxy, whose client reads its small reply.
        peer.call(2 * calls + 1, block(PREDICT), framed(PIXELS))
        peer.send(frame(WINDOW_UPDATE, 0, 2 * calls + 1, (1000).to_bytes(4, "big")))
        assert spelled(StatusCode.OK) in peer.answers()[0]
        # The peer reads, so that every call is answered.
        opened = frame(SETTINGS, 0, 0, b"\0\4\x7f\xff\xff\xff") + frame(8, 0, 0, (2**30).to_bytes(4, "big"))
        peer.send(opened)
        assert len(peer.answers(calls + 1)) == calls + 1
    tell(f"{calls} unread replies of 3.1 MB: {before:.0f} -> {held:.0f} MB")


def test_unfinished_messages_take_bounded_memory(service: ServiceProcess, tell: Callable[[str], None]) -> None:
    before = resident(service)
    half = b"\0" + (3_200_000).to_bytes(4, "big") + bytes(3_000_000)
    for path, more in ((HEALTH, 20), (PREDICT, 250)):
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                peer = stack.enter_context(contextlib.closing(attached(service)))
                for n in range(25):
                    peer.call(2 * n + 1, block(path), half, end=False)
            held = resident(service)
            assert held < before + more
            still_serves(service)
        tell(f"100 halves of 3.2 MB to {path}: {before:.0f} -> {held:.0f} MB")


def test_frames_of_one_byte_take_no_more_memory_than_their_bytes(service: ServiceProcess) -> None:
    before = resident(service)
    with contextlib.closing(attached(service)) as peer:
        peer.read()  # the windows
        peer.call(1, block(PREDICT), b"\0\0\x30\0\0", end=False)
        for _ in range(300):
            peer.send(frame(0, 0, 1, b"\0") * 2000)
            peer.synchronize()  # h2 closes a connection with more unread frames
        assert not peer.is_closed
        still_serves(service)
        assert resident(service) < before + 15


async def test_a_message_that_arrives_byte_by_byte_times_out() -> None:
    async with running(message_timeout=0.5) as server:
        with contextlib.closing(connect(server)) as peer:
            peer.call(1, block(PREDICT), framed(PIXELS)[:5], end=False)
            for byte in PIXELS:
                peer.send(frame(0, 0, 1, bytes([byte])))
                await asyncio.sleep(0.05)
                if server.value("grpc_server_handled_total", grpc_code="DeadlineExceeded", **DIGIT_SERVICE):
                    return
            pytest.fail("the server continues to wait")


@pytest.mark.parametrize(
    ("method", "kind", "body"),
    [("Check", "unary", None), ("Watch", "server_stream", framed(b""))],
    ids=["Check", "Watch"],
)
def test_open_calls_of_unauthenticated_clients_are_bounded_and_a_health_check_is_answered(
    model_path: Path, tmp_path: Path, method: str, kind: str, body: bytes | None
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("a-token-that-is-long-enough-0123456789\n")
    tokens.chmod(0o600)
    with (
        serving(model_path, "--transport", "native", "--tokens-file", tokens) as service,
        contextlib.ExitStack() as stack,
    ):
        handled = ("grpc_server_handled_total", ("ResourceExhausted", method, "grpc.health.v1.Health", kind))
        for _ in range(6):
            peer = stack.enter_context(contextlib.closing(attached(service)))
            for n in range(1000):
                head, message = frame(HEADERS_FRAME, 4, 2 * n + 1, block(HEALTH.replace("Check", method))), b""
                if body is not None:
                    message = frame(0, 1, 2 * n + 1, body)
                peer.send(head, message)
            peer.is_ended(1)
        series = service.series()
        assert series[handled] + series["digits_connections_ended_total", ("memory",)] > 0
        peer = stack.enter_context(contextlib.closing(attached(service)))
        peer.call(1, block(HEALTH), framed(b""))
        assert spelled(StatusCode.OK) in peer.answers()[0]


async def test_a_stream_ends_at_its_deadline_with_an_unread_reply() -> None:
    async with running() as server:
        with contextlib.closing(connect(server, NO_WINDOW)) as peer:
            peer.call(1, block(STREAM, literal(b"grpc-timeout", b"500m")), framed(PIXELS), end=False)
            [answer] = await asyncio.to_thread(peer.answers)
            assert spelled(StatusCode.DEADLINE_EXCEEDED)[-2:] in answer
        with contextlib.closing(connect(server, b"\0\4\0\0\0\x0a")) as peer:  # the window is 10 bytes
            peer.call(1, block(STREAM, literal(b"grpc-timeout", b"500m")), framed(PIXELS), end=False)
            assert await asyncio.to_thread(peer.answers) == [CANCEL]
        assert server.value("grpc_server_handled_total", grpc_code="DeadlineExceeded", **DIGIT_STREAM) == 2


async def test_a_drain_does_not_wait_for_replies_that_are_not_read() -> None:
    async with running() as server:
        with (
            contextlib.closing(connect(server, NO_WINDOW)) as peer,
            contextlib.closing(connect(server, NO_WINDOW)) as other,
        ):
            peer.call(1, block(STREAM), framed(PIXELS), end=False)
            other.call(1, block(PREDICT), framed(PIXELS))
            await until(lambda: sum(map(len, server.model.runs)) == 2)
            reading = [asyncio.to_thread(each.is_ended, 60) for each in (peer, other)]
            _, *ended = await asyncio.gather(asyncio.wait_for(server.transport.stop(600), 60), *reading)
            assert ended == [True, True]


async def test_a_drain_does_not_wait_for_a_peer_without_a_call_that_does_not_answer() -> None:
    async with running() as server:
        with contextlib.closing(connect(server)) as peer:
            peer.call(1, block(PREDICT), framed(PIXELS))
            assert await asyncio.to_thread(peer.answers)
            await asyncio.wait_for(server.transport.stop(600), 60)


def test_log_lines_of_a_peer_are_bounded_and_suppressed_ones_counted(model_path: Path) -> None:
    calls = 500
    with serving(model_path, "--transport", "native") as service:
        for start in range(0, calls, 250):
            with contextlib.closing(attached(service)) as peer:
                for n in range(250):
                    peer.call(2 * n + 1, block(HEALTH), framed(b"\xff"))
                assert len(peer.answers(250)) == 250, start
        service.stop()
        refused = [line for line in service.lines if line["event"] == "call rejected"]
        assert 0 < len(refused) < calls / 2  # 100 at once, and 10 per second
        assert all(line.get("suppressed", 0) < calls for line in refused)


async def test_a_health_watch_keeps_its_deadline() -> None:
    async with running() as server:
        with contextlib.closing(connect(server)) as peer:
            head = block("/grpc.health.v1.Health/Watch", literal(b"grpc-timeout", b"300m"))
            peer.call(1, head, framed(b""))
            [answer] = await asyncio.to_thread(peer.answers)
            assert spelled(StatusCode.DEADLINE_EXCEEDED) in answer


def test_codes_are_encoded_as_by_h2() -> None:
    assert spelled(StatusCode.RESOURCE_EXHAUSTED).endswith(b"\x81\x7b")
    assert spelled(StatusCode.INTERNAL).endswith(b"\x82\x0b\x3f")
