"""The Open Inference Protocol over a real socket: every RPC, and each error with its message."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from conftest import serving
from google.rpc.error_details_pb2 import BadRequest
from grpc import StatusCode, aio
from grpc_status import rpc_status
from hypothesis import given, settings
from hypothesis import strategies as st

from export import checkpoint
from service.pb.inference import open_inference_pb2 as pb
from service.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from conftest import ServiceProcess

INFER = "/inference.GRPCInferenceService/ModelInfer"
WIDTHS = {"activations": 10, "digit": None, "layer1": 16, "layer2": 16}


@pytest.fixture
async def stub(server: ServiceProcess) -> AsyncIterator[Any]:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with aio.insecure_channel(server.address, options) as channel:
        yield GRPCInferenceServiceStub(channel)


def request(images: np.ndarray, outputs: tuple[str, ...] = (), **fields: Any) -> pb.ModelInferRequest:
    """Create a request as tritonclient does, with raw contents."""
    message = pb.ModelInferRequest(model_name="digits", **fields)
    datatype = {"uint8": "UINT8", "float32": "FP32"}[images.dtype.name]
    message.inputs.add(name="pixels", datatype=datatype, shape=images.shape)
    message.raw_input_contents.append(images.tobytes())
    for name in outputs:
        message.outputs.add(name=name)
    return message


def typed(images: np.ndarray) -> pb.ModelInferRequest:
    """Create a request as KServe's client does, with values in `contents`."""
    message = pb.ModelInferRequest(model_name="digits")
    datatype, field = {"uint8": ("UINT8", "uint_contents"), "float32": ("FP32", "fp32_contents")}[images.dtype.name]
    tensor = message.inputs.add(name="pixels", datatype=datatype, shape=images.shape)
    getattr(tensor.contents, field).extend(images.ravel().tolist())
    return message


def final(reply: pb.ModelInferResponse) -> pb.ModelInferResponse:
    """Mark a reply as the last to its request, as in a stream."""
    reply.parameters["triton_final_response"].bool_param = True
    return reply


def arrays(reply: pb.ModelInferResponse) -> dict[str, np.ndarray]:
    dtypes = {"FP32": "<f4", "INT64": "<i8"}
    return {
        tensor.name: np.frombuffer(raw, dtypes[tensor.datatype]).reshape(tensor.shape)
        for tensor, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }


def reference(digits: np.ndarray) -> dict[str, np.ndarray]:
    found = checkpoint.load(checkpoint.committed("sigmoid")).network.forward(digits)
    return {name: getattr(found, name) for name in WIDTHS}


async def test_raw_bytes_in_give_raw_bytes_out_as_the_reference_has_them(stub: Any, digits: np.ndarray) -> None:
    reply = await stub.ModelInfer(request(digits, id="seven"))
    assert (reply.model_name, reply.model_version, reply.id) == ("digits", "1", "seven")
    for name, expected in reference(digits).items():
        np.testing.assert_allclose(arrays(reply)[name], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "outputs", [("digit",), ("layer2", "activations"), ("digit", "layer1", "layer2", "activations"), ()]
)
async def test_outputs_have_the_requested_order(stub: Any, digits: np.ndarray, outputs: tuple[str, ...]) -> None:
    reply = await stub.ModelInfer(request(digits[:3], outputs))
    assert tuple(tensor.name for tensor in reply.outputs) == (outputs or tuple(WIDTHS))
    for name, array in arrays(reply).items():
        assert array.shape == ((3,) if WIDTHS[name] is None else (3, WIDTHS[name]))


async def test_typed_contents_in_give_typed_contents_out(stub: Any, digits: np.ndarray) -> None:
    for images in (digits[:5], digits[:5].astype(np.float32) / np.float32(255)):
        reply = await stub.ModelInfer(typed(images))
        assert not reply.raw_output_contents
        found = {tensor.name: tensor.contents for tensor in reply.outputs}
        expected = reference(digits[:5])
        assert list(found["digit"].int64_contents) == expected["digit"].tolist()
        np.testing.assert_allclose(
            found["activations"].fp32_contents, expected["activations"].ravel(), rtol=0, atol=1e-5
        )


