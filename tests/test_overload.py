"""Overload: calls are rejected at once with a retry delay, in bounded memory, and health and metrics still answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from conftest import ANSWERS_WITHIN, needs_h2load, serving, until, wait_until
from digitserve_client import AsyncDigitsClient, DigitsClient, DigitsError
from gated_model import Held
from hostile import (
    BLANK,
    GOAWAY,
    HEADERS,
    LONG,
    PREDICT,
    PREFACE,
    SETTINGS,
    connected,
    ended_by_server,
    frame,
    frames,
    h2load,
    handles,
    loaded,
    resident,
    still_reports,
    still_serves,
)
from prometheus_client import CollectorRegistry

from service.batching.batcher import Batcher
from service.handlers.digits import DigitsHandler
from service.handlers.predictor import Predictor
from service.inference.model import Model
from service.observability.logs import make_logger
from service.observability.metrics import Metrics
from service.observability.statistics import Statistics
from service.observability.telemetry import Telemetry
from service.pb.digits.v1.digits_pb2 import PredictRequest, PredictResponse
from service.security.config import SecurityConfig
from service.transports.config import TransportConfig
from service.transports.grpcio.transport import GrpcioTransport
from service.transports.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.slow

LIGHT_CLIENT = """
import json, sys, time, grpc
from service.pb.digits.v1.digits_pb2 import PredictRequest
message, found = PredictRequest(pixels=bytes(784)).SerializeToString(), []
with grpc.insecure_channel(sys.argv[1]) as channel:
    call = channel.unary_unary("/digits.v1.DigitService/Predict")
    until = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < until:
        began, details = time.perf_counter(), []
        try:
            call(message, timeout=60)
            code = "OK"
        except grpc.RpcError as e:
            code, details = e.code().name, [key for key, _ in e.trailing_metadata()]
        found.append((code, "grpc-status-details-bin" in details, time.perf_counter() - began))
        time.sleep(0.01)
