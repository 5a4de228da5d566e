"""The execution providers of this machine as a table: devices with vendor, name and memory, usable or why not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from service.errors import ModelFileError, ProviderError, StartError
from service.inference import built_in, plugins, vulkan
from service.inference.model import Model
from service.inference.providers import CPU, SessionFactory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from structlog.typing import FilteringBoundLogger

_VENDORS = {0x1002: "AMD", 0x1022: "AMD", 0x10DE: "NVIDIA", 0x8086: "Intel", 0x106B: "Apple", 0x1AE0: "Google"}
_OFTEN_MEANT = ("cuda", *plugins.PACKAGES)
_HEADINGS = ("PROVIDER", "DEVICE", "KIND", "VENDOR", "NAME", "MEMORY", "USABLE")


class Row(NamedTuple):
    """One device of a provider; a provider without devices has one row."""

    provider: str
    device: str = "-"
    kind: str = "-"
    vendor: str = "-"
    name: str = "-"
    memory: str = "-"
    usable: str = ""


def render(rows: Iterable[Row]) -> str:
    """The rows as a table in columns, for a terminal."""
    lines = [_HEADINGS, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADINGS) - 1)]
    return "".join(
        "  ".join([*(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=False)), line[-1]]) + "\n"
        for line in lines
    )


def rows(model: Path, log: FilteringBoundLogger, *, name: str = "", library: str = "") -> Iterator[Row]:
    """Try each provider with the model, as at a start; `name` and `library` are of a plugin without a package."""
    built = set(built_in.available())
    yield _cpu(model)
    devices = [(each, plugin) for plugin in plugins.installed() for each in plugin.providers]
    if library and (plugin := plugins.find(name, library)):
        devices.append((name, plugin))
    for each, plugin in devices:
        yield from _plugin(each, plugin, model, log, library if each == name else "")
    listed = {CPU, *(each for each, _ in devices)}
    for each in sorted(built - listed):
        for row in _nvidia(each) if each == "cuda" else [Row(each)]:
            yield row._replace(usable=_usable(each, model, log))
    for each in _OFTEN_MEANT:
        if each not in built | listed:
            yield Row(each, usable=f"no: {built_in.not_built_in(each)}")


def _cpu(model: Path) -> Row:
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    try:
        Model(model)
    except ModelFileError as e:
        usable = f"no: {e}"
    else:
        usable = "yes"
    return Row(CPU, kind="CPU", name=(names or ["-"])[0], memory=_size((memory or [0])[0]), usable=usable)


def _plugin(name: str, plugin: plugins.Plugin, model: Path, log: FilteringBoundLogger, library: str) -> Iterator[Row]:
    try:
        devices = plugins.PluginProvider.devices(name, plugin)
    except ProviderError as e:
        yield Row(name, usable=f"no: {e.reason}")
        return
    if not devices:
        yield Row(name, usable=_usable(name, model, log, library=library))
    for number, device in enumerate(devices):
        hardware = device.device
        row = Row(
            name,
            device=str(number),
            kind=hardware.type.name,
            vendor=hardware.vendor or _VENDORS.get(hardware.vendor_id, f"{hardware.vendor_id:#x}"),
            name=hardware.metadata.get("Description", f"{hardware.vendor_id:#06x}:{hardware.device_id:#06x}"),
            usable=_usable(name, model, log, library=library, device_id=number),
        )
        yield _with_adapter(row) if name == "webgpu" else row


def _with_adapter(row: Row) -> Row:
    """Return the row with Vulkan's data on WebGPU's device, if there is only one."""
    try:
        [adapter] = vulkan.devices()
    except (vulkan.VulkanError, ValueError):
        return row
    vendor = _VENDORS.get(adapter.vendor_id, f"{adapter.vendor_id:#x}")
    return row._replace(kind=adapter.kind, vendor=vendor, name=adapter.name, memory=_size(adapter.memory))


def _nvidia(name: str) -> list[Row]:
    """The GPUs that nvidia-smi lists."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return [Row(name)]
    query = [command, "--query-gpu=index,name,memory.total", "--format=csv,noheader"]
    output = subprocess.run(query, capture_output=True, text=True, check=False).stdout  # noqa: S603 (nvidia-smi)
    gpus = [line.split(", ") for line in output.splitlines() if line.count(", ") == 2]
    return [Row(name, index, "GPU", "NVIDIA", gpu, memory) for index, gpu, memory in gpus] or [Row(name)]


def _usable(name: str, model: Path, log: FilteringBoundLogger, *, library: str = "", device_id: int = 0) -> str:
    try:
        Model(model, sessions=SessionFactory(name, log, library=library, device_id=device_id))
    except ProviderError as e:
        return f"no: {e.reason}"
    except StartError as e:
        return f"no: {e}"
    return "yes"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:  # not Linux
        return []


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count else "-"