async def test_float_pixels_are_the_same_digits_as_bytes(stub: Any, digits: np.ndarray) -> None:
    as_bytes = arrays(await stub.ModelInfer(request(digits)))
    as_floats = arrays(await stub.ModelInfer(request(digits.astype(np.float32) / np.float32(255))))
    for name in WIDTHS:
        np.testing.assert_array_equal(as_bytes[name], as_floats[name])


def changed(**fields: Any) -> pb.ModelInferRequest:
    """Create a valid request for two images, with some fields replaced."""
    message = request(np.zeros((2, 784), np.uint8))
    for name, value in fields.items():
        target = message if name in ("model_name", "model_version") else message.inputs[0]
        if isinstance(value, list):
            message.inputs[0].ClearField(name)
            message.inputs[0].shape.extend(value)
        else:
            setattr(target, name, value)
    return message


def with_raw(*contents: bytes, datatype: str = "UINT8") -> pb.ModelInferRequest:
    message = changed(datatype=datatype)
    del message.raw_input_contents[:]
    message.raw_input_contents.extend(contents)
    return message


def with_parameter(name: str, **value: Any) -> pb.ModelInferRequest:
    message = changed()
    for field, given_value in value.items():
        setattr(message.parameters[name], field, given_value)
    return message


def edited(edit: Any) -> pb.ModelInferRequest:
    message = changed()
    edit(message)
    return message


def floats(value: float) -> bytes:
    return np.full((2, 784), value, "<f4").tobytes()


def both(message: pb.ModelInferRequest) -> None:
    message.inputs[0].contents.uint_contents.append(1)


def wrong_field(message: pb.ModelInferRequest) -> None:
    del message.raw_input_contents[:]
    message.inputs[0].contents.fp32_contents.extend([0.0] * 1568)


def too_bright(message: pb.ModelInferRequest) -> None:
    del message.raw_input_contents[:]
    message.inputs[0].contents.uint_contents.extend([256] * 1568)


def too_few(message: pb.ModelInferRequest) -> None:
    del message.raw_input_contents[:]
    message.inputs[0].contents.uint_contents.extend([1] * 5)


def shared_memory(message: pb.ModelInferRequest) -> None:
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"


