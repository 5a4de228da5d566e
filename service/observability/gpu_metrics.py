"""GPU metrics, read through NVML; none if its package or the NVIDIA driver is not installed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric
    from structlog.typing import FilteringBoundLogger


def register(registry: CollectorRegistry, device_id: int, log: FilteringBoundLogger) -> None:
    """Add the metrics of that GPU to the registry, or log why there are none."""
    try:
        import pynvml  # noqa: PLC0415 (of the extra gpu)
    except ImportError:
        log.info("GPU metrics unavailable", reason="nvidia-ml-py is not installed")
        return
    try:
        pynvml.nvmlInit()
        registry.register(GpuCollector(pynvml, nvml_device(pynvml, device_id)))
    except pynvml.NVMLError as e:
        log.info("GPU metrics unavailable", reason=f"NVML: {e}")


class GpuCollector(Collector):
    """The metrics of one GPU, for all programs that use it."""

    def __init__(self, nvml: Any, device: Any) -> None:
        self._nvml = nvml
        self._device = device
        self._uuid = nvml.nvmlDeviceGetUUID(device)

    def collect(self) -> Iterable[Metric]:
        """Return the current values; none if the driver does not report them."""
        try:
            busy = self._nvml.nvmlDeviceGetUtilizationRates(self._device).gpu / 100
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._device)
        except self._nvml.NVMLError:
            return
        for name, help_, value in (
            (
                "digits_gpu_utilization_ratio",
                "Share of the last sample period in which the GPU was busy, 0 to 1.",
                busy,
            ),
            ("digits_gpu_memory_used_bytes", "Used memory of the GPU, by all programs.", memory.used),
            ("digits_gpu_memory_bytes", "Memory of the GPU.", memory.total),
        ):
            gauge = GaugeMetricFamily(name, help_, labels=["uuid"])
            gauge.add_metric([self._uuid], value)
            yield gauge


def nvml_device(nvml: Any, device_id: int) -> Any:
    """Return the device that CUDA calls `device_id`; CUDA numbers the devices of CUDA_VISIBLE_DEVICES from 0."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    name = visible[device_id] if device_id < len(visible) else str(device_id)
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)
