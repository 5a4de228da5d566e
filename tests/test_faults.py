"""Faults, overload and hostile peers against real processes; `make chaos` runs the same, longer, and prints figures."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from conftest import launch, serving
from grpc import StatusCode, aio

from client import AsyncDigitsClient, DigitsClient, DigitsError
from service.pb.digits.v1.digits_pb2 import PredictRequest, PredictResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from conftest import ServiceProcess

LONG = bool(os.environ.get("CHAOS"))
PREDICT = "/digits.v1.DigitService/Predict"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # with empty SETTINGS
BLANK = np.zeros((1, 784), np.uint8)


@pytest.fixture(autouse=True)
def _grpcio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIGITS_TRANSPORT", "grpcio")


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Says a figure, where figures are asked for."""

    def say(text: str) -> None:
        if LONG:
            with capfd.disabled():
                print(f"\n    {text}")  # noqa: T201 (what make chaos is for)

    return say


def resident(service: ServiceProcess) -> float:
    return service.series()["process_resident_memory_bytes", ()] / 2**20


def handles(service: ServiceProcess) -> float:
    return service.series()["process_open_fds", ()]


def still_serves(service: ServiceProcess) -> None:
    """A call, a health check and a scrape, each answered."""
    with DigitsClient(service.address, timeout=10) as client:
        assert len(client.predict(BLANK).digits) == 1
    still_tells(service)


def still_tells(service: ServiceProcess) -> None:
    """Health and metrics answer."""
    with DigitsClient(service.address) as client:
        assert client.is_serving(timeout=10)
    assert service.series()["digits_serving", ()] == 1
    assert service.get("/healthz") == "SERVING on CPUExecutionProvider\n"


