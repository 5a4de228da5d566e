"""The server on a GPU by WebGPU: its reports of the device, reloads, drains and lost devices.

The GPU is a software GPU (tests/software_gpu.py). Kernels, sessions, lost devices and their recovery are real: those of
onnxruntime-ep-webgpu. tests/test_api_on_webgpu.py has the tests of the API.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
import software_gpu
from certificates import put
from conftest import ANSWERS_WITHIN, ROOT, ServiceProcess, serving
from digitserve_client import AsyncDigitsClient
from google.protobuf.json_format import MessageToDict
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from software_gpu import software, webgpu
from test_grpc_api import message
from test_reloader import NETWORKS, TOKEN, activation, add, folder, tokens

from service.inference.sessions import TOLERANCE
from service.pb.inference import open_inference_pb2 as pb
from service.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["folder", "software", "tokens", "webgpu"]  # fixtures

pytestmark = [*software_gpu.marks, pytest.mark.usefixtures("webgpu")]

DEVICE = "WebGpuExecutionProvider"
WEBGPU = ("--provider", "webgpu", "--max-batch-size", "1024")
NOT_SERVING, SERVING = health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def server(model_path: Path, transport: str, webgpu: None) -> Iterator[ServiceProcess]:  # noqa: ARG001 (set the environment)
    with serving(model_path, *WEBGPU) as service:
        yield service


def test_the_provider_is_in_log_health_metrics_metadata_and_configuration(server: ServiceProcess) -> None:
    assert server.get("/healthz") == f"SERVING on {DEVICE}\n"
    assert f'provider="{DEVICE}"' in server.get("/metrics")
    assert {line.get("provider") for line in server.lines if line["event"] == "serving"} == {DEVICE}
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="digits"))
        assert metadata.properties["execution_provider"] == DEVICE
        kind = "KIND_GPU" if software_gpu.has_gpu() else "KIND_CPU"
        config = MessageToDict(stub.ModelConfig(pb.ModelConfigRequest(name="digits")).config)
        assert config["instanceGroup"] == [{"name": "digits_0", "count": 1, "kind": kind}]


def run_alone(program: str) -> str:
    """Run `program` in a separate process and return its output: the plugin lists devices once in a process.

    The test process can have registered the plugin before the software GPU was available.
    """
    prelude = 'import sys\nsys.path[:0] = ["tests", "client"]\n'
    command = [sys.executable, "-c", prelude + program]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


COMPARE = """
import numpy as np
from pathlib import Path
from test_providers import session_factory
from service.inference.model import Model
from service.inference.sessions import TOLERANCE
path, digits = Path({path!r}), np.load({digits!r})
on_gpu, on_cpu = Model(path, sessions=session_factory("webgpu", max_batch_size=1024)), Model(path)
for size in (1, 7, 64, 1024):
    pixels = np.resize(digits, (size, 784))
    ours, theirs = on_gpu.predict(pixels), on_cpu.predict(pixels)
    np.testing.assert_array_equal(ours.digit, theirs.digit)
    for output in ("activations", "layer1", "layer2"):
        np.testing.assert_allclose(getattr(ours, output), getattr(theirs, output), rtol=TOLERANCE, atol=TOLERANCE)
print(on_gpu.provider)
"""


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_the_gpu_answers_as_the_cpu_does(
    make_model: Callable[..., Path], tmp_path: Path, digits: Any, activation: str
) -> None:
    np.save(tmp_path / "digits.npy", digits)
    program = COMPARE.format(path=str(make_model(activation)), digits=str(tmp_path / "digits.npy"))
    assert run_alone(program) == f"{DEVICE}\n"


SHARE = """
import threading
import numpy as np
from pathlib import Path
from test_providers import session_factory
from service.inference.model import Model
def load(): return Model(Path({path!r}), sessions=session_factory("webgpu"))
model, pixels, done = load(), np.zeros((64, 784), np.uint8), threading.Event()
def run():
    while not done.is_set():
        model.predict(pixels)
