"""The devices that the system's Vulkan loader lists, read with ctypes: those of WebGPU on Linux."""

from __future__ import annotations

import ctypes
import struct
from ctypes import POINTER, byref, c_char_p, c_int, c_uint32, c_void_p
from typing import NamedTuple

LOADER = "libvulkan.so.1"
KINDS = ("other", "integrated GPU", "discrete GPU", "virtual GPU", "CPU")
"""VkPhysicalDeviceType."""

_INSTANCE_CREATE_INFO = 1  # VkStructureType
_INCOMPATIBLE_DRIVER = -9  # VkResult
_DEVICE_LOCAL = 1  # VkMemoryHeapFlagBits
_MAX_DEVICES = 16
_PROPERTIES_SIZE, _NAME_OFFSET, _NAME_SIZE = 1024, 20, 256  # VkPhysicalDeviceProperties is 824 bytes
_MEMORY_SIZE, _HEAPS_OFFSET, _HEAP_SIZE = 520, 260, 16  # VkPhysicalDeviceMemoryProperties


class VulkanError(Exception):
    """Vulkan lists no device; `str()` names the missing part and its package."""


class VulkanDevice(NamedTuple):
    """One physical device; memory of its own in bytes."""

    name: str
    kind: str
    vendor_id: int
    memory: int

    @property
    def is_software(self) -> bool:
        """Whether the device is a program on the CPU: SwiftShader, llvmpipe."""
        return self.kind == "CPU"


class _InstanceCreateInfo(ctypes.Structure):
    _fields_ = (
        ("type", c_int),
        ("next", c_void_p),
        ("flags", c_uint32),
        ("application", c_void_p),
        ("layer_count", c_uint32),
        ("layers", POINTER(c_char_p)),
        ("extension_count", c_uint32),
        ("extensions", POINTER(c_char_p)),
    )


def devices() -> list[VulkanDevice]:
    """List the devices. Raises VulkanError without a loader, a driver or a device."""
    try:
        vulkan = ctypes.CDLL(LOADER)
    except OSError:
        raise VulkanError(
            f"the Vulkan loader {LOADER} is missing: install it (on Debian and Ubuntu: apt install libvulkan1)"
        ) from None
    instance = c_void_p()
    result = vulkan.vkCreateInstance(byref(_InstanceCreateInfo(type=_INSTANCE_CREATE_INFO)), None, byref(instance))
    if result:
        raise VulkanError(_no_driver() if result == _INCOMPATIBLE_DRIVER else f"vkCreateInstance failed with {result}")
    try:
        count, handles = c_uint32(_MAX_DEVICES), (c_void_p * _MAX_DEVICES)()
        vulkan.vkEnumeratePhysicalDevices(instance, byref(count), handles)
        described = [_describe(vulkan, c_void_p(handle)) for handle in handles[: count.value]]
    finally:
        vulkan.vkDestroyInstance(instance, None)
    if not described:
        raise VulkanError(_no_driver())
    return described


def _no_driver() -> str:
    return (
        "Vulkan has no driver for a GPU here: install the vendor's (mesa-vulkan-drivers for AMD and Intel); "
        "in a container, pass the device in"
    )


def _describe(vulkan: ctypes.CDLL, device: c_void_p) -> VulkanDevice:
    properties, memory = ctypes.create_string_buffer(_PROPERTIES_SIZE), ctypes.create_string_buffer(_MEMORY_SIZE)
    vulkan.vkGetPhysicalDeviceProperties(device, properties)
    vulkan.vkGetPhysicalDeviceMemoryProperties(device, memory)
    _, _, vendor_id, _, kind = struct.unpack_from("=5I", properties.raw)
    name = properties.raw[_NAME_OFFSET : _NAME_OFFSET + _NAME_SIZE].partition(b"\0")[0].decode(errors="replace")
    (heap_count,) = struct.unpack_from("=I", memory.raw, _HEAPS_OFFSET)
    heaps = [struct.unpack_from("=QI", memory.raw, _HEAPS_OFFSET + 4 + i * _HEAP_SIZE) for i in range(heap_count)]
    size = max((size for size, flags in heaps if flags & _DEVICE_LOCAL), default=0)
    return VulkanDevice(name, KINDS[kind] if kind < len(KINDS) else "other", vendor_id, size)
