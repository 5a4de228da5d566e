"""Both transports answer plain, random and hostile messages with the same status, message, details and reply."""

from __future__ import annotations

import gzip
import queue
import random
import socket
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import numpy as np
import pytest
from conftest import needs_native, serving

from service.observability.metrics import NATIVE_SERIES
from service.pb.digits.v1.digits_pb2 import PredictRequest
from service.pb.inference import open_inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [needs_native, pytest.mark.slow]

MESSAGES = 800  # to each RPC
PREDICT = "/digits.v1.DigitService/Predict"
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAMS = ("/digits.v1.DigitService/PredictStream", "/inference.GRPCInferenceService/ModelStreamInfer")
MESSAGE_LIMIT = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class Heard(NamedTuple):
    """The result of one call."""

    replies: tuple[bytes, ...]
    code: grpc.StatusCode
    sentence: str
    details: bytes


@pytest.fixture(scope="module")
def addresses(model_path: Path) -> Iterator[tuple[str, str]]:
    with serving(model_path, "--transport", "grpcio") as a, serving(model_path, "--transport", "native") as b:
        yield a.address, b.address


@pytest.fixture(scope="module")
def channels(addresses: tuple[str, str]) -> Iterator[list[grpc.Channel]]:
    found = [grpc.insecure_channel(address, MESSAGE_LIMIT) for address in addresses]
    yield found
    for channel in found:
        channel.close()


def test_both_have_the_same_series_except_those_of_the_native_transport(model_path: Path) -> None:
    with serving(model_path, "--transport", "grpcio") as a, serving(model_path, "--transport", "native") as b:
        of_grpcio, of_native = ({name for name, _ in service.series()} for service in (a, b))
    assert of_native - of_grpcio == NATIVE_SERIES
    assert of_grpcio <= of_native


def refused(error: Any, replies: tuple[bytes, ...] = ()) -> Heard:
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    return Heard(replies, error.code(), error.details(), details)


def ask(channel: grpc.Channel, path: str, message: bytes, **options: Any) -> Heard:
    try:
        reply = channel.unary_unary(path)(message, timeout=20, **options)
    except grpc.RpcError as error:
        return refused(error)
    return Heard((reply,), grpc.StatusCode.OK, "", b"")


def converse(channel: grpc.Channel, path: str, messages: list[bytes], **options: Any) -> Heard:
    """Send each message after the reply to the last one, so that each is a separate batch."""
    line: queue.Queue[bytes | None] = queue.Queue()
    stream = channel.stream_stream(path)(iter(line.get, None), timeout=20, **options)
    replies: list[bytes] = []
    try:
        for message in messages:
            line.put(message)
            replies.append(next(stream))
        line.put(None)
        assert list(stream) == []
    except grpc.RpcError as error:
        line.put(None)
        return refused(error, tuple(replies))
    return Heard(tuple(replies), grpc.StatusCode.OK, "", b"")


def predict_request(rng: random.Random) -> bytes:
    images = rng.choice([1, 1, 1, 2, 3, 17])
    return PredictRequest(
        pixels=rng.randbytes(images * 784 + rng.choice([0] * 9 + [-1])),
        include_hidden_layers=rng.random() < 0.4,
        include_reliability=rng.random() < 0.3,
        model_version=rng.choice(["", "", "1", "2", "é" * 40]),
    ).SerializeToString()


def infer_request(rng: random.Random) -> bytes:
    images, wide = rng.choice([1, 1, 2, 5]), rng.random() < 0.2
    pixels = np.frombuffer(rng.randbytes(images * 784), np.uint8)
    request = pb.ModelInferRequest(model_name=rng.choice(["digits"] * 9 + ["x"]), id=rng.choice(["", "a", "é"]))
    request.model_version = rng.choice(["", "1", "1", "9"])
    tensor = request.inputs.add(name="pixels", datatype="FP32" if wide else "UINT8", shape=[images, 784])
    if rng.random() < 0.15:
        field = tensor.contents.fp32_contents if wide else tensor.contents.uint_contents
        field.extend((pixels / np.float32(255)).tolist() if wide else pixels.tolist())
    else:
        raw = (pixels / np.float32(255)).astype("<f4") if wide else pixels
        request.raw_input_contents.append(raw.tobytes())
    for name in rng.sample(["digit", "activations", "layer1", "layer2", "softmax"], rng.choice([0, 0, 1, 2, 4])):
        request.outputs.add(name=name)
    if rng.random() < 0.1:
        request.parameters["timeout"].int64_param = rng.choice([0, 60_000_000, -1])
    if rng.random() < 0.1:
        tensor.shape[:] = [images + 1, 784]
    return request.SerializeToString()


def oip_request(images: int, told: int) -> bytes:
    """Create a request with `images` images and a shape of `told` images."""
    request = pb.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(784 * images)])
    request.inputs.add(name="pixels", datatype="UINT8", shape=[told, 784])
    return request.SerializeToString()