INVALID, NOT_FOUND = StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND
REFUSED = [
    (changed(model_name="mnist"), NOT_FOUND, "model_name: there is no model 'mnist'; 'digits' serves"),
    (changed(model_version="3"), NOT_FOUND, "model_version: there is no version '3'; '1' serves"),
    (pb.ModelInferRequest(model_name="digits"), INVALID, "inputs: are 0 (none); expected one, 'pixels'"),
    (changed(name="image"), INVALID, "inputs: are 1 ('image'); expected one, 'pixels'"),
    (changed(datatype="INT32"), INVALID, "pixels: has datatype 'INT32'; expected 'UINT8' or 'FP32'"),
    (changed(shape=[2, 28, 28]), INVALID, "pixels: has shape [2, 28, 28]; expected [n, 784], n from 1 to 1024"),
    (changed(shape=[2, 783]), INVALID, "pixels: has shape [2, 783]; expected [n, 784], n from 1 to 1024"),
    (changed(shape=[0, 784]), INVALID, "pixels: has shape [0, 784]; expected [n, 784], n from 1 to 1024"),
    (changed(shape=[-1, 784]), INVALID, "pixels: has shape [-1, 784]; expected [n, 784], n from 1 to 1024"),
    (changed(shape=[1025, 784]), INVALID, "pixels: has shape [1025, 784]; expected [n, 784], n from 1 to 1024"),
    (changed(shape=[3, 784]), INVALID, "pixels: has 1568 raw bytes; expected 2352 for shape [3, 784]"),
    (changed(datatype="FP32"), INVALID, "pixels: has 1568 raw bytes; expected 6272 for shape [2, 784]"),
    (with_raw(b"", b""), INVALID, "raw_input_contents: has 2 entries; expected one for each input"),
    (edited(both), INVALID, "raw_input_contents: has 1 entries; expected one for each input, and then no `contents`"),
    (edited(wrong_field), INVALID, "pixels: has values in fp32_contents; expected uint_contents for UINT8"),
    (edited(too_few), INVALID, "pixels: has 5 values in uint_contents; expected 1568 for shape [2, 784]"),
    (edited(too_bright), INVALID, "pixels: has the value 256; expected UINT8, 0 to 255"),
    (
        with_raw(floats(255.0), datatype="FP32"),
        INVALID,
        "pixels: has the value 255.0; expected FP32 pixels from 0 to 1",
    ),
    (
        with_raw(floats(1.0000001), datatype="FP32"),
        INVALID,
        "pixels: has the value 1.0000001; expected FP32 pixels from",
    ),
    (with_raw(floats(-0.5), datatype="FP32"), INVALID, "pixels: has the value -0.5; expected FP32 pixels from 0 to 1"),
    (with_raw(floats(np.nan), datatype="FP32"), INVALID, "pixels: has the value nan; expected FP32 pixels from 0 to 1"),
    (edited(shared_memory), INVALID, "pixels: shared memory (shared_memory_region) is off; expected"),
    (
        request(np.zeros((1, 784), np.uint8), ("softmax",)),
        INVALID,
        "outputs: has 'softmax'; expected some of activations, digit, layer1, layer2",
    ),
    (request(np.zeros((1, 784), np.uint8), ("digit", "digit")), INVALID, "outputs: names an output twice"),
    (with_parameter("timeout", string_param="1 s"), INVALID, "timeout: is '1 s'; expected microseconds"),
    (with_parameter("timeout", int64_param=-5), INVALID, "timeout: is '-5'; expected microseconds"),
]


@pytest.mark.parametrize(("message", "code", "sentence"), REFUSED, ids=[row[2][:40] for row in REFUSED])
async def test_each_error_has_its_status_and_message(
    stub: Any, message: pb.ModelInferRequest, code: StatusCode, sentence: str
) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await stub.ModelInfer(message)
    assert caught.value.code() is code
    assert caught.value.details().startswith(sentence)


async def test_a_timeout_parameter_that_has_passed_is_deadline_exceeded(stub: Any, digits: np.ndarray) -> None:
    large = request(np.tile(digits, (10, 1)))
    large.parameters["timeout"].int64_param = 1
    with pytest.raises(aio.AioRpcError) as caught:
        await stub.ModelInfer(large)
    assert caught.value.code() is StatusCode.DEADLINE_EXCEEDED


async def test_a_timeout_parameter_of_a_minute_or_of_zero_has_no_effect(stub: Any, digits: np.ndarray) -> None:
    for microseconds in (60_000_000, 0):
        message = request(digits[:1])
        message.parameters["timeout"].int64_param = microseconds
        assert (await stub.ModelInfer(message)).model_name == "digits"


async def test_an_error_in_a_stream_is_a_reply_and_the_stream_continues(stub: Any, digits: np.ndarray) -> None:
    messages = [request(digits[:1], id="a"), changed(shape=[9, 9]), request(digits[:4], ("digit",), id="c")]
    replies = [reply async for reply in stub.ModelStreamInfer(iter(messages))]
    assert [reply.infer_response.id for reply in replies] == ["a", "", "c"]
    assert [bool(reply.error_message) for reply in replies] == [False, True, False]
    assert replies[1].error_message.startswith("pixels: has shape [9, 9]; expected [n, 784]")
    np.testing.assert_array_equal(arrays(replies[2].infer_response)["digit"], reference(digits[:4])["digit"])