threads = [threading.Thread(target=run) for _ in range(2)]
for thread in threads: thread.start()
for _ in range(10): load().predict(pixels)
done.set()
for thread in threads: thread.join()
print("all answered")
"""


def test_models_that_share_the_device_run_and_load_concurrently(model_path: Path) -> None:
    """The process would end with SIGSEGV if two threads used the device concurrently."""
    assert run_alone(SHARE.format(path=str(model_path))) == "all answered\n"


async def test_versions_are_swapped_under_load_without_lost_calls_or_mixed_answers(
    folder: Path, tokens: Path, transport: str, digits: np.ndarray
) -> None:
    del transport
    expected = {name: trained.network.forward(digits).activations for name, trained in NETWORKS.items()}
    versions: set[str] = set()
    done = asyncio.Event()

    async def predict(client: AsyncDigitsClient, images: int) -> None:
        pixels = np.resize(digits, (images, 784))
        while not done.is_set():
            reply = await client.predict(pixels, timeout=ANSWERS_WITHIN)
            right = np.resize(expected[activation(reply.model_version)], (images, 10))
            np.testing.assert_allclose(reply.activations, right, rtol=0, atol=TOLERANCE)
            versions.add(reply.model_version)

    arguments = ("--model-control", "--tokens-file", tokens, "--provider", "webgpu", "--max-batch-size", "64")
    with serving(folder, *arguments) as service:
        async with (
            AsyncDigitsClient(service.address, token_file=tokens) as client,
            aio.insecure_channel(service.address) as channel,
        ):
            load = [asyncio.create_task(predict(client, images)) for images in (1, 3, 40)]
            swap = channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelLoad")
            request = pb.RepositoryModelLoadRequest(model_name="digits").SerializeToString()
            for version in range(2, 12):
                add(folder, version)
                await swap(request, timeout=ANSWERS_WITHIN, metadata=(("authorization", f"Bearer {TOKEN}"),))
            done.set()
            await asyncio.gather(*load)
        assert service.stop() == 0
        assert not [line for line in service.lines if line["event"] in ("run failed", "failed", "model refused")]
    assert len(versions) > 2


async def test_every_call_that_was_sent_before_the_stop_is_answered(model_path: Path, transport: str) -> None:
    del transport
    with serving(model_path, *WEBGPU, "--drain-wait", "0.2", "--shutdown-grace", "100") as service:
        async with aio.insecure_channel(service.address) as channel:
            predict = channel.unary_unary("/digits.v1.DigitService/Predict")
            calls = [asyncio.ensure_future(predict(message(bytes(784)), timeout=ANSWERS_WITHIN)) for _ in range(100)]
            await calls[0]
            service.process.send_signal(signal.SIGTERM)
            assert len(await asyncio.gather(*calls)) == 100
        assert await asyncio.to_thread(service.ended) == 0


# A real failure of the device, by its driver.


@contextmanager
def on_failing_driver(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ServiceProcess, Path]]:
    """Start a server; yield it and the file that contains how its driver fails."""
    fault = folder / "fault"
    for variable, value in software_gpu.failing_environment(folder, fault).items():
        monkeypatch.setenv(variable, value)
    with serving(model, "--provider", "webgpu", "--max-batch-size", "4096") as service:
        yield service, fault


def predict_code(channel: grpc.Channel, images: int = 1) -> grpc.StatusCode:
    try:
        channel.unary_unary("/digits.v1.DigitService/Predict")(message(bytes(784 * images)), timeout=ANSWERS_WITHIN)
    except grpc.RpcError as e:
        assert "webgpu" not in e.details()  # no internals, such as a line of its source
        return e.code()
    return grpc.StatusCode.OK


@software_gpu.needs_software
def test_a_lost_device_is_reported_everywhere_and_recovered_without_a_restart(
    model_path: Path, transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        on_failing_driver(model_path, tmp_path, monkeypatch) as (service, fault),
        grpc.insecure_channel(service.address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=ANSWERS_WITHIN)
        assert next(watch).status == SERVING
        assert predict_code(channel) == grpc.StatusCode.OK
        put(fault, b"lost")
        assert predict_code(channel) == grpc.StatusCode.UNAVAILABLE
        assert next(watch).status == NOT_SERVING
        [cause] = service.wait_for("run failed", consecutive_failures=1)["exception"]
        assert "[Device] is lost" in cause["exc_value"]
        service.wait_for("model unhealthy", reason=f"{DEVICE} lost its device and is being tried again")
        assert service.wait_for("session recreation failed")["reason"] == (
            "a batch of 1 cannot run: the device is lost"
        )
        with pytest.raises(OSError, match="503"):
            service.get("/healthz")
        assert predict_code(channel) == grpc.StatusCode.UNAVAILABLE
        assert service.series()["digits_serving", ()] == 0
        fault.unlink()
        assert next(watch).status == SERVING
        assert predict_code(channel) == grpc.StatusCode.OK
        service.wait_for("model recovered")
        assert service.get("/healthz") == f"SERVING on {DEVICE}\n"
        assert service.stop() == 0
    assert {line["provider"] for line in service.lines if "provider" in line} == {"webgpu", DEVICE}
    assert transport in {line.get("transport") for line in service.lines}


@software_gpu.needs_software
def test_it_stops_cleanly_while_its_device_is_lost(
    model_path: Path, transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del transport
    with (
        on_failing_driver(model_path, tmp_path, monkeypatch) as (service, fault),
        grpc.insecure_channel(service.address) as channel,
    ):
        put(fault, b"lost")
        assert predict_code(channel) == grpc.StatusCode.UNAVAILABLE
        service.wait_for("session recreation failed")
        assert service.stop() == 0


@software_gpu.needs_software
def test_a_run_without_memory_fails_and_later_runs_succeed(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WebGPU keeps a buffer after its failed allocation, and uses it in every later run of that size."""
    with (
        on_failing_driver(model_path, tmp_path, monkeypatch) as (service, fault),
        grpc.insecure_channel(service.address) as channel,
    ):
        put(fault, b"memory")
        assert predict_code(channel, 2500) == grpc.StatusCode.UNAVAILABLE
        service.wait_for("model unhealthy", reason=f"{DEVICE} had no memory for a buffer and is being tried again")
        service.wait_for("session recreation failed")
        fault.unlink()
        service.wait_for("model recovered")
        assert [predict_code(channel, images) for images in (1, 2500, 4000)] == [grpc.StatusCode.OK] * 3
