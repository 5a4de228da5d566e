"""python -m bench.ray_cost: the cost of Ray Serve, compared with `python -m service` with grpcio.

Both are up all along, on this machine, and are measured in turns, so that other load affects both.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from grpc import aio

from service.pb.digits.v1.digits_pb2 import PredictRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

PREDICT = "/digits.v1.DigitService/Predict"
SHAPES = ((1, 1), (32, 1), (4, 256))
"""Concurrent clients, and images in each call."""

ENVIRONMENT = {
    **os.environ,
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps Ray on 127.0.0.1; the name is Ray's
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


class Figures(NamedTuple):
    """Of one turn: calls a second, and the median and the 99th percentile of a call's milliseconds."""

    rate: float
    p50: float
    p99: float


def main() -> None:
    """Start both, measure in turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    options = parser.parse_args()
    with direct() as alone, on_ray() as ray:
        results = asyncio.run(measure({"direct": alone, "ray": ray}, options.rounds, options.seconds))
    report(results)


@contextlib.contextmanager
def direct() -> Iterator[str]:
    """`python -m service` with the grpcio transport; its address."""
    command = [sys.executable, "-m", "service", "--transport", "grpcio", "--port", "0", "--metrics-port", "0"]
    with subprocess.Popen([*command, "--log-format", "json"], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            events: dict[str, str] = {}
            while events.get("event") != "serving":
                events = json.loads(process.stderr.readline())
            yield str(events["address"])
        finally:
            process.terminate()


@contextlib.contextmanager
def on_ray() -> Iterator[str]:
    """One Ray node and one replica; the address of its proxy."""
    head, port, metrics_port = (free_port() for _ in range(3))
    size = ["--num-cpus", "2", "--object-store-memory", "80000000", "--include-dashboard", "false"]
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command = [*start, "--port", str(head), *size]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deploy = [sys.executable, "-m", "ray_serve", "--ray-address", f"127.0.0.1:{head}", "--max-replicas", "1"]
            ports = ["--port", str(port), "--metrics-port", str(metrics_port)]
            time.sleep(5)
            subprocess.run([*deploy, *ports], env=ENVIRONMENT, check=True, stderr=subprocess.DEVNULL, timeout=120)
            yield f"127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as results:
        results.bind(("127.0.0.1", 0))
        return int(results.getsockname()[1])


async def measure(
    addresses: dict[str, str], rounds: int, seconds: float
) -> dict[tuple[str, tuple[int, int]], list[Figures]]:
    """The figures of every turn, by server and shape."""
    results: dict[tuple[str, tuple[int, int]], list[Figures]] = {}
    async with contextlib.AsyncExitStack() as stack:
        channels = {
            name: await stack.enter_async_context(aio.insecure_channel(address)) for name, address in addresses.items()
        }
        for turn in range(rounds + 1):  # the first warms up
            for shape in SHAPES:
                for name, channel in channels.items():
                    figures = await load(channel, shape, seconds)
                    if turn:
                        results.setdefault((name, shape), []).append(figures)
    return results


async def load(channel: aio.Channel, shape: tuple[int, int], seconds: float) -> Figures:
    """So many clients, each with sequential calls."""
    clients, images = shape
    pixels = np.random.default_rng(0).integers(0, 256, images * 784, np.uint8).tobytes()
    request = PredictRequest(pixels=pixels).SerializeToString()
    call: Callable[..., Awaitable[bytes]] = channel.unary_unary(PREDICT)
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def send_calls() -> None:
        while (began := time.perf_counter()) < end:
            await call(request, timeout=30)
            times.append(time.perf_counter() - began)

    await asyncio.gather(*(send_calls() for _ in range(clients)))
    cuts = statistics.quantiles(times, n=100)
    return Figures(len(times) / seconds, cuts[49] * 1e3, cuts[98] * 1e3)


def report(results: dict[tuple[str, tuple[int, int]], list[Figures]]) -> None:
    """The table, in Markdown: medians over the rounds."""
    head = "calls/s direct | calls/s Ray | ratio | p50 ms direct | p50 ms Ray | p99 ms direct | p99 ms Ray"
    print(f"| clients | images a call | {head} |\n|---|---|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        alone, ray = (
            Figures(*(statistics.median(column) for column in zip(*results[name, shape], strict=True)))
            for name in ("direct", "ray")
        )
        ratio = statistics.median(
            a.rate / b.rate for a, b in zip(results["direct", shape], results["ray", shape], strict=True)
        )
        print(
            f"| {shape[0]} | {shape[1]} | {alone.rate:,.0f} | {ray.rate:,.0f} | {ratio:.1f} | "
            f"{alone.p50:.2f} | {ray.p50:.2f} | {alone.p99:.2f} | {ray.p99:.2f} |"
        )


if __name__ == "__main__":
    main()