async def test_a_bad_message_of_a_stream_is_answered_with_its_id(stub: Any, digits: np.ndarray) -> None:
    late = request(np.tile(digits, (10, 1)))
    late.parameters["timeout"].int64_param = 1
    no_flag = request(digits[:1])
    no_flag.parameters["triton_enable_empty_final_response"].string_param = "true"
    messages = {
        "pixels: has shape": changed(shape=[9, 9]),
        "model_name: there is no model": pb.ModelInferRequest(model_name="mnist"),
        "model_version: there is no version": request(digits[:1], model_version="9"),
        "inputs: are 0": pb.ModelInferRequest(model_name="digits"),
        "outputs: has 'softmax'": request(digits[:1], ("softmax",)),
        "the deadline passed": late,
        "triton_enable_empty_final_response: is no bool_param": no_flag,
    }
    for i, message in enumerate(messages.values()):
        message.id = f"bad {i}"
    replies = [reply async for reply in stub.ModelStreamInfer(iter(messages.values()))]
    assert [sentence for sentence, reply in zip(messages, replies, strict=True) if sentence in reply.error_message] == [
        *messages
    ]
    expected = [final(pb.ModelInferResponse(id=message.id)) for message in messages.values()]
    assert [reply.infer_response for reply in replies] == expected


async def test_an_invalid_message_is_answered_without_an_id(server: ServiceProcess) -> None:
    async with aio.insecure_channel(server.address) as channel:
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        [reply] = [pb.ModelStreamInferResponse.FromString(raw) async for raw in stream(iter([b"\xff\xff"]))]
    assert reply.error_message == "message: is not an inference.ModelInferRequest"
    assert reply.infer_response == final(pb.ModelInferResponse())


async def test_each_response_of_a_stream_is_its_requests_last(stub: Any, digits: np.ndarray) -> None:
    asked = [request(digits[:1], id="raw"), typed(digits[:1]), request(digits[:1].astype(np.float32) / 255)]
    for flag in (True, False):
        asked.append(request(digits[:1]))
        asked[-1].parameters["triton_enable_empty_final_response"].bool_param = flag
    replies = [reply async for reply in stub.ModelStreamInfer(iter(asked))]
    assert [reply.error_message for reply in replies] == [""] * len(asked)
    for reply in replies:
        assert reply.infer_response.parameters == final(pb.ModelInferResponse()).parameters
        assert len(reply.infer_response.outputs) == len(WIDTHS)
    assert "triton_final_response" not in (await stub.ModelInfer(asked[0])).parameters


def test_a_stream_with_the_option_ends_with_the_status_of_its_first_error(
    server: ServiceProcess, digits: np.ndarray
) -> None:
    messages = [request(digits[:1], id="a"), changed(shape=[9, 9]), request(digits[:1], id="c")]
    replies: list[pb.ModelStreamInferResponse] = []
    with grpc.insecure_channel(server.address) as channel:
        stream = GRPCInferenceServiceStub(channel).ModelStreamInfer(
            iter(messages), metadata=[("triton_grpc_error", "true")], timeout=60
        )
        with pytest.raises(grpc.RpcError) as caught:
            replies.extend(stream)
    assert [reply.infer_response.id for reply in replies] == ["a"]
    error: Any = caught.value
    assert error.code() is StatusCode.INVALID_ARGUMENT
    assert error.details().startswith("pixels: has shape [9, 9]; expected [n, 784]")
    status = rpc_status.from_call(error)
    assert status is not None
    assert status.details[0].Is(BadRequest.DESCRIPTOR)


@pytest.mark.parametrize("value", ["false", "True", "1", ""])
async def test_a_stream_without_the_option_continues(stub: Any, digits: np.ndarray, value: str) -> None:
    messages = [changed(shape=[9, 9]), request(digits[:1], id="b")]
    stream = stub.ModelStreamInfer(iter(messages), metadata=[("triton_grpc_error", value)])
    assert [reply.infer_response.id async for reply in stream] == ["", "b"]


