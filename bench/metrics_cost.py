"""The cost of the metrics: the server with them against the same server whose instruments do nothing.

    python bench/metrics_cost.py [ROUNDS]

Both servers run all along and are asked in turn, round by round, and which of the two comes first changes with every
round, so that a slow moment of the machine meets both. Throughput is what one client process gets with many calls in
flight; CPU is what the server's process used for each call, which neighbours on the machine disturb less. The figures
are medians over the rounds, and so is the ratio of each round. Also printed: what a scrape costs.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from grpc import aio

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from service.config import Settings  # noqa: E402
from service.observability.logs import make_logger  # noqa: E402
from service.pb.digits.v1.digits_pb2 import PredictRequest  # noqa: E402
from service.runtime import server as composition  # noqa: E402
from service.transports.grpcio import instrumentation  # noqa: E402

CALLS = 3000
IN_FLIGHT = 16
SCRAPES = 20
PREDICT = "/digits.v1.DigitService/Predict"
IMAGE = PredictRequest(
    pixels=(ROOT / "samples" / "digits-100-images-idx3-ubyte").read_bytes()[16 : 16 + 784]
).SerializeToString()


class NoopInstrument:
    """Stands for every instrument and does nothing."""

    def __init__(self, *_: Any) -> None:
        self.queue_images = self.queue_capacity = self.last_success = self.serving = self.queue = (
            self.requests_dropped
        ) = self
        self.method = ""

    def labels(self, *_: str) -> NoopInstrument:
        """Itself, for any labels."""
        return self

    def noop(self, *_: Any) -> None:
        """Count nothing."""

    inc = set = set_function = observe = record_run = serves = received = sent = finish = noop

    def start(self) -> float:
        """When nothing began."""
        return 0.0


async def serve(*, counting: bool) -> None:
    """A server on free ports, which are printed, until the process is ended."""
    if not counting:
        vars(composition)["Metrics"] = vars(instrumentation)["RpcMetrics"] = NoopInstrument
    settings = Settings(model=ROOT / "model.onnx", port=0, metrics_port=0, transport="grpcio")
    server = composition.Server(settings, make_logger("json", "error"))
    await server.start()
    print(server.port, server.metrics_port, flush=True)
    await asyncio.Event().wait()


class Running(NamedTuple):
    """A server process and its ports."""

    process: subprocess.Popen[str]
    port: int
    metrics_port: int

    def cpu_seconds(self) -> float:
        """What the process has used so far, in user and system mode; Linux only."""
        user, system = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
        return (int(user) + int(system)) / 100


class Round(NamedTuple):
    """One round against one server: calls a second, and the server's CPU microseconds a call."""

    throughput: float
    cpu: float


def start(mode: str) -> Running:
    """This file as a server, `with` or `without` metrics."""
    process = subprocess.Popen([sys.executable, __file__, mode], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port, metrics_port = map(int, process.stdout.readline().split())
    return Running(process, port, metrics_port)


async def measure(channel: aio.Channel, server: Running) -> Round:
    """One round: CALLS calls of one image, IN_FLIGHT at a time."""
    call: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(PREDICT)

    async def one_after_the_other() -> None:
        for _ in range(CALLS // IN_FLIGHT):
            await call(IMAGE)

    cpu, began = server.cpu_seconds(), time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(IN_FLIGHT)))
    seconds = time.perf_counter() - began
    calls = CALLS // IN_FLIGHT * IN_FLIGHT
    return Round(calls / seconds, (server.cpu_seconds() - cpu) / calls * 1e6)


async def compare(servers: dict[str, Running], rounds: int) -> list[dict[str, Round]]:
    """All rounds, each with both servers in turn."""
    channels = {name: aio.insecure_channel(f"127.0.0.1:{server.port}") for name, server in servers.items()}
    for name, channel in channels.items():
        await measure(channel, servers[name])  # warm
    results = []
    for i in range(rounds):
        order = list(servers) if i % 2 else list(reversed(servers))
        results.append({name: await measure(channels[name], servers[name]) for name in order})
    for channel in channels.values():
        await channel.close()
    return results


def scrape(server: Running, encoding: str) -> tuple[float, float, int]:
    """Seconds and CPU seconds of one scrape, the median of some, and its bytes on the wire."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.metrics_port}/metrics",
        headers={"Accept": "application/openmetrics-text; version=1.0.0", "Accept-Encoding": encoding},
    )
    times, cpu, size = [], server.cpu_seconds(), 0
    for _ in range(SCRAPES):
        began = time.perf_counter()
        with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310
            size = len(reply.read())
        times.append(time.perf_counter() - began)
    return statistics.median(times), (server.cpu_seconds() - cpu) / SCRAPES, size


def report(results: list[dict[str, Round]]) -> None:
    """Print the medians of both servers and the cost of the metrics."""
    for name in ("with", "without"):
        throughput, cpu = (statistics.median(rounds[name][i] for rounds in results) for i in (0, 1))
        print(f"{name:>8} metrics: {throughput:6.0f} calls/s   {cpu:5.0f} us of server CPU a call")
    for label, i, sign in (("throughput lost", 0, -1), ("CPU added", 1, 1)):
        costs = [sign * (rounds["with"][i] / rounds["without"][i] - 1) * 100 for rounds in results]
        low, median, high = statistics.quantiles(costs, n=4)
        print(f"{label:>16}: {median:5.1f} %   (middle half of the rounds: {low:.1f} to {high:.1f})")


def main() -> None:
    """Run the rounds and print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 31
    servers = {name: start(name) for name in ("with", "without")}
    try:
        results = asyncio.run(compare(servers, rounds))
        scrapes = {encoding: scrape(servers["with"], encoding) for encoding in ("identity", "gzip")}
    finally:
        for server in servers.values():
            server.process.terminate()
            server.process.wait()
    print(f"{rounds} rounds of {CALLS} calls in turn, {IN_FLIGHT} in flight, grpcio {grpc.__version__}; medians")
    report(results)
    for encoding, (seconds, cpu, size) in scrapes.items():
        print(f"{encoding:>16}: a scrape takes {seconds * 1e3:.1f} ms, {cpu * 1e3:.1f} ms of CPU, {size / 1e3:.0f} kB")


if __name__ == "__main__":
    if sys.argv[1:] in (["with"], ["without"]):
        asyncio.run(serve(counting=sys.argv[1] == "with"))
    else:
        main()
