"""WebGPU rejects models and devices that it cannot use, and lists its devices; on a software GPU.

tests/test_plugins.py has the tests without a device.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import software_gpu
from conftest import ROOT, serving
from onnx import TensorProto, helper
from software_gpu import software, webgpu
from test_model import sealed
from test_providers import refusal
from test_webgpu import DEVICE

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["software", "webgpu"]  # fixtures

pytestmark = [*software_gpu.marks, pytest.mark.usefixtures("webgpu")]


@software_gpu.needs_software
@pytest.mark.usefixtures("software")
def test_a_software_driver_is_rejected_by_default(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER")
    assert "which computes on the CPU: install the driver of the GPU" in refusal(
        "--model", model_path, "--provider", "webgpu"
    )


@software_gpu.needs_software
@pytest.mark.usefixtures("software")
def test_auto_does_not_use_a_software_gpu_and_logs_the_reason(model_path: Path) -> None:
    with serving(model_path, "--provider", "auto") as service:
        [line] = [line for line in service.lines if line["event"] == "provider chosen"]
        assert line["reason"] == "webgpu cannot be used: its device is no GPU; name it to use it"
        assert service.get("/healthz") == "SERVING on CPUExecutionProvider\n"


def test_a_node_without_a_kernel_on_the_gpu_is_rejected_by_its_operator(model_path: Path, tmp_path: Path) -> None:
    path = with_hardmax(model_path, tmp_path / "model.onnx")
    assert refusal("--model", path, "--provider", "webgpu") == (
        "--provider (or DIGITS_PROVIDER) is 'webgpu', but it has no kernel for Hardmax of the model, which the CPU "
        "would have run"
    )


def with_hardmax(model_path: Path, path: Path) -> Path:
    """Add an operator without effect to the network, for which WebGPU has no kernel."""
    model = onnx.load(model_path)
    producer = next(node for node in model.graph.node if "activations" in node.output)
    producer.output[:] = ["plain"]
    model.graph.initializer.append(helper.make_tensor("zero", TensorProto.FLOAT, [1], np.zeros(1)))
    for node in (
        helper.make_node("Hardmax", ["plain"], ["hard"]),
        helper.make_node("Mul", ["hard", "zero"], ["nothing"]),
        helper.make_node("Add", ["plain", "nothing"], ["activations"]),
    ):
        model.graph.node.append(node)
    order = [node for node in model.graph.node if "digit" not in node.output]
    last = [node for node in model.graph.node if "digit" in node.output]
    del model.graph.node[:]
    model.graph.node.extend([*order, *last])
    path.write_bytes(sealed(model))
    return path


def test_an_invalid_option_of_the_plugin_is_rejected_by_name(model_path: Path) -> None:
    arguments = ("--model", model_path, "--provider", "webgpu", "--provider-options")
    assert refusal(*arguments, "nonsense=1").endswith("but it has no option nonsense: see --provider-options")
    assert refusal(*arguments, "validationMode=much").endswith("Invalid validation mode: much")


def test_a_missing_device_number_is_rejected_with_the_valid_ones(model_path: Path) -> None:
    assert refusal("--model", model_path, "--provider", "webgpu", "--device-id", "1").endswith(
        "but it has no device 1: expected 0 to 0; see --list-providers"
    )


def test_a_plugin_without_a_package_is_found_by_its_library(model_path: Path, tmp_path: Path) -> None:
    import onnxruntime_ep_webgpu  # noqa: PLC0415 (an extra)

    library = tmp_path / "libplugin.so"
    library.symlink_to(onnxruntime_ep_webgpu.get_library_path())
    with serving(model_path, "--provider", "webgpu", "--provider-library", library) as service:
        assert service.get("/healthz") == f"SERVING on {DEVICE}\n"
    assert refusal("--model", model_path, "--provider", "openvino", "--provider-library", library).endswith(
        "has no such provider; it has webgpu"
    )


@software_gpu.needs_software
@pytest.mark.usefixtures("software")
def test_the_list_shows_the_gpu_with_vendor_name_and_memory(model_path: Path) -> None:
    command = [sys.executable, "-m", "service", "--list-providers", "--model", str(model_path)]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    [row] = [line for line in listed.stdout.splitlines() if line.startswith("webgpu")]
    assert "Google  SwiftShader Device" in row
    assert row.split()[-2:] == ["GiB", "yes"]
