"""Recorded requests of the real tritonclient, replayed byte for byte: the fast tests check the contract too.

`python tests/public_clients/record.py` records them.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from conftest import ROOT

from service.pb.inference import open_inference_pb2 as pb

if TYPE_CHECKING:
    from conftest import ServiceProcess
    from google.protobuf.message import Message

CALLS = json.loads((ROOT / "tests" / "golden" / "tritonclient.json").read_text())
SHAPES = {"FP32": "<f4", "INT64": "<i8"}


def name(call: dict[str, Any]) -> str:
    return f"{call['method'].rsplit('/', 1)[1]}-{call['code']}"


def ask(channel: grpc.Channel, call: dict[str, Any]) -> tuple[str, str, list[bytes]]:
    requests = [base64.b64decode(text) for text in call["requests"]]
    replies: list[bytes] = []
    try:
        if call["method"].endswith("ModelStreamInfer"):
            metadata = [(key, value) for key, value in call.get("metadata", ())]
            replies.extend(channel.stream_stream(call["method"])(iter(requests), timeout=10, metadata=metadata))
        else:
            replies.append(channel.unary_unary(call["method"])(requests[0], timeout=10))
    except grpc.RpcError as e:
        return e.code().name, e.details(), replies
    return "OK", "", replies


def parsed(method: str, reply: bytes) -> Message:
    message: Message = getattr(pb, f"{method.rsplit('/', 1)[1]}Response").FromString(reply)
    return message


def comparable(message: Any) -> tuple[Any, list[np.ndarray]]:
    """Separate a reply from its floats, which differ in the last bits between processors."""
    if isinstance(message, pb.ModelStreamInferResponse):
        rest, tensors = comparable(message.infer_response)
        return (message.error_message, rest), tensors
    if not isinstance(message, pb.ModelInferResponse):
        return message, []
    tensors = [
        np.frombuffer(raw, SHAPES[output.datatype])
        for output, raw in zip(message.outputs, message.raw_output_contents, strict=True)
    ]
    del message.raw_output_contents[:]
    return message, tensors


@pytest.mark.parametrize("call", CALLS, ids=[f"{i}-{name(call)}" for i, call in enumerate(CALLS)])
def test_a_recorded_call_gets_the_recorded_answer(server: ServiceProcess, call: dict[str, Any]) -> None:
    with grpc.insecure_channel(server.address) as channel:
        code, sentence, replies = ask(channel, call)
    assert (code, sentence) == (call["code"], call["sentence"])
    assert len(replies) == len(call["replies"])
    if call["method"].endswith("ModelStatistics"):
        return  # its counts and times differ; test_inference.py checks them
    for found, recorded in zip(replies, call["replies"], strict=True):
        (message, tensors), (expected, kept) = (
            comparable(parsed(call["method"], reply)) for reply in (found, base64.b64decode(recorded))
        )
        assert message == expected
        for tensor, values in zip(tensors, kept, strict=True):
            np.testing.assert_allclose(tensor, values, rtol=0, atol=1e-5)
