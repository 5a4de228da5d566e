"""Plugin execution providers: libraries for ONNX Runtime's CPU build, from packages or by path.

A package `onnxruntime-ep-NAME` has the library and the names of its providers. Registered with ONNX Runtime, it lists
the devices that it can use.
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import onnxruntime as ort

from service.errors import ProviderError
from service.inference import provider_diagnostics, vulkan
from service.inference.sessions import (
    DeviceSession,
    check_nodes,
    device_session_options,
    missing_kernels,
    operators_elsewhere,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


PACKAGES = {
    "webgpu": "onnxruntime-ep-webgpu",
    "openvino": "onnxruntime-ep-openvino",
    "tensorrt-rtx": "onnxruntime-ep-nv-tensorrt-rtx",
}
"""The packages of common providers; others are found by their name."""

SOFTWARE_ADAPTER = "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"
"""Environment variable that lets WebGPU run on a software driver: for tests, not for speed."""

NVIDIA_VENDOR_ID = 0x10DE

_PREFIX = "onnxruntime_ep_"
_WEBGPU = "webgpu"
_webgpu_lock = threading.RLock()
"""Held while a WebGPU session is created, run or freed. All sessions of a process share one device, and
onnxruntime-ep-webgpu 0.4.0 crashes with SIGSEGV if two threads use it. Reentrant: the garbage collector may free one in
a run."""


class Plugin(NamedTuple):
    """A library and the execution providers in it, as `--provider` spells them; none if only the library knows them."""

    providers: tuple[str, ...]
    library: str


def short_name(provider: str) -> str:
    """As `--provider` spells an execution provider of ONNX Runtime."""
    name = provider.removesuffix("ExecutionProvider").lower()
    return {"nvtensorrtrtx": "tensorrt-rtx"}.get(name, name)


@functools.cache  # the search reads every folder of the path: 8 ms, and each session needs it
def installed() -> list[Plugin]:
    """The plugins of the packages that are installed."""
    plugins = []
    for module in pkgutil.iter_modules():
        if module.name.startswith(_PREFIX):
            with suppress(Exception):  # a package of that name that is no plugin, or is incomplete
                package: Any = importlib.import_module(module.name)
                providers = package.get_ep_names() if hasattr(package, "get_ep_names") else [package.get_ep_name()]
                plugins.append(Plugin(tuple(map(short_name, providers)), str(package.get_library_path())))
    return plugins


def registered() -> set[str]:
    """ONNX Runtime's names of the providers from plugins, which it lists as if they were built in."""
    own = Path(ort.__file__).parent  # a build may have a provider of its own as a plugin
    libraries = {str(device.ep_name): device.ep_metadata.get("library_path", "") for device in ort.get_ep_devices()}
    return {name for name, library in libraries.items() if library and own not in Path(library).parents}


def find(name: str, library: str = "") -> Plugin | None:
    """The plugin that has the provider `name`: that of the library, or else of an installed package."""
    if library:
        return Plugin((), str(Path(library).resolve()))
    return next((plugin for plugin in installed() if name in plugin.providers), None)


