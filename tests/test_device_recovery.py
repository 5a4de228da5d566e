"""A device that fails while it serves: clients, health and metrics report it, and it recovers without a restart.

The runs of the unit tests fail in ONNX Runtime. The server's device is replayed (tests/fake_onnxruntime.py).
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from certificates import put
from conftest import ANSWERS_WITHIN, ROOT, ServiceProcess, until
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from structlog.testing import CapturingLogger
from test_providers import failing_on_ink, replaying
from test_reloader import add

from service.batching.batcher import INLINE_IMAGES, Batcher
from service.config import load
from service.errors import ModelUnavailable
from service.inference.model import Model
from service.observability.metrics import Metrics
from service.pb.digits.v1.digits_pb2 import PredictRequest
from service.pb.digits.v1.digits_pb2_grpc import DigitServiceStub
from service.pb.inference import open_inference_pb2 as pb
from service.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from service.runtime import device_recovery
from service.runtime.device_recovery import FAILURE_THRESHOLD, DeviceRecovery
from service.runtime.server import compose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["replaying"]  # a fixture of test_providers

BLANK, INK = np.zeros((1, 784), np.uint8), np.full((1, 784), 255, np.uint8)
NOT_SERVING, SERVING = health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING
DEVICE = "CUDAExecutionProvider"


class Kept:
    """A model that fails on ink, with a recovery whose reports to health are recorded."""

    def __init__(self, path: Path) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.said: list[bool] = []
        self.recovery = DeviceRecovery(self.metrics, CapturingLogger(), self.changed)  # type: ignore[arg-type]
        self.model = Model(path)
        self.kept = self.recovery.guard(self.model)

    def changed(self) -> None:
        self.said.append(not self.recovery.unhealthy_reason)

    def fails(self, times: int = 1) -> None:
        for _ in range(times):
            with pytest.raises(ModelUnavailable):
                self.kept.predict(INK)

    def count(self, reason: str) -> float:
        return float(self.metrics.device_failures.labels(reason)._value.get())


@pytest.fixture
async def kept(model_path: Path, tmp_path: Path) -> Any:
    kept = Kept(failing_on_ink(model_path, tmp_path / "model.onnx"))
    running = asyncio.create_task(kept.recovery.run())
    yield kept
    running.cancel()


async def test_a_failed_run_is_unavailable_to_its_clients_and_counted(kept: Kept) -> None:
    with pytest.raises(
        ModelUnavailable, match="the model's run on CPUExecutionProvider failed: send the request again"
    ):
        kept.kept.predict(INK)
    assert (kept.count("run"), kept.count("memory"), kept.count("session")) == (1, 0, 0)
    assert kept.kept.predict(BLANK).digit.shape == (1,)


async def test_failures_with_successes_between_them_leave_health_alone(kept: Kept) -> None:
    for _ in range(5):
        kept.fails(FAILURE_THRESHOLD - 1)
        kept.kept.predict(BLANK)
    await asyncio.sleep(0.05)
    assert kept.said == []
    assert kept.recovery.unhealthy_reason == ""


async def test_consecutive_failures_are_reported_and_a_new_session_ends_them(kept: Kept) -> None:
    before = kept.model._session
    kept.fails(FAILURE_THRESHOLD)
    assert kept.recovery.unhealthy_reason == "CPUExecutionProvider failed 3 runs in a row and is being tried again"
    await until(lambda: kept.said == [False, True])
    assert kept.recovery.unhealthy_reason == ""
    assert kept.kept.predict(BLANK).digit.shape == (1,)
    assert kept.model._session is before  # on the CPU, it is the session that verified the file


async def test_calls_fail_at_once_while_no_session_works_and_each_try_is_counted(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_recovery, "MIN_BACKOFF", 0.01)
    mended = asyncio.Event()

    def recreate_session() -> None:
        if not mended.is_set():
            raise RuntimeError("no device")

    kept.kept.recreate_session = recreate_session
    kept.fails(FAILURE_THRESHOLD)
    await until(lambda: kept.count("session") >= 3)
    with pytest.raises(ModelUnavailable, match="has failed and is being tried again"):
        kept.kept.predict(BLANK)
    assert kept.count("run") == FAILURE_THRESHOLD
    assert kept.said == [False]
    mended.set()
    await until(lambda: kept.said == [False, True])
    kept.kept.predict(BLANK)


async def test_a_session_that_fails_soon_after_its_creation_is_recreated_with_a_delay(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_recovery, "MIN_BACKOFF", 0.2)
    kept.fails(FAILURE_THRESHOLD)
    await until(lambda: kept.said == [False, True])  # the first try comes at once
    began = time.monotonic()
    kept.fails(FAILURE_THRESHOLD)
    await until(lambda: kept.said == [False, True] * 2)
    assert time.monotonic() - began >= 0.2


async def test_a_new_model_ends_the_unhealthy_state_of_the_old_one(
    kept: Kept, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = asyncio.Event()
    loop = asyncio.get_running_loop()

    def recreate_session() -> None:
        loop.call_soon_threadsafe(tried.set)
        raise RuntimeError("no device")

    monkeypatch.setattr(device_recovery, "MIN_BACKOFF", 60)
    kept.kept.recreate_session = recreate_session
    kept.fails(FAILURE_THRESHOLD)
    await tried.wait()
    old = kept.kept
    kept.recovery.guard(Model(model_path))
    await until(lambda: kept.said == [False, True])
    with pytest.raises(ModelUnavailable):  # requests for the earlier model still fail
        old.predict(INK)
    await asyncio.sleep(0.05)
    assert kept.said == [False, True]


@pytest.mark.parametrize(
    ("arguments", "inline"),
    [(["--provider=cuda"], 0), (["--provider=cuda", "--inline-images=4"], 4), (["--provider=cpu"], INLINE_IMAGES)],
    ids=str,
)
async def test_on_a_device_no_run_is_on_the_event_loop_by_default(
    model_path: Path, replaying: Callable[[str], None], arguments: list[str], inline: int
) -> None:
    replaying("works")
    server = compose(load([*arguments, "--transport=grpcio", f"--model={model_path}"]), CapturingLogger())  # type: ignore[arg-type]
    assert isinstance(server.batcher, Batcher)
    assert server.batcher._inline == inline


# Tests of the whole server, on both transports.


@contextmanager
def on_device(model: Path, broken: Path, *arguments: str) -> Iterator[ServiceProcess]:
    command = [
        sys.executable,
        "tests/fake_onnxruntime.py",
        "--provider",
        "cuda",
        "--log-format",
        "json",
        "--model",
        str(model),
    ]
    command += ["--port", "0", "--metrics-port", "0", *arguments]
    environment = {**os.environ, "REPLAY": "works", "REPLAY_BROKEN": str(broken)}
    service = ServiceProcess(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        service.wait_for("serving", provider=DEVICE)
        yield service
    finally:
        service.close()


def ask(channel: grpc.Channel) -> grpc.StatusCode:
    try:
        DigitServiceStub(channel).Predict(PredictRequest(pixels=BLANK.tobytes()), timeout=ANSWERS_WITHIN)  # type: ignore[no-untyped-call]
    except grpc.RpcError as e:
        assert "CUDA failure" not in e.details()
        return e.code()
    return grpc.StatusCode.OK


def test_a_failed_device_is_reported_everywhere_and_recovers_without_a_restart(
    model_path: Path, transport: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    with on_device(model_path, broken) as service, grpc.insecure_channel(service.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=ANSWERS_WITHIN)
        assert next(watch).status == SERVING
        assert service.get("/healthz") == f"SERVING on {DEVICE}\n"
        assert ask(channel) == grpc.StatusCode.OK
        broken.touch()
        assert [ask(channel) for _ in range(FAILURE_THRESHOLD)] == [grpc.StatusCode.UNAVAILABLE] * FAILURE_THRESHOLD
        assert next(watch).status == NOT_SERVING
        [cause] = service.wait_for("run failed", consecutive_failures=1)["exception"]
        assert "CUDA failure 700" in cause["exc_value"]
        service.wait_for("model unhealthy", reason=f"{DEVICE} failed 3 runs in a row and is being tried again")
        assert service.wait_for("session recreation failed")["reason"].startswith(
            "CUDA reports 700: an illegal memory access"
        )
        with pytest.raises(OSError, match="503"):
            service.get("/healthz")
        assert ask(channel) == grpc.StatusCode.UNAVAILABLE
        series = service.series()
        assert series["digits_device_failures_total", ("run",)] == FAILURE_THRESHOLD
        assert series["digits_device_failures_total", ("session",)] >= 1
        assert series["digits_serving", ()] == 0
        broken.unlink()
        assert next(watch).status == SERVING
        assert ask(channel) == grpc.StatusCode.OK
        service.wait_for("model recovered")
        assert service.stop() == 0
    assert {line["provider"] for line in service.lines if "provider" in line} == {"cuda", DEVICE}
    assert transport in {line.get("transport") for line in service.lines}


def test_the_provider_is_in_metrics_metadata_and_configuration(
    model_path: Path, transport: str, tmp_path: Path
) -> None:
    del transport
    with on_device(model_path, tmp_path / "broken") as service, grpc.insecure_channel(service.address) as channel:
        stub: Any = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="digits"))
        assert metadata.properties["execution_provider"] == DEVICE
        config = MessageToDict(stub.ModelConfig(pb.ModelConfigRequest(name="digits")).config)
        assert config["instanceGroup"] == [{"name": "digits_0", "count": 1, "kind": "KIND_GPU"}]
        assert f'provider="{DEVICE}"' in service.get("/metrics")
        # Without a driver there is no NVML. Its series are absent, and the log contains why.
        assert "digits_gpu_" not in service.get("/metrics")
        assert [line for line in service.lines if line["event"] == "GPU metrics unavailable"]


@pytest.mark.slow
def test_a_version_that_arrives_during_a_device_failure_is_loaded_after_recovery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIGITS_TRANSPORT", "grpcio")  # the only transport that loads new versions
    folder, broken = tmp_path / "models", tmp_path / "broken"
    add(folder, 1)
    with on_device(folder, broken, "--model-poll", "0.1") as service, grpc.insecure_channel(service.address) as channel:
        broken.touch()
        add(folder, 2)
        service.wait_for("model rejected")
        assert ask(channel) == grpc.StatusCode.UNAVAILABLE
        broken.unlink()
        assert service.wait_for("model loaded")["model_version"] == "2"
        assert ask(channel) == grpc.StatusCode.OK
        (family,) = [line for line in service.get("/metrics").splitlines() if line.startswith("digits_model_info")]
        assert f'provider="{DEVICE}"' in family


def test_it_stops_cleanly_during_a_device_failure(model_path: Path, transport: str, tmp_path: Path) -> None:
    del transport
    broken = tmp_path / "broken"
    with on_device(model_path, broken) as service, grpc.insecure_channel(service.address) as channel:
        put(broken, b"")
        for _ in range(FAILURE_THRESHOLD):
            ask(channel)
        service.wait_for("session recreation failed")
        assert service.stop() == 0
