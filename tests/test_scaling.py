"""The inputs of docs/scaling.md: bytes and series of the real server, and the computation of its tables."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT, serving
from digitserve_client import DigitsClient

from bench.scaling import SERIES, WIRE, Assumed, Fleet, SendMode, cpu_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    from conftest import ServiceProcess

PERFORMANCE = (ROOT / "docs" / "performance.md").read_text()


class Between:
    """A relay on loopback that counts the bytes of each direction."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._to = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.counted = {"in": 0, "out": 0}
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                server = socket.create_connection(self._to)
                self._sockets += [caller, server]
                for source, sink, way in ((caller, server, "in"), (server, caller, "out")):
                    threading.Thread(target=self._copy, args=(source, sink, way), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.counted[way] += len(data)
                sink.sendall(data)

    def close(self) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@pytest.fixture
def between(server: ServiceProcess) -> Iterator[Between]:
    relay = Between(server.address)
    yield relay
    relay.close()


@pytest.mark.parametrize("images", [1, 256])
def test_the_bytes_of_a_call_match_the_tables(between: Between, digits: npt.NDArray[np.uint8], images: int) -> None:
    batch = digits.repeat(3, axis=0)[:images]
    calls = 200 if images == 1 else 20
    with DigitsClient(between.address) as client:
        for _ in range(10):  # the preface of the connection, and headers that are sent in full once
            client.predict(batch)
        before = dict(between.counted)
        for _ in range(calls):
            client.predict(batch)
        after = dict(between.counted)
    each = {way: (after[way] - before[way]) / calls for way in after}
    assert each["in"] == pytest.approx(WIRE[images][0], rel=0.02)
    assert 0.65 < each["out"] / WIRE[images][1] < 1.05, "the transports differ; the tables use the larger value"


def test_the_series_of_a_replica_match_the_tables(
    model_path: Path, transport: str, digits: npt.NDArray[np.uint8]
) -> None:
    with serving(model_path) as service, DigitsClient(service.address) as client:
        client.predict(digits)
        assert service.lines[-1]["transport"] == transport
        assert len(service.series()) == pytest.approx(SERIES, rel=0.05)


def test_a_cost_is_read_from_the_row_of_the_server_that_it_names() -> None:
    text = """
| calls/s | other | ours |
|---|---|---|
| 8 images | 4,000 | 5,000 |

| CPU us a call | other | ours |
|---|---|---|
| 8 images | 3 | 1,250 |
"""
    assert cpu_of("8 images", "ours", text) == 1250
    with pytest.raises(KeyError, match="no row '9 images' of 'ours'"):
        cpu_of("9 images", "ours", text)


def test_a_fleet_matches_its_formulas() -> None:
    assumed = Assumed(full=0.5, cores=10, gigabits=10, price=1.0, zone_price=0.01, zones=2)
    fleet = Fleet(mode=SendMode(name="x", images=1, cpu_us=10), rate=1e6, assumed=assumed)
    assert fleet.busy == pytest.approx(10)
    assert fleet.pods == 20
    on_wire = WIRE[1][0] * (1 + 66 / 1448)
    assert fleet.gigabits == pytest.approx(on_wire * 8 / 1000)
    assert fleet.machines == (3, 3), "at least 3, so that one can be lost or drained"
    machines, zones = fleet.dollars
    assert machines == 3 * 730
    assert zones == pytest.approx(1e6 * sum(WIRE[1]) * (1 + 66 / 1448) / 2 / 1e9 * 0.02 * 730 * 3600)


def test_the_tables_of_the_docs_match_the_script() -> None:
    done = subprocess.run(
        [sys.executable, "bench/scaling.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