async def test_past_the_limit_calls_are_refused_with_a_hint_and_those_admitted_are_answered(
    model_path: Path, tell: Callable[[str], None]
) -> None:
    """Callers enough for ten times what the model runs; the line is 2,000 images."""
    request = PredictRequest(pixels=bytes(784 * 500)).SerializeToString()
    seconds = 20 if LONG else 2
    with serving(model_path, "--max-waiting", "2000", "--inline-images", "0") as service:
        async with aio.insecure_channel(service.address) as channel:
            call, before = channel.unary_unary(PREDICT), await asyncio.to_thread(resident, service)
            until, taken, refused, slowest_check = time.monotonic() + seconds, [], [], 0.0

            async def ask() -> None:
                while time.monotonic() < until:
                    began = time.monotonic()
                    try:
                        reply = PredictResponse.FromString(await call(request, timeout=20))
                    except aio.AioRpcError as e:
                        assert e.code() is StatusCode.RESOURCE_EXHAUSTED, e
                        assert any(key == "grpc-status-details-bin" for key, _ in e.trailing_metadata())
                        refused.append(time.monotonic() - began)
                    else:
                        assert len(reply.digits) == 500
                        taken.append(time.monotonic() - began)

            async def watch() -> None:
                nonlocal slowest_check
                while time.monotonic() < until:
                    began = time.monotonic()
                    await asyncio.to_thread(still_tells, service)
                    slowest_check = max(slowest_check, time.monotonic() - began)

            await asyncio.gather(watch(), *(ask() for _ in range(40)))
        after = await asyncio.to_thread(resident, service)
        series = await asyncio.to_thread(service.series)
        assert series["digits_dropped_total", ("overloaded",)] == len(refused) > 0
        assert taken
        assert after < before + 120
        tell(
            f"40 callers of 500 images, {seconds} s: {len(taken)} answered (p99 "
            f"{np.quantile(taken, 0.99) * 1e3:.0f} ms), "
            f"{len(refused)} refused (p50 {np.quantile(refused, 0.5) * 1e3:.1f}, p99 "
            f"{np.quantile(refused, 0.99) * 1e3:.1f} ms, as this busy caller sees it), none lost; {before:.0f} -> "
            f"{after:.0f} MB; slowest health check and scrape together {slowest_check * 1e3:.0f} ms"
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Replicas:
    """Two servers on ports of their own, each of which can go and come back."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self.ports = [free_port(), free_port()]
        self.services = [self.begin(port) for port in self.ports]
        self.target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def begin(self, port: int) -> ServiceProcess:
        service = launch(
            *("--model", self._model, "--port", str(port), "--metrics-port", "0"), *("--drain-wait", "0.3")
        )
        service.wait_for("serving")
        return service

    def again(self, number: int) -> float:
        """Start one that has ended; the seconds until it serves."""
        began = time.monotonic()
        self.services[number].close()
        self.services[number] = self.begin(self.ports[number])
        return time.monotonic() - began


@pytest.fixture
def replicas(model_path: Path) -> Iterator[Replicas]:
    both = Replicas(model_path)
    yield both
    for service in both.services:
        service.close()


@contextlib.asynccontextmanager
async def load(target: str, callers: int) -> AsyncIterator[tuple[list[int], list[DigitsError]]]:
    """Callers that ask until the block ends: the port's answers and the failures."""
    answered, failed, done = [0], list[DigitsError](), asyncio.Event()

    async def ask(client: AsyncDigitsClient) -> None:
        while not done.is_set():
            try:
                await client.predict(BLANK, timeout=10)
                answered[0] += 1
            except DigitsError as e:
                failed.append(e)

    async with AsyncDigitsClient(target) as client:
        asking = [asyncio.create_task(ask(client)) for _ in range(callers)]
        try:
            yield answered, failed
        finally:
            done.set()
            await asyncio.gather(*asking)


async def test_a_rolling_restart_of_two_loses_nothing(replicas: Replicas, tell: Callable[[str], None]) -> None:
    least = 50_000 if LONG else 1_500
    restarts = 0
    async with load(replicas.target, 8) as (answered, failed):
        while answered[0] < least or restarts < 2:
            number = restarts % 2
            assert await asyncio.to_thread(replicas.services[number].stop) == 0
            await asyncio.to_thread(replicas.again, number)
            restarts += 1
            await asyncio.sleep(3 if LONG else 0.7)
    assert failed == []
    tell(f"rolling restart, {restarts} restarts: {answered[0]} answered, {len(failed)} failed")


async def test_a_killed_replica_loses_at_most_what_it_had_in_hand(
    replicas: Replicas, tell: Callable[[str], None]
) -> None:
    kills = 10 if LONG else 1
    slowest, callers = 0.0, 8
    async with load(replicas.target, callers) as (answered, failed):
        for kill in range(kills):
            await asyncio.sleep(1)
            replicas.services[kill % 2].process.send_signal(signal.SIGKILL)
            before = answered[0]
            await asyncio.sleep(0.5)
            assert answered[0] > before  # the other serves on
            slowest = max(slowest, await asyncio.to_thread(replicas.again, kill % 2))
            await asyncio.sleep(0.5)
    assert {e.code for e in failed} <= {StatusCode.UNAVAILABLE}
    assert len(failed) <= kills * callers
    for service in replicas.services:
        await asyncio.to_thread(still_serves, service)
    tell(
        f"kill -9, {kills} times: {answered[0]} answered, {len(failed)} failed of at most {kills * callers} in hand; "
        f"serving {slowest:.2f} s after its start"
    )


def connected(service: ServiceProcess, sent: bytes) -> socket.socket:
    host, port = service.address.rsplit(":", 1)
    peer = socket.create_connection((host, int(port)), 10)
    peer.settimeout(10)
    with contextlib.suppress(ConnectionError):
        peer.sendall(sent)
    return peer


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header as HPACK spells it without tables, its parts shorter than 127 bytes."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


HEADERS = (
    literal(b":method", b"POST")
    + literal(b":scheme", b"http")
    + literal(b":path", PREDICT.encode())
    + literal(b":authority", b"x")
    + literal(b"content-type", b"application/grpc")
    + literal(b"te", b"trailers")
)
SLOW = {
    "says nothing": b"",
    "half a preface": PREFACE[:10],
    "no stream": PREFACE,
    "headers and no message": PREFACE + frame(1, 4, 1, HEADERS),
    "half a message": PREFACE + frame(1, 4, 1, HEADERS) + frame(0, 0, 1, b"\0\0\0\3\x13\x0a\x90\x06" + bytes(100)),
    "headers without an end": PREFACE + frame(1, 0, 1, HEADERS),
    "nonsense": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}


def test_a_thousand_connections_that_are_slow_or_silent_cost_little_and_leave_nothing(
    model_path: Path, tell: Callable[[str], None]
) -> None:
    count = 1000 if LONG else 210
    with serving(model_path) as service:
        still_serves(service)
        before, level = resident(service), handles(service)
        peers = [connected(service, sent) for sent in list(SLOW.values()) * (count // len(SLOW))]
        still_serves(service)
        held, most = resident(service), handles(service)
        for peer in peers:
            peer.close()
        until = time.monotonic() + 10
        while handles(service) > level + 5 and time.monotonic() < until:
            time.sleep(0.1)
        assert handles(service) <= level + 5
        assert held - before < 0.25 * len(peers)  # a quarter of a megabyte each
        still_serves(service)
        tell(
            f"{len(peers)} connections of {len(SLOW)} kinds of slow: {before:.0f} -> {held:.0f} MB, handles "
            f"{level:.0f} -> {most:.0f} -> {handles(service):.0f}; every other call answered"
        )


def ended_by_server(peer: socket.socket) -> bool:
    """Whether the connection ends within ten seconds."""
    try:
        while peer.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_a_flood_of_pings_or_headers_ends_the_connection_that_sends_it(model_path: Path) -> None:
    pings = b"".join(frame(6, 0, 0, n.to_bytes(8, "big")) for n in range(10_000))
    long_name = literal(b"x-flood", b"y" * 100) * 140
    headers = PREFACE + frame(1, 0, 1, HEADERS + long_name)
    flood = headers + b"".join(frame(9, 0, 1, long_name) for _ in range(400))  # 6 MB of headers that never end
    with serving(model_path) as service:
        before = resident(service)
        with contextlib.closing(connected(service, PREFACE + pings)) as peer:
            assert ended_by_server(peer)
        with contextlib.closing(connected(service, flood)) as peer:
            peer.settimeout(3)
            ended_by_server(peer)  # ended, or read and thrown away: what counts is below
            still_serves(service)
        assert resident(service) < before + 40


def test_a_message_over_the_limit_is_refused_compressed_or_not_in_bounded_memory(
    model_path: Path, tell: Callable[[str], None]
) -> None:
    bomb = PredictRequest(pixels=bytes(100 * 2**20)).SerializeToString()
    times = 20 if LONG else 2
    with serving(model_path) as service:
        still_serves(service)
        before = resident(service)
        options = [("grpc.max_send_message_length", -1)]
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            with grpc.insecure_channel(service.address, options, compression) as channel:
                call: Any = channel.unary_unary(PREDICT)
                for _ in range(times):
                    with pytest.raises(grpc.RpcError) as caught:
                        call(bomb, timeout=60)
                    assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED
        after = resident(service)
        assert after < before + 40
        still_serves(service)
        tell(f"{2 * times} messages of 100 MB, half of them gzipped to 0.1 MB: refused, {before:.0f} -> {after:.0f} MB")


def test_a_caller_that_does_not_read_holds_up_nobody_else(model_path: Path) -> None:
    """A stream whose replies nobody takes is held by flow control: no reply piles up beyond its window."""
    message = PredictRequest(pixels=bytes(784 * 1000), include_hidden_layers=True).SerializeToString()
    data = b"\0" + len(message).to_bytes(4, "big") + message
    path = HEADERS.replace(literal(b":path", PREDICT.encode()), literal(b":path", f"{PREDICT}Stream".encode()))
    frames = b"".join(frame(0, 0, 1, data[i : i + 16384]) for i in range(0, len(data), 16384))
    with serving(model_path) as service:
        still_serves(service)
        before = resident(service)
        with contextlib.closing(connected(service, PREFACE + frame(1, 4, 1, path))) as peer:
            peer.settimeout(0.5)
            with contextlib.suppress(TimeoutError, ConnectionError):
                for _ in range(100):
                    peer.sendall(frames)
            still_serves(service)
            assert resident(service) < before + 60


@pytest.mark.skipif(not LONG, reason="takes minutes: `make chaos` runs it")
async def test_soak(tmp_path: Path, tell: Callable[[str], None]) -> None:
    """Calls of mixed kind with reloads: memory and handles stay where they were after the first 100,000."""
    from test_reloading import add  # noqa: PLC0415 (its model files)

    total = int(os.environ["CHAOS"]) if os.environ["CHAOS"].isdigit() else 1_000_000
    folder = tmp_path / "digits"
    add(folder, 1)
    memory, open_, version = [], [], 1
    with serving(folder, "--model-poll", "0.5") as service:
        began, asked, odd = time.monotonic(), 0, 0

        async def ask(client: AsyncDigitsClient, number: int) -> None:
            nonlocal asked, odd
            random = np.random.default_rng(number)
            while asked < total:
                asked += 1
                try:
                    await client.predict(
                        random.integers(0, 256, (int(random.choice([1, 1, 1, 5, 300])), 784), np.uint8)
                    )
                    if not random.integers(50):
                        await client.predict(BLANK, model_version="999999999")
                except DigitsError as e:
                    assert e.code is StatusCode.NOT_FOUND, e
                    odd += 1

        async with AsyncDigitsClient(service.address) as client:
            asking = [asyncio.create_task(ask(client, number)) for number in range(16)]
            while not all(task.done() for task in asking):
                await asyncio.sleep(1)
                if asked > 100_000:
                    memory.append(await asyncio.to_thread(resident, service))
                    open_.append(await asyncio.to_thread(handles, service))
                version += 1
                add(folder, version)
            await asyncio.gather(*asking)
        series = await asyncio.to_thread(service.series)
        assert series["digits_model_reloads_total", ("refused",)] == 0
        tell(
            f"soak: {asked} requests in {time.monotonic() - began:.0f} s, {odd} refused as they should be, "
            f"{series['digits_model_reloads_total', ('loaded',)]:.0f} reloads; memory "
            f"{memory[0]:.0f} MB after 100,000, "
            f"{max(memory):.0f} at most, {memory[-1]:.0f} at the end; handles {min(open_):.0f} to {max(open_):.0f}"
        )
    assert max(open_) <= min(open_) + 3
    assert memory[-1] < 1.05 * memory[0]
