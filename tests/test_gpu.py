"""Tests on an NVIDIA GPU: `make test-gpu`. Without a GPU, test_providers and test_device_recovery replay its faults."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import ROOT, serving
from digitserve_client import DigitsClient
from prometheus_client import CollectorRegistry, generate_latest
from structlog.testing import CapturingLogger

from bench.providers import crossover
from service.inference.model import Model
from service.inference.providers import SessionFactory
from service.inference.sessions import TOLERANCE
from service.observability import gpu_metrics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def why_no_gpu() -> str:
    """Return why the tests marked `gpu` cannot run on this machine; empty if they can."""
    try:
        subprocess.run(["nvidia-smi", "--list-gpus"], check=True, capture_output=True, timeout=60)  # noqa: S607
    except (OSError, subprocess.SubprocessError):
        return "needs an NVIDIA GPU: `make test-gpu` on a machine that has one"
    return ""


needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(bool(why_no_gpu()), reason=why_no_gpu())]


def gpu(test: Any) -> Any:
    """Mark a test that needs a GPU."""
    for mark in needs_gpu:
        test = mark(test)
    return test


def on_cuda(path: Path, **options: Any) -> Model:
    return Model(path, sessions=SessionFactory("cuda", CapturingLogger(), **options))  # type: ignore[arg-type]


@gpu
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
@pytest.mark.parametrize("size", [1, 7, 64, 1024, 65536])
def test_the_gpu_answers_as_the_cpu_does(
    make_model: Callable[..., Path], digits: Any, activation: str, size: int
) -> None:
    path, pixels = make_model(activation), np.resize(digits, (size, 784))
    ours, theirs = on_cuda(path, max_batch_size=size).predict(pixels), Model(path).predict(pixels)
    np.testing.assert_array_equal(ours.digit, theirs.digit)
    for name in ("activations", "layer1", "layer2"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=TOLERANCE, atol=TOLERANCE)


@gpu
@pytest.mark.parametrize("provider", ["cuda", "auto"])
def test_a_server_on_the_gpu_reports_it_and_its_utilization(
    model_path: Path, transport: str, digits: Any, labels: Any, provider: str
) -> None:
    del transport
    with serving(model_path, "--provider", provider) as service, DigitsClient(service.address) as client:
        assert service.get("/healthz") == "SERVING on CUDAExecutionProvider\n"
        assert (client.predict(digits).digits == labels).mean() > 0.9
        metrics = service.get("/metrics")
        assert 'provider="CUDAExecutionProvider"' in metrics
        assert "digits_gpu_memory_used_bytes" in metrics
        assert service.stop() == 0


@gpu
def test_a_missing_device_is_rejected_by_number(model_path: Path) -> None:
    with pytest.raises(Exception, match="there is no device of that number"):
        on_cuda(model_path, device_id=999)


@gpu
def test_the_memory_limit_is_enforced(model_path: Path) -> None:
    with pytest.raises(Exception, match=r"a batch of 65536 cannot run|memory"):
        on_cuda(model_path, max_batch_size=65536, memory_limit=2**20)


@gpu
def test_sessions_can_be_recreated_while_it_serves(model_path: Path, digits: Any) -> None:
    model = on_cuda(model_path)
    before = model.predict(digits)
    for _ in range(20):
        model.recreate_session()
    np.testing.assert_array_equal(model.predict(digits).digit, before.digit)


# Tests without a GPU.


class Nvml:
    """The used part of NVML, for a machine with two GPUs."""

    class NVMLError(Exception):
        pass

    NVMLError.__name__ = "NVMLError"

    def __init__(self, *, tells: bool = True) -> None:
        self.tells = tells

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802 (NVML's own)
        return f"gpu {index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return uuid

    def nvmlDeviceGetUUID(self, device: str) -> str:  # noqa: N802
        return f"GPU-{device}"

    def nvmlDeviceGetUtilizationRates(self, _: str) -> Any:  # noqa: N802
        if not self.tells:
            raise self.NVMLError
        return SimpleNamespace(gpu=25)

    def nvmlDeviceGetMemoryInfo(self, _: str) -> Any:  # noqa: N802
        return SimpleNamespace(used=3, total=8)


def test_the_metrics_of_a_gpu_are_those_of_nvml() -> None:
    registry = CollectorRegistry()
    registry.register(gpu_metrics.GpuCollector(Nvml(), "gpu 1"))
    text = generate_latest(registry).decode()
    assert 'digits_gpu_utilization_ratio{uuid="GPU-gpu 1"} 0.25' in text
    assert 'digits_gpu_memory_used_bytes{uuid="GPU-gpu 1"} 3.0' in text
    assert 'digits_gpu_memory_bytes{uuid="GPU-gpu 1"} 8.0' in text


def test_a_gpu_that_nvml_no_longer_lists_has_no_metrics_and_the_scrape_succeeds() -> None:
    registry = CollectorRegistry()
    registry.register(gpu_metrics.GpuCollector(Nvml(tells=False), "gpu 1"))
    assert generate_latest(registry) == b""


@pytest.mark.parametrize(
    ("visible", "device_id", "found"),
    [("", 1, "gpu 1"), ("3,5", 1, "gpu 5"), ("GPU-abc, MIG-def", 1, "MIG-def"), ("3", 4, "gpu 4")],
)
def test_a_device_is_counted_as_cuda_counts_it(
    monkeypatch: pytest.MonkeyPatch, visible: str, device_id: int, found: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_metrics.nvml_device(Nvml(), device_id) == found


@pytest.mark.skipif(not why_no_gpu(), reason="this machine has a GPU")
def test_without_a_driver_the_metrics_of_the_gpu_are_absent_and_the_reason_is_logged() -> None:
    registry, log = CollectorRegistry(), CapturingLogger()
    gpu_metrics.register(registry, 0, log)  # type: ignore[arg-type]
    assert generate_latest(registry) == b""
    assert log.calls[0].kwargs == {"reason": "NVML: NVML Shared Library Not Found"}


def test_the_crossover_is_the_size_from_which_the_second_stays_faster() -> None:
    first = {1: [10.0], 2: [10.0], 4: [10.0], 8: [10.0]}
    assert crossover(first, {1: [11.0], 2: [9.0], 4: [11.0], 8: [12.0]}) == 4
    assert crossover(first, {1: [1.0], 2: [1.0], 4: [1.0], 8: [1.0]}) is None
    assert crossover(first, {1: [11.0], 2: [11.0], 4: [11.0], 8: [11.0]}) == 1


@pytest.mark.slow
def test_the_benchmark_runs_on_available_providers_and_lists_the_others(tmp_path: Path, model_path: Path) -> None:
    del model_path
    command = [sys.executable, "-m", "bench.providers", "--names", "cpu,azure", "--largest", "2", "--clients", "1"]
    command += ["--rounds", "1", "--seconds", "0.01", "--out", str(tmp_path)]
    if not (ROOT / "model.onnx").exists():
        pytest.skip("needs model.onnx: `make model.onnx`")
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Left out: azure: --provider (or DIGITS_PROVIDER) is 'azure', but it has no kernel for" in ran.stdout
    assert "| images a run | cpu |" in (tmp_path / "results.md").read_text()