def damaged(rng: random.Random, message: bytes) -> bytes:
    """Change bytes near the front of a message, in its fields, or truncate, repeat or shuffle it."""
    data, kind = bytearray(message), rng.randrange(8)
    for _ in range(rng.choice([1, 1, 2, 5]) if kind < 4 else 0):
        data[min(int(rng.expovariate(0.03)), len(data) - 1)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    match kind:
        case 4:
            del data[rng.randrange(len(data)) :]
        case 5:
            data += data[: rng.randrange(len(data))]
        case 6:
            data += rng.choice([b"\xf8\x01\x07", b"\x10\x01", b"\x1a\x011", b"\x12\x001", b"\x0a\x00", b"\x7a\x00"])
        case 7:
            data = bytearray(rng.randbytes(rng.randrange(64)))
    return bytes(data)


@pytest.mark.parametrize(("path", "make"), [(PREDICT, predict_request), (INFER, infer_request)], ids=["digits", "oip"])
def test_any_message_is_answered_alike(
    channels: list[grpc.Channel], path: str, make: Callable[[random.Random], bytes]
) -> None:
    rng = random.Random(784)
    codes: dict[grpc.StatusCode, int] = {}
    for i in range(MESSAGES):
        message = make(rng) if i % 2 else damaged(rng, make(rng))
        first, second = (ask(channel, path, message) for channel in channels)
        assert first == second, (i, message[:80])
        codes[first.code] = codes.get(first.code, 0) + 1
    assert codes[grpc.StatusCode.OK] > MESSAGES // 5
    assert codes[grpc.StatusCode.INVALID_ARGUMENT] > MESSAGES // 10
    assert grpc.StatusCode.INTERNAL not in codes


@pytest.mark.parametrize(
    ("path", "make"), list(zip(STREAMS, (predict_request, infer_request), strict=True)), ids=["digits", "oip"]
)
def test_any_stream_is_answered_alike(
    channels: list[grpc.Channel], path: str, make: Callable[[random.Random], bytes]
) -> None:
    rng = random.Random(16)
    for _ in range(MESSAGES // 20):
        messages = [make(rng) if rng.random() < 0.8 else damaged(rng, make(rng)) for _ in range(rng.randrange(20))]
        for metadata in ([], [("triton_grpc_error", "true")]):
            first, second = (converse(channel, path, messages, metadata=metadata) for channel in channels)
            assert first == second, [message[:80] for message in messages]


@pytest.mark.parametrize(
    "path",
    [
        "/inference.GRPCInferenceService/ModelMetadata",
        "/inference.GRPCInferenceService/ModelConfig",
        "/inference.GRPCInferenceService/ModelReady",
        "/inference.GRPCInferenceService/ServerMetadata",
        "/inference.GRPCInferenceService/RepositoryIndex",
        "/inference.GRPCInferenceService/TraceSetting",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/digits.v1.DigitService/Guess",
    ],
)
def test_every_other_rpc_is_answered_alike(channels: list[grpc.Channel], path: str) -> None:
    for message in (b"", b"\x0a\x06digits", b"\x0a\x01x", b"\x0a\x16digits.v1.DigitService", b"\x10\x01", b"\xff"):
        first, second = (ask(channel, path, message) for channel in channels)
        if path.endswith(("Metadata", "List")):  # protobuf's order of a map differs by process
            first, second = (
                heard._replace(replies=tuple(bytes(sorted(reply)) for reply in heard.replies))
                for heard in (first, second)
            )
        assert first == second, message


def test_a_compressed_message_is_read(channels: list[grpc.Channel]) -> None:
    message = PredictRequest(pixels=bytes(784 * 100)).SerializeToString()
    for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        first, second = (ask(channel, PREDICT, message, compression=compression) for channel in channels)
        assert first == second
        assert first.code is grpc.StatusCode.OK


def test_a_message_over_the_limit_has_the_same_status(channels: list[grpc.Channel]) -> None:
    message = PredictRequest(pixels=bytes(784 * 5000)).SerializeToString()
    first, second = (ask(channel, PREDICT, message) for channel in channels)
    assert first == second
    # An overload has RetryInfo in its details. Without details, a retry is useless.
    assert (first.code, first.details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, b"")


def test_a_stream_continues_after_a_bad_message_and_ends_with_one_over_the_limit(channels: list[grpc.Channel]) -> None:
    good, bad, large = (oip_request(*sizes) for sizes in ((1, 1), (1, 2), (5000, 5000)))
    first, second = (converse(channel, STREAMS[1], [good, bad, good, large]) for channel in channels)
    assert first == second
    errors = [pb.ModelStreamInferResponse.FromString(reply).error_message for reply in first.replies]
    assert [error.partition(":")[0] for error in errors] == ["", "pixels", ""]
    assert (first.code, first.details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, b"")


@pytest.mark.parametrize("size", [100, 15_000, 20_000, 100_000])
def test_metadata_is_accepted_up_to_the_same_limit(channels: list[grpc.Channel], size: int) -> None:
    message = PredictRequest(pixels=bytes(784)).SerializeToString()
    first, second = (ask(channel, PREDICT, message, metadata=[("x-large", "y" * size)]) for channel in channels)
    assert first.code is second.code
    assert first.code is (grpc.StatusCode.OK if size < 16_000 else grpc.StatusCode.RESOURCE_EXHAUSTED)


HOSTILE = [
    ("nothing", b""),
    ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("the preface alone", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ("noise behind the preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + random.Random(2).randbytes(4000)),
    ("a frame of 16 MB", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">I", 0xFFFFFF00) + bytes(10)),
    ("gzip", gzip.compress(bytes(10_000), mtime=0)),
]


@pytest.mark.parametrize("sent", [row[1] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_a_hostile_connection_does_not_affect_other_clients(
    addresses: tuple[str, str], channels: list[grpc.Channel], sent: bytes
) -> None:
    host, port = addresses[1].rsplit(":", 1)
    for _ in range(20):
        with socket.create_connection((host, int(port)), 5) as connection:
            connection.sendall(sent)
    heard = ask(channels[1], PREDICT, PredictRequest(pixels=bytes(784)).SerializeToString())
    assert heard.code is grpc.StatusCode.OK
