"""The API of the real server over a real socket: requests and their exact replies."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from hypothesis import given, settings
from hypothesis import strategies as st

from export import checkpoint
from service.observability.logs import LOG_INTERVAL
from service.pb.digits.v1.digits_pb2 import PredictRequest, PredictResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import ServiceProcess
    from google.protobuf.any_pb2 import Any as AnyMessage

PREDICT = "/digits.v1.DigitService/Predict"
STREAM = "/digits.v1.DigitService/PredictStream"


@pytest.fixture
async def channel(server: ServiceProcess) -> AsyncIterator[aio.Channel]:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with aio.insecure_channel(server.address, options) as channel:
        yield channel


async def predict(channel: aio.Channel, request: bytes, **options: Any) -> PredictResponse:
    return PredictResponse.FromString(await channel.unary_unary(PREDICT)(request, timeout=10, **options))


def message(pixels: bytes | np.ndarray, **fields: Any) -> bytes:
    return PredictRequest(pixels=bytes(pixels), **fields).SerializeToString()


async def test_a_hundred_real_digits_are_answered_as_the_reference_does(
    channel: aio.Channel, digits: np.ndarray
) -> None:
    reply = await predict(channel, message(digits.tobytes(), include_hidden_layers=True))
    expected = checkpoint.load(checkpoint.committed("sigmoid")).network.forward(digits)
    assert list(reply.digits) == expected.digit.tolist()
    np.testing.assert_allclose(np.reshape(reply.activations, (100, 10)), expected.activations, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.reshape(reply.layer1, (100, 16)), expected.layer1, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.reshape(reply.layer2, (100, 16)), expected.layer2, rtol=0, atol=1e-5)


ACCEPTED = [
    ("one image", message(bytes(784)), 1),
    ("the model's version by name", message(bytes(784), model_version="1"), 1),
    ("the largest batch", message(bytes(784 * 1024)), 1024),
    ("a field this server does not know", message(bytes(784)) + b"\xf8\x01\x07", 1),
]


@pytest.mark.parametrize(("request_", "images"), [row[1:] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED])
async def test_valid_requests_are_accepted(channel: aio.Channel, request_: bytes, images: int) -> None:
    reply = await predict(channel, request_)
    assert (len(reply.digits), len(reply.activations), reply.model_version) == (images, images * 10, "1")


REFUSED = [
    ("empty", b"", StatusCode.INVALID_ARGUMENT, "pixels", "is empty; expected n x 784 bytes, n at least 1"),
    ("no protobuf", b"\xff", StatusCode.INVALID_ARGUMENT, "message", "is not a digits.v1.PredictRequest"),
    (
        "short",
        message(bytes(783)),
        StatusCode.INVALID_ARGUMENT,
        "pixels",
        "holds 783 bytes; expected a multiple of 784",
    ),
    (
        "one too many",
        message(bytes(784 * 1025)),
        StatusCode.INVALID_ARGUMENT,
        "pixels",
        "holds 1025 images; at most 1024 are allowed in one message",
    ),
    ("version", message(bytes(784), model_version="2"), StatusCode.NOT_FOUND, None, "there is no version '2'"),
]


@pytest.mark.parametrize(
    ("request_", "code", "field", "sentence"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
async def test_invalid_requests_are_rejected(
    channel: aio.Channel, request_: bytes, code: StatusCode, field: str | None, sentence: str
) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await predict(channel, request_)
    assert caught.value.code() is code
    assert sentence in caught.value.details()
    violations = [
        (violation.field, violation.description)
        for detail in rpc_status.from_call(caught.value).details
        for violation in unpacked(detail).field_violations
    ]
    assert violations == ([] if field is None else [(field, sentence)])


def unpacked(detail: AnyMessage) -> BadRequest:
    bad_request = BadRequest()
    assert detail.Unpack(bad_request)
    return bad_request


async def test_a_message_over_the_limit_is_rejected_by_its_size(channel: aio.Channel) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await predict(channel, message(bytes(784 * 5000)))
    assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED


async def test_an_unknown_method_is_unimplemented(channel: aio.Channel) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await channel.unary_unary("/digits.v1.DigitService/Guess")(b"", timeout=10)
    assert caught.value.code() is StatusCode.UNIMPLEMENTED


@given(requests=st.lists(st.binary(max_size=1700), min_size=5, max_size=20))
@settings(max_examples=20, deadline=None)
def test_any_bytes_over_the_socket_are_answered_or_rejected_never_internal(
    server: ServiceProcess, requests: list[bytes]
) -> None:
    with grpc.insecure_channel(server.address) as sync_channel:
        call = sync_channel.unary_unary(PREDICT)
        for request in requests:
            try:
                call(request, timeout=10)
            except grpc.RpcError as error:
                assert error.code() in (StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND)


async def test_the_request_id_of_the_client_is_returned_and_logged(server: ServiceProcess) -> None:
    await asyncio.sleep(LOG_INTERVAL)  # earlier tests may have used up the log lines for rejected calls
    async with aio.insecure_channel(server.address) as channel:
        call = channel.unary_unary(PREDICT)(message(bytes(784)), metadata=[("x-request-id", "good-1")], timeout=10)
        await call
        assert ("x-request-id", "good-1") in list(await call.trailing_metadata())
        with pytest.raises(aio.AioRpcError) as caught:
            await predict(channel, b"", metadata=[("x-request-id", "bad-1")])
    assert ("x-request-id", "bad-1") in list(caught.value.trailing_metadata())
    logged = await asyncio.to_thread(server.wait_for, "call rejected", request_id="bad-1")
    assert logged["method"] == PREDICT
    assert logged["code"] == "InvalidArgument"
    assert "pixels: is empty" in logged["reason"]


async def test_a_rejected_call_without_a_request_id_gets_one(channel: aio.Channel) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await predict(channel, b"")
    assert len(dict(caught.value.trailing_metadata())["x-request-id"]) == 32


async def test_a_stream_answers_every_message_in_order(channel: aio.Channel, digits: np.ndarray) -> None:
    expected = [list((await predict(channel, message(row.tobytes()))).digits) for row in digits]
    sizes = [1 + i % 3 for i in range(300)]
    stream = channel.stream_stream(STREAM)(timeout=30)

    async def send() -> None:
        for i, size in enumerate(sizes):
            await stream.write(message(digits[i % 97 : i % 97 + size].tobytes()))
        await stream.done_writing()

    sending = asyncio.create_task(send())
    replies = [PredictResponse.FromString(raw) async for raw in stream]
    await sending
    assert len(replies) == len(sizes)
    for i, (size, reply) in enumerate(zip(sizes, replies, strict=True)):
        assert list(reply.digits) == [digit for row in expected[i % 97 : i % 97 + size] for digit in row]
    assert await stream.code() is StatusCode.OK


def test_a_stream_ends_at_its_first_malformed_message_with_the_replies_before_it(server: ServiceProcess) -> None:
    good = [1 + i % 3 for i in range(500)]
    requests = [*(message(bytes(784 * size)) for size in good), message(bytes(5)), *[message(bytes(784))] * 100]
    with grpc.insecure_channel(server.address) as sync_channel:
        replies = sync_channel.stream_stream(STREAM)(iter(requests), timeout=20)
        sizes = [len(PredictResponse.FromString(next(replies)).digits) for _ in good]
        with pytest.raises(grpc.RpcError) as caught:
            next(replies)
    assert sizes == good
    assert caught.value.code() is StatusCode.INVALID_ARGUMENT
    assert "pixels: holds 5 bytes" in caught.value.details()


async def test_a_passed_deadline_is_deadline_exceeded(channel: aio.Channel) -> None:
    large = message(bytes(784 * 1024))
    calls = [asyncio.ensure_future(channel.unary_unary(PREDICT)(large, timeout=0.01)) for _ in range(60)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    late = [outcome for outcome in outcomes if isinstance(outcome, aio.AioRpcError)]
    assert late, "the server cannot answer 60 calls of 1,024 images in 10 ms"
    assert {error.code() for error in late} == {StatusCode.DEADLINE_EXCEEDED}


async def test_large_batches_do_not_delay_small_requests(channel: aio.Channel, digits: np.ndarray) -> None:
    large = message(np.tile(digits, (10, 1)).tobytes())
    replies = await asyncio.gather(
        *(predict(channel, large if i % 5 == 0 else message(digits[i % 100].tobytes())) for i in range(100))
    )
    assert [len(reply.digits) for reply in replies] == [1000 if i % 5 == 0 else 1 for i in range(100)]


async def test_reflection_describes_the_contract_to_clients_without_the_proto(server: ServiceProcess) -> None:
    def look() -> tuple[set[str], str]:
        with grpc.insecure_channel(server.address) as sync_channel:
            database = ProtoReflectionDescriptorDatabase(sync_channel)
            file = database.FindFileContainingSymbol("digits.v1.DigitService")
            return set(database.get_services()), file.package

    services, package = await asyncio.to_thread(look)
    assert services >= {
        "digits.v1.DigitService",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert package == "digits.v1"


@pytest.mark.parametrize("name", ["", "digits.v1.DigitService", "inference.GRPCInferenceService"])
async def test_health_is_serving_under_each_name(channel: aio.Channel, name: str) -> None:
    reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_health_of_an_unknown_service_is_not_found(channel: aio.Channel) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="other"), timeout=10)
    assert caught.value.code() is StatusCode.NOT_FOUND
