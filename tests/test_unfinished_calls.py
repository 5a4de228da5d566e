"""Calls whose message is late, or never comes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from conftest import on_both_transports, serving
from grpc import StatusCode
from hostile import HEADERS, PREDICT, PREFACE, connected, each_frame, frame

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = on_both_transports

PATHS = [
    *(PREDICT, "/digits.v1.DigitService/GetNetwork", "/inference.GRPCInferenceService/ModelInfer"),
    *("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"),
]
END_STREAM, END_HEADERS = 1, 4


def test_calls_without_a_message_are_answered_and_hold_up_no_stop(model_path: Path) -> None:
    with serving(model_path, "--grace", "60") as service, grpc.insecure_channel(service.address) as channel:
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


def test_a_call_without_a_token_ends_at_its_headers_its_message_unread(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("a-token-of-some-length")
    half = b"\0\0\0\3\x13\x0a\x90\x06" + bytes(100)
    with (
        serving(model_path, "--tokens-file", tmp_path / "tokens") as service,
        contextlib.closing(connected(service, PREFACE)) as peer,
    ):
        peer.sendall(frame(1, END_HEADERS, 1, HEADERS) + frame(0, 0, 1, half))
        assert next(stream for kind, flags, stream, _ in each_frame(peer) if kind == 1 and flags & END_STREAM) == 1
        series = service.series()
        assert series["digits_dropped_total", ("unauthenticated",)] == 1
        assert series["grpc_server_msg_received_total", ("Predict", "digits.v1.DigitService", "unary")] == 0
