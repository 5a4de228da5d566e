"""python -m bench.near: clients on the server's machine, by TCP, by a Unix domain socket and by shared memory."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import grpc
import typer

from bench import load, report, servers
from bench.messages import INFER, infer_request, sample_images
from bench.server import LARGEST_BATCH, MODEL, ServerUnavailable
from service.inference.model import Model
from service.network import PIXELS
from service.pb.inference.open_inference_pb2 import ModelInferRequest, SystemSharedMemoryRegisterRequest
from service.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.servers import Running

SIZES = (1, 8, 64, 256, 1024, LARGEST_BATCH)
WAYS = ("TCP", "Unix socket", "shared memory")
_BARE = "bare ONNX Runtime"
_SECONDS = 0.5
"""How long one measurement should take, roughly."""
_OUTPUTS = {"digit": 8, "activations": 40}
"""The requested outputs, and their bytes per image."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
Rounds = Annotated[int, typer.Option(min=1, help="rounds; in each of them every way takes its turn at every size")]
Connections = Annotated[int, typer.Option(min=1, max=64, help="connections, each with one call in flight")]
Transport = Annotated[str, typer.Option(help="native or grpcio")]


@app.command(help="Measure ModelInfer by TCP loopback, a Unix domain socket and shared memory, and ONNX Runtime alone.")
def measure(rounds: Rounds = 5, connections: Connections = 4, transport: Transport = "native") -> None:
    """Measure every way, round by round, and print the table of medians."""
    if not load.have_h2load():
        sys.exit(f"bench.near: {load.H2LOAD_MISSING}")
    if not MODEL.exists():
        sys.exit(f"bench.near: {MODEL.name} is missing: `make model.onnx` writes it")
    rates: dict[tuple[int, str], list[float]] = {(size, way): [] for size in SIZES for way in (*WAYS, _BARE)}
    cpu: dict[tuple[int, str], list[float]] = {(size, way): [] for size in SIZES for way in WAYS}
    try:
        with _running(transport) as near, _regions(near["Unix socket"]) as names:
            for _ in range(rounds):
                for size in SIZES:
                    for way in WAYS:
                        message = _request(size, names if way == "shared memory" else None)
                        calls = _measure(near[way], message, connections)
                        rates[size, way].append(size * calls.rate)
                        cpu[size, way].append(calls.cpu_us)
                    rates[size, _BARE].append(_bare(size))
    except ServerUnavailable as e:
        sys.exit(f"bench.near: {e}")
    print(table(rates, cpu))


@contextlib.contextmanager
def _running(transport: str) -> Iterator[dict[str, Running]]:
    """Start a server, and yield it once for each way, at its address."""
    with tempfile.TemporaryDirectory() as folder:
        socket = f"unix:{folder}/digits.sock"
        server = servers.SERVERS[transport]().with_options("--listen", socket, "--shared-memory")
        running = servers.start(server, sample_images(1)[0], digit=0)
        try:
            near = dataclasses.replace(running, address=socket)
            yield {"TCP": running, "Unix socket": near, "shared memory": near}
        finally:
            running.stop()


@contextlib.contextmanager
def _regions(running: Running) -> Iterator[tuple[str, str]]:
    """Register a region of images and one for outputs; yield their names."""
    contents = (sample_images(LARGEST_BATCH).tobytes(), bytes(LARGEST_BATCH * sum(_OUTPUTS.values())))
    paths = [Path("/dev/shm") / f"bench-near-{secrets.token_hex(8)}" for _ in contents]  # noqa: S108 (shm_open's folder)
    try:
        with grpc.insecure_channel(running.address) as channel:
            stub: Any = GRPCInferenceServiceStub(channel)
            for path, content in zip(paths, contents, strict=True):
                path.write_bytes(content)
                key = f"/{path.name}"
                request = SystemSharedMemoryRegisterRequest(name=path.name, key=key, byte_size=len(content))
                stub.SystemSharedMemoryRegister(request, timeout=60)
        yield paths[0].name, paths[1].name
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def _request(size: int, names: tuple[str, str] | None) -> bytes:
    """A request with its images, or with the regions of its images and of its outputs."""
    if names is None:
        return infer_request(sample_images(size))
    request = ModelInferRequest(model_name="digits")
    tensor, offset = request.inputs.add(name="pixels", datatype="UINT8", shape=(size, PIXELS)), 0
    _place(tensor, names[0], 0, size * PIXELS)
    for name, width in _OUTPUTS.items():
        _place(request.outputs.add(name=name), names[1], offset, size * width)
        offset += size * width
    return request.SerializeToString()


def _place(tensor: Any, region: str, offset: int, size: int) -> None:
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset


def _measure(running: Running, message: bytes, connections: int) -> load.Load:
    def calls(count: int) -> load.Load:
        return load.calls(running, INFER, [message], connections=connections, in_flight=1, count=count)

    return calls(max(4 * connections, int(calls(8 * connections).rate * _SECONDS)))


def _bare(size: int) -> float:
    """Images a second of the model called in a loop, by a thread on each core."""
    model, pixels, images = Model(MODEL), sample_images(size), []
    ends = time.perf_counter() + _SECONDS

    def run() -> None:
        runs = 0
        while time.perf_counter() < ends:
            model.predict(pixels)
            runs += 1
        images.append(runs * size)

    threads = [threading.Thread(target=run) for _ in os.sched_getaffinity(0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(images) / _SECONDS


def table(rates: dict[tuple[int, str], list[float]], cpu: dict[tuple[int, str], list[float]]) -> str:
    """The medians of the rounds in images a second and of their ratios, and the server's CPU time a call."""
    head = ["images a call", *(f"{way}, images/s" for way in (*WAYS, _BARE))]
    head += ["Unix socket / TCP", "shared memory / TCP", f"shared memory / {_BARE}"]
    head += [f"{way}, CPU us a call" for way in WAYS]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for size in SIZES:
        medians = [f"{statistics.median(rates[size, way]):,.0f}" for way in (*WAYS, _BARE)]
        pairs = (("Unix socket", "TCP"), ("shared memory", "TCP"), ("shared memory", _BARE))
        ratios = [report.spread(_ratios(rates[size, one], rates[size, other])) for one, other in pairs]
        costs = [f"{statistics.median(cpu[size, way]):,.0f}" for way in WAYS]
        lines.append(f"| {' | '.join([f'{size:,}', *medians, *ratios, *costs])} |")
    return "\n".join(lines)


def _ratios(rates: list[float], base: list[float]) -> list[float]:
    return [one / other for one, other in zip(rates, base, strict=True)]


if __name__ == "__main__":
    app()
