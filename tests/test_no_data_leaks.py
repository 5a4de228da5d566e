"""Content of clients is never in the log, and internals of the server are never in replies."""

from __future__ import annotations

import base64
import re
import secrets
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from conftest import ROOT, serving

from service.pb.digits.v1.digits_pb2 import PredictRequest
from service.pb.inference import open_inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

INSIDE = re.compile(
    r"Traceback|File \"|\.py\b|site-packages|service\.(handlers|batcher|model|transports)|0x[0-9a-f]{6,}|onnxruntime"
    r"|/root|/home|object at|panicked|\.rs:|DecodeError"
)
_INFERENCE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
PATHS = [
    *("/digits.v1.DigitService/Predict", "/digits.v1.DigitService/Explain", "/digits.v1.DigitService/GetNetwork"),
    *(
        f"/inference.GRPCInferenceService/{rpc}"
        for rpc in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    ),
    *("/grpc.health.v1.Health/Check", "/no.such.Service/Method"),
]
STREAMING = ("PredictStream", "ModelStreamInfer")


def mark() -> str:
    return f"marked{secrets.token_hex(8)}"


def in_contents(request: Any, one: str) -> None:
    del request.raw_input_contents[:]
    request.inputs[0].contents.bytes_contents.append(one.encode())


FIELDS: list[Callable[[Any, str], object]] = [
    lambda request, one: request.raw_input_contents.__setitem__(0, (one.encode() * 784)[:784]),
    lambda request, one: request.raw_input_contents.__setitem__(0, (one.encode() * 784)[:700]),
    lambda request, one: setattr(request, "id", one),
    lambda request, one: setattr(request, "model_name", one),
    lambda request, one: setattr(request, "model_version", one),
    lambda request, one: setattr(request.inputs[0], "name", one),
    lambda request, one: setattr(request.inputs[0], "datatype", one),
    lambda request, one: request.outputs.add(name=one),
    lambda request, one: setattr(request.parameters[one], "string_param", one),
    lambda request, one: setattr(request.parameters["timeout"], "string_param", one),
    lambda request, one: setattr(request.inputs[0].parameters["shared_memory_region"], "string_param", one),
    in_contents,
]


def messages() -> Iterator[tuple[bytes, str]]:
    """Yield messages with a mark in one field each: pixels, tensors and every text field."""
    for size in (784, 783, 784 * 3 + 5, 10):
        one = mark()
        yield PredictRequest(pixels=(one.encode() * size)[:size]).SerializeToString(), one
    yield PredictRequest(pixels=bytes(784), model_version=(one := mark())).SerializeToString(), one
    for put in FIELDS:
        request, one = pb.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(784)]), mark()
        request.inputs.add(name="pixels", datatype="UINT8", shape=[1, 784])
        put(request, one)
        yield request.SerializeToString(), one
    for _ in range(10):
        one = mark()
        yield one.encode() + secrets.token_bytes(30), one


NAMES = ("model_version", "model_name", "outputs", "inputs", "datatype", "timeout", "has no", "there is no", "name")


@pytest.mark.usefixtures("transport")
def test_marked_content_is_in_no_log_and_no_answer_contains_internals(model_path: Path) -> None:
    marks, said = set[str](), list[str]()
    token, cookie = mark(), mark()
    metadata = (("authorization", f"Bearer {token}"), ("cookie", cookie), ("x-anything-bin", cookie.encode()))
    with serving(model_path, "--log-level", "info") as service:
        with grpc.insecure_channel(service.address) as channel:
            for message, one in messages():
                marks.add(one)
                for path in PATHS:
                    call: Any = channel.stream_stream(path) if path.endswith(STREAMING) else channel.unary_unary(path)
                    try:
                        if path.endswith(STREAMING):
                            list(call(iter([message]), timeout=10, metadata=metadata))
                        else:
                            call(message, timeout=10, metadata=metadata)
                    except grpc.RpcError as e:
                        said.append(e.details())
                        said += [str(value) for key, value in e.trailing_metadata() or () if key != "x-request-id"]
                        assert e.code() not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), (path, e)
        assert service.stop() == 0
    log = [line for line in service.lines if line["event"] not in ("starting", "serving", "stopping", "stopped")]
    assert log
    assert {line["event"] for line in log} == {"call rejected"}
    text = "\n".join(map(str, service.lines))
    for secret in (token, cookie, base64.b64encode(cookie.encode()).decode()):
        assert secret not in text
        assert not [one for one in said if secret in one]
    for line in log:
        if any(one in str(line) for one in marks):
            # An error repeats an unknown name, shortened, so that the client's developer finds the mistake.
            assert any(name in line["reason"] for name in NAMES), line
    for one in said:
        assert not INSIDE.search(one), one
        assert str(ROOT) not in one


@pytest.mark.slow
@pytest.mark.parametrize("size", [783, 784 * 2 + 1])
@pytest.mark.usefixtures("transport")
def test_rejected_pixels_are_in_no_log(model_path: Path, size: int) -> None:
    one = b"pixels-that-are-secret"
    with serving(model_path, "--log-level", "debug") as service:
        with grpc.insecure_channel(service.address) as channel:
            call: Any = channel.unary_unary(PATHS[0])
            with pytest.raises(grpc.RpcError) as caught:
                call(PredictRequest(pixels=(one * size)[:size]).SerializeToString(), timeout=10)
            assert "secret" not in caught.value.details()
        assert service.stop() == 0
    assert "secret" not in str(service.lines)
