"""The I/O threads of the native transport share connections, requests and limits."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from conftest import ANSWERS_WITHIN, needs_native, serving, until, wait_until
from grpc import StatusCode, aio
from structlog.testing import CapturingLogger
from test_native import PREDICT, STREAM, Fake, Running, fail_at_start, images, request, running

from service.config import load
from service.cpus import cgroup_quota
from service.observability.statistics import Statistics
from service.pb.digits.v1.digits_pb2 import PredictResponse
from service.pb.inference import open_inference_pb2 as pb
from service.runtime.server import compose
from service.transports.native import transport as native

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

INFER = "/inference.GRPCInferenceService/ModelInfer"
THREADS = 4
NO_SHARING = (("grpc.use_local_subchannel_pool", 1),)
"""Otherwise channels of one process to one address share a connection."""


def connect(server: Running) -> aio.Channel:
    return aio.insecure_channel(f"127.0.0.1:{server.port}", NO_SHARING)


async def predict(channel: aio.Channel, *digits: int) -> list[int]:
    reply = await channel.unary_unary(PREDICT)(request(*digits), timeout=60)
    return list(PredictResponse.FromString(reply).digits)


def by_thread(server: Running) -> list[float]:
    return [server.value("digits_io_thread_connections", io_thread=str(at)) for at in range(THREADS)]


class Clients(AsyncExitStack):
    """Connections, each with an answered call."""

    def __init__(self, server: Running, count: int) -> None:
        super().__init__()
        self._server, self._count = server, count

    async def __aenter__(self) -> list[aio.Channel]:  # type: ignore[override]
        await super().__aenter__()
        channels = [await self.enter_async_context(connect(self._server)) for _ in range(self._count)]
        for channel in channels:
            assert await predict(channel, 1) == [1]
        return channels


@needs_native
async def test_connections_go_to_the_thread_with_the_fewest() -> None:
    async with running(io_threads=THREADS) as server:
        async with Clients(server, 9) as channels:
            assert sorted(by_thread(server)) == [2, 2, 2, 3]
            for channel in channels[:4]:  # with one connection each
                await channel.close()
            await until(lambda: sum(by_thread(server)) == 5)
            async with Clients(server, 3):
                assert by_thread(server) == [2] * THREADS
        await until(lambda: sum(by_thread(server)) == 0)


@needs_native
async def test_each_thread_runs_the_small_requests_of_its_connections() -> None:
    async with running(io_threads=THREADS) as server, Clients(server, THREADS) as channels:
        server.model.gate.clear()
        calls = [asyncio.ensure_future(predict(channel, digit)) for digit, channel in enumerate(channels)]
        before = len(server.model.runs)
        await until(lambda: len(server.model.runs) == before + THREADS)  # all at once: no thread waits for another
        server.model.gate.set()
        assert await asyncio.gather(*calls) == [[digit] for digit in range(THREADS)]


@needs_native
async def test_the_limit_on_connections_is_that_of_all_threads() -> None:
    async with running(io_threads=THREADS, connections=6) as server, Clients(server, 6) as channels:
        async with connect(server) as one_more:
            with pytest.raises(aio.AioRpcError) as caught:
                await one_more.unary_unary(PREDICT)(request(1), timeout=60)
        assert caught.value.code() is StatusCode.UNAVAILABLE
        assert sum(by_thread(server)) == 6
        await channels[0].close()
        await until(lambda: sum(by_thread(server)) == 5)
        async with Clients(server, 1):
            assert sum(by_thread(server)) == 6


def infer(call: Any, count: int) -> list[Any]:
    """Start calls of ModelInfer with floats, which handlers in Python distribute to the lanes of all threads."""
    message = pb.ModelInferRequest(model_name="digits")
    message.inputs.add(name="pixels", datatype="FP32", shape=[1, 784])
    message.raw_input_contents.append(np.full(784, 7 / 255, np.float32).tobytes())
    return [call.future(message.SerializeToString(), timeout=ANSWERS_WITHIN) for _ in range(count)]


def wait_until_received(server: Running, count: int) -> None:
    """Wait without an iteration of the event loop, so that no handler runs."""
    service = {"grpc_service": "inference.GRPCInferenceService", "grpc_method": "ModelInfer"}
    wait_until(lambda: server.value("grpc_server_msg_received_total", grpc_type="unary", **service) == count)


@needs_native
async def test_the_limit_on_queued_images_is_that_of_all_threads() -> None:
    limit, sent = 30, 90  # of which batches of 8 images can leave the queue for each thread
    async with running(io_threads=THREADS, max_queued_images=limit) as server:
        server.model.gate.clear()
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            calls = infer(channel.unary_unary(INFER), sent)
            wait_until_received(server, sent)
            await until(lambda: server.value("digits_requests_dropped_total", reason="overloaded"))
            for _ in range(20):
                assert server.value("digits_queue_images") <= limit
                await asyncio.sleep(0.01)
            server.model.gate.set()
            errors = [error for call in calls if (error := await asyncio.to_thread(call.exception))]
        assert {error.code() for error in errors} == {StatusCode.RESOURCE_EXHAUSTED}
        assert server.value("digits_requests_dropped_total", reason="overloaded") == len(errors)
        assert server.value("digits_queue_images") == 0


@needs_native
async def test_metrics_and_statistics_add_up_over_the_threads() -> None:
    async with running(io_threads=THREADS) as server, Clients(server, 2 * THREADS) as channels:
        await asyncio.gather(*(predict(channel, 3) for channel in channels for _ in range(5)))
        labels = {"grpc_type": "unary", "grpc_service": "digits.v1.DigitService", "grpc_method": "Predict"}
        assert server.value("grpc_server_started_total", **labels) == 48
        assert server.value("grpc_server_handled_total", grpc_code="OK", **labels) == 48
        assert server.value("grpc_server_handling_seconds_count", **labels) == 48
        assert server.value("digits_predictions_total", digit="3") == 40
        statistics = server.batcher.statistics
        assert (statistics.success.count, statistics.queue.count) == (48, 48)


@needs_native
async def test_a_drain_answers_the_calls_in_flight_on_all_threads() -> None:
    async with running(io_threads=THREADS) as server, Clients(server, THREADS) as channels:
        server.model.gate.clear()
        before = len(server.model.runs)
        calls = [asyncio.ensure_future(predict(channel, digit)) for digit, channel in enumerate(channels)]
        # The handler of a Python request is in the lane of any thread, perhaps of one without a call.
        own = [asyncio.ensure_future(server.batcher.predict(images(9))) for _ in range(THREADS)]
        await until(lambda: len(server.model.runs) == before + THREADS)
        stopping = asyncio.ensure_future(server.transport.stop(60))
        await asyncio.sleep(0.1)
        assert not stopping.done()
        server.model.gate.set()
        assert await asyncio.gather(*calls) == [[digit] for digit in range(THREADS)]
        assert [found.digit.tolist() for found in await asyncio.gather(*own)] == [[9]] * THREADS
        await stopping
        assert not any(thread.is_alive() for thread in server.transport.threads)


@needs_native
async def test_a_drained_thread_still_runs_the_requests_in_its_lane() -> None:
    """The calls are on one thread. Their handlers queue in the lanes of the others, which have no connection."""
    async with running(io_threads=THREADS) as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            calls = infer(channel.unary_unary(INFER), 2 * THREADS)
            wait_until_received(server, 2 * THREADS)
            server.batcher.server.drain(60)
            threading.Event().wait(0.5)  # for the threads without a call to end, if they did
            for reply in calls:
                await asyncio.to_thread(reply.result)


@needs_native
async def test_no_client_gets_a_reply_of_the_old_model_after_one_of_the_new() -> None:
    """On every thread. The clients compare their replies with all earlier requests."""
    async with running(io_threads=THREADS) as server, Clients(server, 2 * THREADS) as channels:
        newest, stop = 0, asyncio.Event()

        async def call(channel: aio.Channel) -> None:
            nonlocal newest
            while not stop.is_set():
                at_least = newest
                [version] = await predict(channel, 1)
                assert version >= at_least
                newest = max(newest, version)

        callers = [asyncio.ensure_future(call(channel)) for channel in channels]
        for version in range(2, 10):
            server.batcher.swap(Numbered(version), Statistics())  # type: ignore[arg-type]
            await until(lambda version=version: newest == version)  # type: ignore[misc]
        stop.set()
        await asyncio.gather(*callers)


class Numbered(Fake):
    """A model that returns its number, 0 to 9, as the digit."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def predict(self, pixels: np.ndarray) -> Any:
        result = super().predict(pixels)
        return result._replace(digit=np.full(len(pixels), self._number, np.int64))


