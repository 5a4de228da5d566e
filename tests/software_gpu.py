"""The GPU of the WebGPU tests: a GPU that Vulkan lists, or else Chromium's software GPU, SwiftShader."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service.inference import vulkan

if TYPE_CHECKING:
    from collections.abc import Iterator

SWIFTSHADER = (
    "/usr/lib/chromium/libvk_swiftshader.so",  # Debian's package
    "/opt/google/chrome/libvk_swiftshader.so",
    "/usr/lib64/chromium-browser/libvk_swiftshader.so",
)
WRAPPER = Path(__file__).parent / "vulkan" / "failing_driver.c"


def library() -> str:
    """Return SwiftShader's library; empty if it is not installed."""
    return next((path for path in SWIFTSHADER if Path(path).is_file()), "")


def has_gpu() -> bool:
    """Return whether Vulkan lists a hardware GPU."""
    try:
        return not all(device.is_software for device in vulkan.devices())
    except vulkan.VulkanError:
        return False


def why_no_webgpu() -> str:
    """Return why the WebGPU tests cannot run on this machine; empty if they can."""
    return "" if find_spec("onnxruntime_ep_webgpu") is not None and has_gpu() else why_missing()


def why_missing() -> str:
    """Return why the tests on the software GPU cannot run on this machine; empty if they can."""
    if find_spec("onnxruntime_ep_webgpu") is None:
        return "no GPU in software: install onnxruntime-ep-webgpu (the extra `webgpu`)"
    try:
        ctypes.CDLL("libvulkan.so.1")
    except OSError:
        return "no GPU in software: install libvulkan1 (Debian's package)"
    return "" if library() else "no GPU in software: install chromium (Debian's package), which has SwiftShader"


marks = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(bool(why_no_webgpu()), reason=why_no_webgpu())]
needs_software = pytest.mark.skipif(bool(why_missing()), reason=why_missing())


@pytest.fixture(scope="module")
def webgpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let each new process find the GPU, or a software GPU if there is no other."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in ({} if has_gpu() else environment(tmp_path_factory.mktemp("vulkan"))).items():
            patch.setenv(variable, value)
        yield


@pytest.fixture
def software(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each new process find the software GPU only."""
    for variable, value in environment(tmp_path).items():
        monkeypatch.setenv(variable, value)


def environment(folder: Path) -> dict[str, str]:
    """Return the variables with which a process finds only the software GPU; their files are in `folder`."""
    return {**_with_driver(folder, library()), "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1"}


def failing_environment(folder: Path, fault: Path) -> dict[str, str]:
    """Return `environment` with a driver that fails as the file `fault` specifies."""
    wrapper = folder / "failing_driver.so"
    compiler = shutil.which("cc") or "cc"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(wrapper), str(WRAPPER), "-ldl"]
    subprocess.run(command, check=True)
    return {
        **environment(folder),
        **_with_driver(folder, str(wrapper)),
        "VULKAN_DRIVER": library(),
        "VULKAN_FAULT": str(fault),
    }


def without_driver(folder: Path) -> dict[str, str]:
    """Return the variables with which a Vulkan loader finds no driver."""
    return {**_with_driver(folder, ""), "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1"}


def _with_driver(folder: Path, driver: str) -> dict[str, str]:
    manifest = folder / f"{Path(driver).stem or 'none'}.json"
    if driver:
        content = {"file_format_version": "1.0.0", "ICD": {"library_path": driver, "api_version": "1.3.0"}}
        manifest.write_text(json.dumps(content))
    names = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")  # the second is for older loaders
    return {**dict.fromkeys(names, str(manifest)), "XDG_RUNTIME_DIR": str(folder)}