async def test_metadata_describes_the_server_and_the_model(stub: Any) -> None:
    live, ready = await stub.ServerLive(pb.ServerLiveRequest()), await stub.ServerReady(pb.ServerReadyRequest())
    assert (live.live, ready.ready) == (True, True)
    server = await stub.ServerMetadata(pb.ServerMetadataRequest())
    assert (server.name, list(server.extensions)) == ("digitserve", ["model_configuration", "statistics"])
    model = await stub.ModelMetadata(pb.ModelMetadataRequest(name="digits"))
    assert (model.name, list(model.versions), model.platform) == ("digits", ["1"], "onnxruntime_onnx")
    tensors = {t.name: (t.datatype, list(t.shape)) for t in (*model.inputs, *model.outputs)}
    assert tensors == {
        "pixels": ("UINT8", [-1, 784]),
        "activations": ("FP32", [-1, 10]),
        "digit": ("INT64", [-1]),
        "layer1": ("FP32", [-1, 16]),
        "layer2": ("FP32", [-1, 16]),
    }
    assert model.properties["activation"] == "sigmoid"
    assert "FP32 0 to 1 too" in model.properties["pixels"]
    config = (await stub.ModelConfig(pb.ModelConfigRequest(name="digits", version="1"))).config
    assert (config.max_batch_size, list(config.input[0].dims)) == (1024, [784])
    assert not config.model_transaction_policy.decoupled


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [("digits", "", True), ("digits", "1", True), ("digits", "9", False), ("x", "", False)],
)
async def test_an_unknown_model_is_not_ready(stub: Any, name: str, version: str, ready: bool) -> None:
    assert (await stub.ModelReady(pb.ModelReadyRequest(name=name, version=version))).ready is ready