json.dump(found, sys.stdout)
"""


def light_client(address: str, seconds: float) -> subprocess.Popen[str]:
    """Start a process that sends small calls in sequence, to measure the server's latency without the test's load."""
    command = [sys.executable, "-c", LIGHT_CLIENT, address, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def by_code(series: dict[tuple[str, tuple[str, ...]], float]) -> dict[str, float]:
    """Return the number of unary Predict calls by status."""
    return {
        labels[0]: value
        for (name, labels), value in series.items()
        if name == "grpc_server_handled_total" and labels[1:] == ("Predict", "digits.v1.DigitService", "unary")
    }


def ms(seconds: list[float], quantile: float) -> str:
    return f"{np.quantile(seconds, quantile) * 1e3:.1f}" if seconds else "-"


@needs_h2load
def test_calls_past_the_limit_are_rejected_with_a_retry_delay_and_admitted_ones_are_answered(
    model_path: Path, tmp_path: Path, tell: Callable[[str], None], transport: str
) -> None:
    """40 clients that retry at once, with 10 times the load that the model can run, and a queue of 2,000 images."""
    message = PredictRequest(pixels=bytes(784 * 500)).SerializeToString()
    seconds, slowest = (20 if LONG else 2), 0.0
    with serving(model_path, "--max-queued-images", "2000", "--inline-images", "0") as service:
        before = most = resident(service)
        load = h2load(service, tmp_path, message, "--duration", seconds, "--clients=40", "--max-concurrent-streams=1")
        caller = light_client(service.address, seconds - 1)
        while load.poll() is None:
            began = time.monotonic()
            still_reports(service)
            slowest = max(slowest, time.monotonic() - began)
            most = max(most, resident(service))
        found = json.loads(caller.communicate()[0])
        calls, series = loaded(load), service.series()
        handled = by_code(series)
        assert calls.failed == 0
        assert {code for code, _, _ in found} <= {"OK", "RESOURCE_EXHAUSTED"}
        assert all(detailed for code, detailed, _ in found if code != "OK")
        assert (
            handled["OK"] > 0 < handled["ResourceExhausted"] == series["digits_requests_dropped_total", ("overloaded",)]
        )
        assert most < before + 150
        still_serves(service)
        took = {code: [t for one, _, t in found if one == code] for code in ("OK", "RESOURCE_EXHAUSTED")}
        tell(
            f"{transport}: 40 clients of 500 images, {seconds} s: {handled['OK']:.0f} answered, "
            f"{handled['ResourceExhausted']:.0f} rejected, none lost. A light client of one image: "
            f"{len(took['OK'])} answered, p50 {ms(took['OK'], 0.5)}, p99 {ms(took['OK'], 0.99)} ms; "
            f"{len(took['RESOURCE_EXHAUSTED'])} rejected, p50 {ms(took['RESOURCE_EXHAUSTED'], 0.5)}, "
            f"p99 {ms(took['RESOURCE_EXHAUSTED'], 0.99)} ms. Memory {before:.0f} -> {most:.0f} MB; slowest health "
            f"check and scrape together {slowest * 1e3:.0f} ms"
        )


async def test_a_full_queue_rejects_before_the_message_is_read(model_path: Path) -> None:
    """Send headers without a message. grpcio waits for the message if the queue has space, or answers at once.

    The native transport first reads the message, which is cheap, and then checks the queue.
    """
    held = Held(Model(model_path))
    registry = CollectorRegistry()
    metrics, limits = Metrics(registry), Limits(max_batch_size=500)
    batcher = Batcher(held, metrics, Statistics(), max_batch_size=500, max_queued_images=500, inline=0)
    services = [DigitsHandler(Predictor(batcher, max_batch_size=500))]
    log = make_logger("json", "error")
    config, telemetry = TransportConfig(limits=limits, reflection=False), Telemetry(metrics, log)
    transport = GrpcioTransport(services, batcher, telemetry, config, SecurityConfig())
    port = await transport.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        predict, begin = channel.unary_unary(PREDICT), channel.stream_unary(PREDICT)
        message = PredictRequest(pixels=bytes(784 * 500)).SerializeToString()
        admitted = [asyncio.ensure_future(predict(message))]
        await until(lambda: held.sizes == [500])
        admitted.append(asyncio.ensure_future(predict(message)))
        await until(lambda: registry.get_sample_value("digits_queue_images") == 500)
        with pytest.raises(grpc.aio.AioRpcError, match="RESOURCE_EXHAUSTED"):
            await predict(message)
        with pytest.raises(grpc.aio.AioRpcError, match="RESOURCE_EXHAUSTED"):
            await begin(timeout=ANSWERS_WITHIN)
        held.go.set()
        assert [len(PredictResponse.FromString(reply).digits) for reply in await asyncio.gather(*admitted)] == [500] * 2
        with pytest.raises(grpc.aio.AioRpcError, match="DEADLINE_EXCEEDED"):
            await begin(timeout=0.3)
    await transport.stop(5)


async def test_calls_past_their_deadline_do_not_delay_others(model_path: Path, transport: str) -> None:
    """Python answers calls past their deadline while its own requests wait in the same queue, behind two locks."""
    del transport
    many, one = np.zeros((600, 784), np.uint8), np.zeros((1, 784), np.uint8)
    done = asyncio.Event()
    late = explained = 0

    async def hurry(client: AsyncDigitsClient, i: int) -> None:
        nonlocal late
        while not done.is_set():
            try:
                await client.predict(many if i % 2 else one, timeout=0.001 + 0.0005 * (i % 8))
            except DigitsError:
                late += 1

    async def explain(client: AsyncDigitsClient) -> None:
        nonlocal explained
        while not done.is_set():
            await client.explain(one, timeout=ANSWERS_WITHIN)
            explained += 1

    with serving(model_path) as service:
        async with AsyncDigitsClient(service.address) as client:
            tasks = [asyncio.create_task(hurry(client, i)) for i in range(24)]
            tasks += [asyncio.create_task(explain(client)) for _ in range(6)]
            await asyncio.sleep(2)
            await until(lambda: late > 100 < explained or any(task.done() for task in tasks))
            done.set()
            await asyncio.gather(*tasks)
        still_serves(service)


@needs_h2load
def test_thousands_of_small_calls_are_bounded(
    model_path: Path, tmp_path: Path, tell: Callable[[str], None], transport: str
) -> None:
    """10,000 concurrent calls: those beyond --max-concurrent-streams wait at the client, and memory stays bounded."""
    seconds = 20 if LONG else 2
    message = PredictRequest(pixels=bytes(784)).SerializeToString()
    with serving(model_path, "--max-concurrent-streams", "64") as service:
        before = most = resident(service)
        load = h2load(
            service, tmp_path, message, "--duration", seconds, "--clients=10", "--max-concurrent-streams=1000"
        )
        caller = light_client(service.address, seconds - 1)
        while load.poll() is None:
            still_reports(service)
            most = max(most, resident(service))
        found = json.loads(caller.communicate()[0])
        # The server resets calls that h2load sends before it knows the limit. gRPC clients retry these.
        assert loaded(load).failed <= 10 * (1000 - 64)
        handled = by_code(service.series())
        assert {code for code, _, _ in found} == {"OK"}
        assert most < before + 60
        took = [t for _, _, t in found]
        tell(
            f"{transport}: 10 clients with 1,000 concurrent small calls each, 64 admitted, {seconds} s: "
            f"{handled['OK']:.0f} answered. A light client: p50 {ms(took, 0.5)}, p99 {ms(took, 0.99)} ms. "
            f"Memory {before:.0f} -> {most:.0f} MB"
        )


def test_one_connection_more_than_allowed_is_closed_and_the_others_serve(model_path: Path, transport: str) -> None:
    with serving(model_path, "--max-connections", "5") as service, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(contextlib.closing(connected(service, PREFACE))) for _ in range(5)]
        for peer in peers:
            assert frames(peer, until=SETTINGS)
        for _ in range(3):
            with contextlib.closing(connected(service, PREFACE)) as one_more:
                assert ended_by_server(one_more)
        series = service.series()
        assert (series["digits_connections", ()], series["digits_connections_limit", ()]) == (5, 5)
        if transport == "native":
            assert series["digits_connections_rejected_total", ("full",)] == 3
        peers[0].close()
        wait_until(lambda: served(service.address))
        assert service.get("/healthz").startswith("SERVING")


def served(address: str) -> bool:
    # A separate pool has no pause after an earlier failed connection.
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call: Any = channel.unary_unary(PREDICT)
        try:
            call(PredictRequest(pixels=bytes(784)).SerializeToString(), timeout=2)
        except grpc.RpcError:
            return False
        return True


@pytest.mark.usefixtures("transport")
def test_calls_beyond_the_limit_of_a_connection_wait_in_the_client(model_path: Path) -> None:
    with (
        serving(model_path, "--max-concurrent-streams", "2") as service,
        grpc.insecure_channel(service.address) as channel,
    ):
        stream: Any = channel.stream_stream("/digits.v1.DigitService/PredictStream")
        gates = [Gate(), Gate()]
        open_ = [stream(gate.messages(), timeout=ANSWERS_WITHIN) for gate in gates]
        for replies in open_:
            next(replies)  # the stream is open
        call: Any = channel.unary_unary(PREDICT)
        waiting = call.future(gates[0].message, timeout=ANSWERS_WITHIN)
        time.sleep(0.3)
        assert not waiting.done()
        gates[0].open()
        assert waiting.result()
        gates[1].open()
        many = [call.future(gates[0].message, timeout=ANSWERS_WITHIN) for _ in range(300)]
        assert all(one.result() for one in many)


class Gate:
    """A stream of one message that ends when the gate opens."""

    message = PredictRequest(pixels=bytes(784)).SerializeToString()

    def __init__(self) -> None:
        self._opened = threading.Event()
        self.open = self._opened.set

    def messages(self) -> Iterator[bytes]:
        yield self.message
        self._opened.wait(ANSWERS_WITHIN)


@pytest.mark.usefixtures("transport")
def test_an_old_connection_gets_a_goaway_and_loses_no_call(
    model_path: Path, tell: Callable[[str], None], transport: str
) -> None:
    seconds, answered, addresses = (30 if LONG else 2.5), 0, set()
    with serving(model_path, "--max-connection-age", "1") as service:
        with contextlib.closing(connected(service, PREFACE)) as peer:
            assert frames(peer, until=GOAWAY)[-1][0] == GOAWAY
        until = time.monotonic() + seconds
        with DigitsClient(service.address, timeout=ANSWERS_WITHIN) as client:
            while time.monotonic() < until or (len(addresses) < 2 and time.monotonic() < until + ANSWERS_WITHIN):
                client.predict(BLANK)  # raises if a call is lost
                answered += 1
                addresses.update(peers_of(service))
        assert len(addresses) > 1
        tell(
            f"{transport}: --max-connection-age 1, {seconds} s: "
            f"{answered} calls on {len(addresses)} connections, 0 lost"
        )


def peers_of(service: Any) -> set[str]:
    """Return the remote ports of its established connections, from /proc."""
    port = f":{int(service.address.rsplit(':', 1)[1]):04X}"
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    rows = [row.split() for table in tables for row in table.read_text().splitlines()[1:]]
    return {row[2] for row in rows if row[1].endswith(port) and row[3] == "01"}


@pytest.mark.usefixtures("transport")
def test_an_idle_connection_is_ended_and_one_with_a_call_is_not(model_path: Path) -> None:
    with serving(model_path, "--max-connection-idle", "0.5") as service:
        level = handles(service)
        held = connected(service, PREFACE + frame(1, 4, 1, HEADERS))
        with contextlib.closing(held), contextlib.closing(connected(service, PREFACE)) as idle:
            assert any(kind == GOAWAY for kind, _ in frames(idle, until=GOAWAY))
            assert not any(kind == GOAWAY for kind, _ in frames(held, until=GOAWAY, within=1))
        wait_until(lambda: handles(service) <= level)


def test_oversized_headers_are_rejected_and_other_calls_continue(model_path: Path, transport: str) -> None:
    del transport
    with serving(model_path) as service, grpc.insecure_channel(service.address) as channel:
        call: Any = channel.unary_unary(PREDICT)
        watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
        beside = watch(b"", timeout=ANSWERS_WITHIN)
        next(beside)
        for size, is_taken in ((8_000, True), (20_000, False), (100_000, False)):
            try:
                call(Gate.message, timeout=ANSWERS_WITHIN, metadata=(("x-large", "y" * size),))
            except grpc.RpcError as e:
                assert not is_taken, e
                assert e.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            else:
                assert is_taken
        assert beside.is_active()
        still_serves(service)
