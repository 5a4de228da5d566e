"""The values of `grpc-timeout`: up to 8 digits and a unit, as in gRPC's HTTP/2 protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from conftest import serving
from hostile import HEADERS, connected, frame, frames, literal, still_serves

from service.pb.digits.v1.digits_pb2 import PredictRequest

if TYPE_CHECKING:
    from pathlib import Path

DATA, HEAD, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS = 1, 4
MESSAGE = PredictRequest(pixels=bytes(784)).SerializeToString()
BODY = b"\0" + len(MESSAGE).to_bytes(4, "big") + MESSAGE
MALFORMED = [b"-1S", b"5", b"", b"1x", b"+1S", b"S"]


@pytest.mark.parametrize("value", MALFORMED)
def test_the_c_core_answers_internal_to_a_malformed_timeout(model_path: Path, value: bytes) -> None:
    with serving(model_path, "--transport", "grpcio") as service:
        headers = HEADERS + literal(b"grpc-timeout", value)
        opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b"")
        call = frame(HEAD, END_HEADERS, 1, headers) + frame(DATA, END_STREAM, 1, BODY)
        with connected(service, opening + call) as peer:
            answer = next(payload for kind, payload in frames(peer, RST_STREAM) if kind == HEAD)
        assert b"grpc-status\x0213" in answer
        assert b"Error parsing 'grpc-timeout' metadata" in answer
        still_serves(service)