@pytest.mark.parametrize("rpc", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
async def test_another_model_is_not_found(stub: Any, rpc: str) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await getattr(stub, rpc)(getattr(pb, f"{rpc}Request")(name="resnet"))
    assert caught.value.code() is NOT_FOUND
    assert caught.value.details() == "model_name: there is no model 'resnet'; 'digits' serves"


async def test_the_repository_holds_the_one_model(stub: Any) -> None:
    index = await stub.RepositoryIndex(pb.RepositoryIndexRequest())
    assert [(m.name, m.version, m.state) for m in index.models] == [("digits", "1", "READY")]
    assert (await stub.ModelReady(pb.ModelReadyRequest(name="digits"))).ready


@pytest.mark.parametrize(
    ("rpc", "sentence"),
    [
        ("RepositoryModelLoad", "models are not controlled through this server"),
        ("RepositoryModelUnload", "this server serves the one model that it was started with"),
        ("SystemSharedMemoryStatus", "shared memory is off; expected a server with --shared-memory"),
        ("CudaSharedMemoryRegister", "CUDA shared memory is not offered"),
        ("TraceSetting", "traces are not offered"),
        ("LogSettings", "log settings are options of the server"),
    ],
)
async def test_unsupported_rpcs_are_unimplemented(server: ServiceProcess, rpc: str, sentence: str) -> None:
    async with aio.insecure_channel(server.address) as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await channel.unary_unary(f"/inference.GRPCInferenceService/{rpc}")(b"\x0a\x01a", timeout=10)
    assert caught.value.code() is StatusCode.UNIMPLEMENTED
    assert sentence in caught.value.details()


@given(requests=st.lists(st.binary(max_size=400), min_size=5, max_size=20))
@settings(max_examples=20, deadline=None)
def test_any_bytes_are_rejected_never_internal(server: ServiceProcess, requests: list[bytes]) -> None:
    with grpc.insecure_channel(server.address) as channel:
        for raw in requests:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(INFER)(raw, timeout=10)
            assert caught.value.code() in (INVALID, NOT_FOUND)


@pytest.fixture
def fresh(model_path: Path, transport: str) -> Iterator[ServiceProcess]:  # noqa: ARG001 (sets the environment)
    with serving(model_path) as service:
        yield service


async def test_statistics_agree_with_triton_and_with_prometheus(fresh: ServiceProcess, digits: np.ndarray) -> None:
    async with aio.insecure_channel(fresh.address) as channel:
        stub: Any = GRPCInferenceServiceStub(channel)
        for _ in range(3):
            await stub.ModelInfer(request(digits[:1]))
        await stub.ModelInfer(request(digits))
        for _ in range(2):
            with pytest.raises(aio.AioRpcError):
                await stub.ModelInfer(changed(shape=[1, 1]))
        [found] = (await stub.ModelStatistics(pb.ModelStatisticsRequest())).model_stats
    series = await asyncio.to_thread(fresh.series)
    stats = found.inference_stats
    assert (found.name, found.version, found.inference_count, found.execution_count) == ("digits", "1", 103, 4)
    assert (stats.success.count, stats.fail.count) == (4, 2)
    for name in ("queue", "compute_input", "compute_infer", "compute_output"):
        assert getattr(stats, name).count == 4
    parts = stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns
    assert 0 < parts <= stats.success.ns
    assert [(b.batch_size, b.compute_infer.count) for b in found.batch_stats] == [(1, 3), (100, 1)]
    assert sum(b.compute_infer.ns for b in found.batch_stats) == stats.compute_infer.ns
    assert found.last_inference > 1_700_000_000_000
    # The same run in the metrics of Prometheus.
    assert series["digits_batch_size_sum", ()] == found.inference_count
    assert series["digits_inference_seconds_count", ()] == found.execution_count
    assert series["digits_inference_seconds_sum", ()] == pytest.approx(stats.compute_infer.ns / 1e9)
    labels = ("ModelInfer", "inference.GRPCInferenceService", "unary")
    assert series["grpc_server_handled_total", ("OK", *labels)] == stats.success.count
    assert series["grpc_server_handled_total", ("InvalidArgument", *labels)] == stats.fail.count


async def test_the_calls_of_perf_analyzer_in_its_order_add_up(fresh: ServiceProcess, digits: np.ndarray) -> None:
    """perf_analyzer reads names and statistics in this order, and reports the differences between two readings."""
    async with aio.insecure_channel(fresh.address) as channel:
        stub: Any = GRPCInferenceServiceStub(channel)
        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="digits"))
        config = (await stub.ModelConfig(pb.ModelConfigRequest(name="digits"))).config
        assert [tensor.name for tensor in metadata.inputs] == [tensor.name for tensor in config.input]
        assert config.max_batch_size >= 64
        assert not config.model_transaction_policy.decoupled
        assert "statistics" in (await stub.ServerMetadata(pb.ServerMetadataRequest())).extensions

        async def reading() -> pb.ModelStatistics:
            asked = pb.ModelStatisticsRequest(name="digits", version="")
            return (await stub.ModelStatistics(asked)).model_stats[0]

        before = await reading()
        for _ in range(2):
            await asyncio.gather(*(stub.ModelInfer(request(digits[:64], id=str(i))) for i in range(9)))

        async def asked() -> AsyncIterator[pb.ModelInferRequest]:
            for i in range(5):
                yield request(digits[:64], id=str(i))

        answered = [reply.infer_response.id async for reply in stub.ModelStreamInfer(asked())]
        after = await reading()
    assert answered == ["0", "1", "2", "3", "4"]
    assert after.inference_stats.success.count - before.inference_stats.success.count == 23
    assert after.inference_count - before.inference_count == 23 * 64
    assert 0 < after.execution_count - before.execution_count <= 23
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert getattr(after.inference_stats, name).ns >= getattr(before.inference_stats, name).ns
