"""The watchdog detects hung runs, a blocked event loop and ended threads, without false alarms."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from conftest import ANSWERS_WITHIN, needs_native, serving, until, wait_until
from fake_onnxruntime import HANGS
from gated_model import Held
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from structlog.testing import CapturingLogger
from test_device_recovery import DEVICE, NOT_SERVING, SERVING, ask, on_device
from test_native import fail_at_start

from service.config import load
from service.inference.model import Model
from service.observability.metrics import Metrics
from service.runtime import watchdog
from service.runtime.server import compose
from service.runtime.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

BLANK = np.zeros((1, 784), np.uint8)


class Dog:
    """A watchdog with short intervals that records its reports; `log` and `told` grow on other threads."""

    def __init__(
        self, patience: float, *threads: threading.Thread, active_runs: Callable[[], Sequence[int]] = tuple
    ) -> None:
        self.registry = CollectorRegistry()
        self.log = CapturingLogger()
        self.told: list[str] = []
        log: Any = self.log
        self.dog = Watchdog(patience, Metrics(self.registry), log, self.changed)
        self.dog.start(threads, active_runs)

    def changed(self) -> None:
        self.told.append(self.dog.unhealthy_reason)

    @property
    def count(self) -> float | None:
        return self.registry.get_sample_value("digits_stalls_total")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "TICK", 0.02)


async def test_a_hung_run_is_reported_with_its_stack_and_so_is_its_return(model_path: Path) -> None:
    held, watched = Held(Model(model_path)), Dog(0.1)
    run = asyncio.create_task(asyncio.to_thread(watched.dog.monitor(held).predict, BLANK))
    await until(lambda: len(watched.told) == 1)
    assert watched.told[0].startswith("a run of the model has been under way for ")
    [bark] = watched.log.calls
    assert (bark.method_name, bark.args) == ("error", ("watchdog stall",))
    assert any("gated_model.py" in place and "predict" in place for place in bark.kwargs["stack"])
    assert watched.count == 1
    held.go.set()
    assert (await run).digit.shape == (1,)
    await until(lambda: len(watched.told) == 2)
    assert watched.told[1] == watched.dog.unhealthy_reason == ""
    watched.dog.stop()
    assert [call.args for call in watched.log.calls] == [("watchdog stall",), ("watchdog recovered",)]


async def test_a_hung_native_run_is_reported_and_consecutive_runs_are_no_stall() -> None:
    numbers: list[int] = [0]

    def runs_in_turn() -> list[int]:
        numbers[0] += 1
        return [numbers[0]]

    watched = Dog(0.1, active_runs=lambda: runs_in_turn() if numbers[0] < 5 else [7])
    await until(lambda: len(watched.told) == 1)
    assert numbers == [5]
    assert watched.told[0].startswith("a run of the model has been under way for ")
    watched.dog.stop()


async def test_a_failed_run_is_no_stall(model_path: Path) -> None:
    held, watched = Held(Model(model_path)), Dog(0.1)
    held.go.set()
    held.fail = {1}
    with pytest.raises(RuntimeError, match="device lost"):
        watched.dog.monitor(held).predict(BLANK)
    await asyncio.sleep(0.3)
    watched.dog.stop()
    assert watched.told == []


async def test_a_blocked_event_loop_is_reported_to_other_threads() -> None:
    watched = Dog(0.1)
    wait_until(lambda: watched.dog.unhealthy_reason.startswith("the event loop has stood still"))  # which blocks it
    await until(lambda: watched.told != [] and not watched.dog.unhealthy_reason)
    watched.dog.stop()
    assert any("test_watchdog.py" in place for place in watched.log.calls[0].kwargs["stack"])
    assert watched.count == 1


async def test_zero_disables_the_watchdog(model_path: Path) -> None:
    held, watched = Held(Model(model_path)), Dog(0)
    run = asyncio.create_task(asyncio.to_thread(watched.dog.monitor(held).predict, BLANK))
    await asyncio.sleep(0.3)
    assert watched.dog.unhealthy_reason == ""
    held.go.set()
    await run
    watched.dog.stop()
    assert watched.told == []


async def test_an_ended_thread_is_reported_without_a_waiting_request() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="worker")
    thread.start()
    watched = Dog(0, thread)
    await asyncio.sleep(0.1)
    assert watched.told == []
    end.set()
    await until(lambda: watched.told == ["the thread worker has ended"])
    watched.dog.stop()
    assert watched.count == 1


@needs_native
async def test_a_failed_native_thread_is_reported(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at_start(monkeypatch, "native-model-0")
    options = ["--transport=native", "--provider=cpu", "--port=0", "--metrics-port=0", "--shutdown-grace=0"]
    log: Any = CapturingLogger()
    server = compose(load([*options, f"--model={model_path}"]), log)
    await server.start()
    await until(lambda: not server.health.is_serving())
    assert server.health.unhealthy_reason == "the thread native-model-0 has ended"
    await server.stop()


# Tests of the whole server, on both transports.


@pytest.mark.slow
def test_a_hung_device_is_reported_everywhere_until_it_continues(
    model_path: Path, transport: str, tmp_path: Path
) -> None:
    del transport
    broken = tmp_path / "broken"
    with (
        on_device(model_path, broken, "--watchdog-timeout", "1") as service,
        grpc.insecure_channel(service.address) as channel,
    ):
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=ANSWERS_WITHIN)
        assert next(watch).status == SERVING
        broken.write_text(HANGS)
        caller = threading.Thread(target=ask, args=(channel,))
        caller.start()
        assert next(watch).status == NOT_SERVING
        bark = service.wait_for("watchdog stall")
        assert bark["reason"].startswith("a run of the model has been under way for ")
        assert any("fake_onnxruntime.py" in place for place in bark["stack"])
        with pytest.raises(OSError, match="503"):
            service.get("/healthz")
        series = service.series()
        assert series["digits_stalls_total", ()] == 1
        assert series["digits_serving", ()] == 0
        broken.unlink()
        assert next(watch).status == SERVING
        caller.join()
        assert ask(channel) == grpc.StatusCode.OK
        assert service.get("/healthz") == f"SERVING on {DEVICE}\n"
        assert service.stop() == 0


@pytest.mark.slow
def test_a_hung_run_does_not_delay_the_end_of_the_process(model_path: Path, transport: str, tmp_path: Path) -> None:
    del transport
    broken = tmp_path / "broken"
    with (
        on_device(model_path, broken, "--shutdown-grace", "0.5") as service,
        grpc.insecure_channel(service.address) as channel,
    ):
        broken.write_text(HANGS)
        caller = threading.Thread(target=ask, args=(channel,))
        caller.start()
        under_way = ("digits_requests_in_flight", ("Predict", "digits.v1.DigitService", "unary"))
        wait_until(lambda: service.series()[under_way])
        time.sleep(0.5)  # until the run reaches the device
        assert service.stop() == 1
        assert service.lines[-1]["event"] == "forced exit"
        caller.join()


@pytest.mark.slow
@pytest.mark.usefixtures("transport")
def test_a_frozen_process_is_no_stall(model_path: Path) -> None:
    with serving(model_path, "--watchdog-timeout", "2") as service:
        service.process.send_signal(signal.SIGSTOP)
        time.sleep(4)
        service.process.send_signal(signal.SIGCONT)
        time.sleep(1.5)
        assert service.get("/healthz").startswith("SERVING")
        assert service.series()["digits_stalls_total", ()] == 0