@needs_native
async def test_a_thread_that_fails_ends_the_server(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at_start(monkeypatch, "native-2")
    options = [
        "--transport=native",
        "--provider=cpu",
        "--io-threads=4",
        f"--model={model_path}",
        "--port=0",
        "--metrics-port=0",
    ]
    server = compose(load(options), CapturingLogger())  # type: ignore[arg-type]
    await server.start()
    await until(lambda: not any(thread.is_alive() for thread in server.transport.threads[:THREADS]))
    await until(lambda: not server.health.is_serving())
    await server.stop()


async def sends(count: int) -> AsyncIterator[bytes]:
    for digit in range(count):
        yield request(digit % 10)


@needs_native
async def test_streams_on_all_threads_are_answered_in_order() -> None:
    async with running(io_threads=THREADS) as server, Clients(server, THREADS) as channels:

        async def stream(channel: aio.Channel) -> list[int]:
            replies = channel.stream_stream(STREAM)(sends(500), timeout=100)
            return [digit async for reply in replies for digit in PredictResponse.FromString(reply).digits]

        for digits in await asyncio.gather(*map(stream, channels)):
            assert digits == [at % 10 for at in range(500)]


# The number of threads.


@pytest.mark.parametrize(("cpus", "expected"), [(1, 1), (2, 1), (3.5, 1), (4, 2), (8, 4), (64, 16), (0.5, 1)])
def test_the_default_is_half_of_the_cpus(monkeypatch: pytest.MonkeyPatch, cpus: float, expected: int) -> None:
    monkeypatch.setattr(native, "available_cpus", lambda: cpus)
    assert native.default_io_threads() == expected


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, float("inf")),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2),  # the parent's counts too
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "50000 100000"}, 0.5),
        ("0::/../host\n", {"cpu.max": "400000 100000"}, 4),
        (
            "4:cpu,cpuacct:/a\n3:cpuset:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"},
            None,
        ),
        ("4:cpu,cpuacct:/x\n", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ("3:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        ("0::/\n", {}, None),
    ],
)
def test_the_quota_of_a_container_counts(
    tmp_path: Path, membership: str, files: dict[str, str], expected: float | None
) -> None:
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    assert cgroup_quota(tmp_path / "root", tmp_path / "membership") == (expected or float("inf"))


def test_a_system_without_cgroups_has_no_quota(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path, tmp_path / "none") == float("inf")


def test_grpcio_logs_that_it_has_no_io_threads(model_path: Path) -> None:
    with serving(model_path, "--transport", "grpcio", "--io-threads", "2") as service:
        [line] = [line for line in service.lines if line["event"] == "option ignored"]
    assert line["option"] == "--io-threads"