class PluginProvider:
    """The execution provider `name` of a plugin, on its device number `device_id`.

    Without `device_id` it is the first GPU, or the first device without a GPU. Raises ProviderError if the
    library cannot be loaded or has no such provider or device.
    """

    def __init__(self, name: str, plugin: Plugin, device_id: int = 0) -> None:
        self.name = name
        self._library = plugin.library
        devices = self.devices(name, plugin)
        if not devices:
            raise ProviderError(name, _no_device(name))
        if device_id >= len(devices):
            raise ProviderError(
                name, f"it has no device {device_id}: expected 0 to {len(devices) - 1}; see --list-providers"
            )
        first_gpu = next((device for device in devices if _is_gpu(device)), devices[0])
        self._device = devices[device_id] if device_id else first_gpu
        self.id = str(self._device.ep_name)
        self.is_on_gpu = _is_gpu(self._device) or (name == _WEBGPU and _vulkan_has_gpu())
        self.is_on_nvidia = int(self._device.device.vendor_id) == NVIDIA_VENDOR_ID

    @staticmethod
    def devices(name: str, plugin: Plugin) -> list[Any]:
        """Register the library and list the provider's devices. Raises ProviderError if it cannot be loaded."""
        try:
            _register(plugin.library)
        except OSError as e:
            raise ProviderError(name, str(e)) from e
        listed = [
            device for device in ort.get_ep_devices() if device.ep_metadata.get("library_path") == plugin.library
        ] or [device for device in ort.get_ep_devices() if short_name(device.ep_name) == name]
        providers = sorted({short_name(device.ep_name) for device in listed})
        if providers and name not in providers:
            raise ProviderError(name, f"{plugin.library} has no such provider; it has {', '.join(providers)}")
        return [device for device in listed if short_name(device.ep_name) == name]

    def create(self, content: bytes, options: Mapping[str, str]) -> DeviceSession:
        """Create a session of the model `content`. Raises ProviderError unless the provider runs every node."""
        self._check_options(options)
        if self.name == _WEBGPU:
            _check_adapter()
        lock = _webgpu_lock if self.name == _WEBGPU else None
        try:
            return DeviceSession(lambda: self._create(content, dict(options)), lock)
        except ProviderError:
            raise
        except Exception as e:
            raise ProviderError(self.name, self._explain(content, options, str(e))) from e

    def _create(self, content: bytes, options: dict[str, str], *, cpu_fallback: bool = False) -> ort.InferenceSession:
        settings = device_session_options(cpu_fallback=cpu_fallback)
        settings.add_provider_for_devices([self._device], options)
        session = ort.InferenceSession(content, settings, enable_fallback=0)
        session.disable_fallback()
        if not cpu_fallback:
            check_nodes(self.name, session, self.id)
        return session

    def _check_options(self, options: Mapping[str, str]) -> None:
        """Plugins ignore options that they do not know, but have the names of those that they read as text."""
        content = Path(self._library).read_bytes() if options else b""
        if unknown := sorted(option for option in options if option.encode() not in content):
            raise ProviderError(self.name, f"it has no option {', '.join(unknown)}: see --provider-options")

    def _explain(self, content: bytes, options: Mapping[str, str], message: str) -> str:
        if "assigned to the default CPU EP" not in message:
            return provider_diagnostics.explain(message)
        with _webgpu_lock:
            session = self._create(content, dict(options), cpu_fallback=True)
            operators = operators_elsewhere(session, self.id)
            del session
        return missing_kernels(operators)


@functools.cache  # once in a process: a second attempt is an error, after which sessions end the process (1.32.0)
def _register(library: str) -> None:
    """OSError if the library cannot be loaded as a plugin."""
    if not Path(library).is_file():
        raise OSError(f"its library {library} is missing")
    ort.set_default_logger_severity(4)  # its output, in another format, is in the exceptions too
    try:
        ort.register_execution_provider_library(library, library)
    except Exception as e:
        raise OSError(provider_diagnostics.explain(str(e))) from e


def _is_gpu(device: Any) -> bool:
    return bool(device.device.type == ort.OrtHardwareDeviceType.GPU)


def _no_device(name: str) -> str:
    if name != _WEBGPU:
        return "it finds no device that it can use on this machine"
    try:
        devices = vulkan.devices()
    except vulkan.VulkanError as e:
        return str(e)
    if all(device.is_software for device in devices):
        return _software_alone(devices)
    names = ", ".join(f"{device.name} ({device.kind})" for device in devices)
    return f"ONNX Runtime finds no GPU in /sys/class/drm; Vulkan lists {names}, which {SOFTWARE_ADAPTER}=1 lets it use"


def _software_alone(devices: list[vulkan.VulkanDevice]) -> str:
    return (
        f"Vulkan lists only {devices[0].name}, which computes on the CPU: install the driver of the GPU; "
        f"{SOFTWARE_ADAPTER}=1 allows it, for tests"
    )


def _check_adapter() -> None:
    """Raise ProviderError if WebGPU would find no adapter, or one in software without permission."""
    if not _uses_vulkan():
        return
    try:
        devices = vulkan.devices()
    except vulkan.VulkanError as e:
        raise ProviderError(_WEBGPU, str(e)) from None
    if all(device.is_software for device in devices) and os.environ.get(SOFTWARE_ADAPTER) != "1":
        raise ProviderError(_WEBGPU, _software_alone(devices))


def _vulkan_has_gpu() -> bool:
    try:
        return _uses_vulkan() and not all(device.is_software for device in vulkan.devices())
    except vulkan.VulkanError:
        return False


def _uses_vulkan() -> bool:
    """Whether WebGPU runs on Vulkan: it is Metal on macOS and Direct3D 12 on Windows."""
    return os.uname().sysname == "Linux" if hasattr(os, "uname") else False
