"""Plugin execution providers without a device: every silent fallback to the CPU is an error, with real plugins.

tests/test_webgpu.py has the tests with a device.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import software_gpu
from conftest import ROOT
from test_providers import refusal, session_factory

from service.config import SettingsError, load
from service.errors import ProviderError
from service.inference import plugins, vulkan
from service.inference.model import Model
from service.inference.provider_diagnostics import session_fault
from service.inference.provider_list import Row, render

if TYPE_CHECKING:
    from pathlib import Path

needs_webgpu = pytest.mark.skipif(
    "webgpu" not in {name for plugin in plugins.installed() for name in plugin.providers},
    reason="no GPU in software: install onnxruntime-ep-webgpu (the extra `webgpu`)",
)


def rejection(model: Path, name: str, **options: Any) -> str:
    with pytest.raises(ProviderError) as caught:
        Model(model, sessions=session_factory(name, **options))
    return caught.value.reason


@pytest.mark.parametrize(
    ("name", "package"),
    [("openvino", "onnxruntime-ep-openvino"), ("tensorrt-rtx", "onnxruntime-ep-nv-tensorrt-rtx")],
)
def test_a_plugin_that_is_not_installed_is_rejected_with_its_package(model_path: Path, name: str, package: str) -> None:
    if plugins.find(name):
        pytest.skip(f"{package} is installed")
    assert rejection(model_path, name) == (
        f"no plugin that has it is installed: pip install {package}, or give --provider-library"
    )


def test_a_library_that_does_not_load_is_rejected_with_its_reason(model_path: Path, tmp_path: Path) -> None:
    library = tmp_path / "libplugin.so"
    assert rejection(model_path, "webgpu", library=str(library)) == f"its library {library} is missing"
    library.write_text("no library")
    assert rejection(model_path, "webgpu", library=str(library)) == (
        f"its library does not load: {library}: file too short"
    )


def test_a_library_that_is_not_a_plugin_is_rejected_by_name(model_path: Path) -> None:
    import _ctypes  # noqa: PLC0415 (any shared library)

    assert rejection(model_path, "webgpu", library=_ctypes.__file__) == (
        f"{_ctypes.__file__} is no plugin of ONNX Runtime: it has no CreateEpFactories"
    )


@needs_webgpu
def test_without_a_vulkan_driver_webgpu_is_rejected_with_the_package_to_install(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = software_gpu.without_driver(tmp_path)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    try:
        vulkan.devices()
    except vulkan.VulkanError as e:
        reason = str(e)
    assert refusal("--model", model_path, "--provider", "webgpu") == (
        f"--provider (or DIGITS_PROVIDER) is 'webgpu', but {reason}"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--provider-library", "x.so"],
            "--provider-library (or DIGITS_PROVIDER_LIBRARY) without a provider: --provider",
        ),
        (["--provider", "web_gpu"], "--provider (or DIGITS_PROVIDER) is 'web_gpu'; expected a match of"),
    ],
)
def test_invalid_options_are_rejected_by_name(arguments: list[str], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(arguments)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("wgpu::MapAsyncStatus value: 4, message: [Device] is lost.", "lost its device"),
        ("WebGPU validation failed. [Invalid Buffer (unlabeled)] is invalid due to a previous error.", "had no memory"),
        ("CUDA failure 2: out of memory", ""),
    ],
)
def test_an_unusable_session_is_detected_by_its_message(message: str, fault: str) -> None:
    assert session_fault(message).startswith(fault)
    assert bool(session_fault(message)) == bool(fault)


# --list-providers.


def test_every_provider_is_listed_as_usable_or_with_the_reason(model_path: Path) -> None:
    command = [sys.executable, "-m", "service", "--list-providers", "--model", str(model_path)]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = {line.split()[0]: line for line in listed.stdout.splitlines()}
    assert {"cpu", "cuda", "openvino", "tensorrt-rtx", "webgpu"} <= rows.keys()
    assert rows["cpu"].endswith("yes")
    assert "GiB" in rows["cpu"]
    assert all(line.endswith("yes") or "no: " in line for name, line in rows.items() if name != "PROVIDER")
    assert listed.stderr == ""


def test_without_a_model_the_providers_are_listed_with_the_missing_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service", "--list-providers", "--model", str(tmp_path / "model.onnx")]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"no: {tmp_path}/model.onnx: no such file" in listed.stdout


def test_a_table_has_its_columns_under_each_other() -> None:
    text = render([Row("cpu", kind="CPU", usable="yes"), Row("tensorrt-rtx", device="10", usable="no: x")])
    assert {line.index(cell) for line, cell in zip(text.splitlines(), ("USABLE", "yes", "no: x"), strict=True)} == {
        text.splitlines()[0].index("USABLE")
    }


# Vulkan.


def test_the_vulkan_loader_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vulkan, "LOADER", "libnowhere.so.1")
    with pytest.raises(vulkan.VulkanError, match=r"the Vulkan loader libnowhere\.so\.1 is missing: install it"):
        vulkan.devices()


@pytest.mark.gpu
@pytest.mark.skipif(bool(software_gpu.why_missing()), reason=software_gpu.why_missing())
def test_vulkans_devices_are_listed_with_kind_and_memory(tmp_path: Path) -> None:
    program = "import json; from service.inference import vulkan; print(json.dumps(vulkan.devices()))"
    listed = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"PATH": "", **software_gpu.environment(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    [[name, kind, vendor, memory]] = json.loads(listed.stdout)
    assert name.startswith("SwiftShader Device")
    assert (kind, vendor) == ("CPU", 0x1AE0)
    assert memory > 2**28
