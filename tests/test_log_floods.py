"""Clients cannot flood the log with thousands of lines."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import pytest
from conftest import on_both_transports, serving
from hostile import HEADERS, PREDICT, PREFACE, SETTINGS, connected, each_frame, frame, literal

from service.observability.logs import LOG_INTERVAL

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 2000
ACK = frame(SETTINGS, 1, 0, b"")  # without it, grpcio accepts only as many calls as may be open concurrently
MALFORMED = b"\0\0\0\0\2\xff\xff"


@on_both_transports
@pytest.mark.parametrize("path", [PREDICT, "/grpc.health.v1.Health/Check"])
def test_thousands_of_malformed_calls_log_few_lines_and_each_is_counted(model_path: Path, path: str) -> None:
    headers = HEADERS.replace(literal(b":path", PREDICT.encode()), literal(b":path", path.encode()))
    with serving(model_path) as service, contextlib.closing(connected(service, PREFACE + ACK)) as peer:
        ends = (of for kind, flags, of, _ in each_frame(peer) if kind == 1 and flags & 1)
        began = time.monotonic()
        for first in range(1, 2 * COUNT, 200):
            streams = range(first, first + 200, 2)
            peer.sendall(b"".join(frame(1, 4, stream, headers) + frame(0, 1, stream, MALFORMED) for stream in streams))
            assert {next(ends) for _ in streams} == {*streams}
        took = time.monotonic() - began
        time.sleep(LOG_INTERVAL)
        peer.sendall(frame(1, 4, 2 * COUNT + 1, headers) + frame(0, 1, 2 * COUNT + 1, MALFORMED))
        assert next(ends) == 2 * COUNT + 1
        peer.close()
        assert service.stop() == 0
        refused = [line for line in service.lines if line["event"] == "call rejected"]
        assert len(refused) <= 100 + 10 * (took + 3)
        assert sum(1 + line["suppressed"] for line in refused) == COUNT + 1
