"""Latency of one image at a client with one call in flight, beside a server of the same library that does nothing.

    python bench/latency.py [ROUNDS]

Both servers run all along and are asked in turn, round by round, so that a slow moment of the machine meets both; the
figures are medians over the rounds. Also printed: seconds from the start of the process to SERVING, and memory at rest.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, NamedTuple

import grpc
import numpy as np

ROOT = Path(__file__).parent.parent
CALLS = 2000
MODEL = ROOT / "model.onnx"
SAMPLE = ROOT / "samples" / "digits-100-images-idx3-ubyte"
sys.path.insert(0, str(ROOT))

from service.pb.digits.v1.digits_pb2 import PredictRequest  # noqa: E402


class Latency(NamedTuple):
    """Microseconds of one round."""

    p50: float
    p99: float


class Running(NamedTuple):
    """A server process, where it listens, and how long it took to."""

    process: subprocess.Popen[str]
    address: str
    seconds: float


def start(*arguments: str) -> subprocess.Popen[str]:
    """A Python process of this project."""
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def start_service() -> Running:
    """`python -m service` on free ports, up and SERVING."""
    began = time.perf_counter()
    ports = ("--port", "0", "--metrics-port", "0")
    process = start("-m", "service", "--model", str(MODEL), *ports, "--log-format", "json")
    for line in lines(process.stderr):
        event = json.loads(line)
        if event["event"] == "serving":
            return Running(process, event["address"], time.perf_counter() - began)
    sys.exit(f"the service did not start: {event}")


def start_nothing() -> Running:
    """The server that does nothing."""
    began = time.perf_counter()
    process = start("bench/nothing.py")
    port = next(iter(lines(process.stdout))).strip()
    return Running(process, f"127.0.0.1:{port}", time.perf_counter() - began)


def lines(stream: IO[str] | None) -> IO[str]:
    """The stream, which is there because it was asked for."""
    assert stream is not None
    return stream


def resident_megabytes(process: subprocess.Popen[str]) -> float:
    """VmRSS of the process, in 10^6 bytes; Linux only."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    return float("nan")


def measure(channel: grpc.Channel, requests: list[bytes]) -> Latency:
    """One round: CALLS calls, one after the other."""
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/digits.v1.DigitService/Predict")
    times = []
    for i in range(CALLS):
        began = time.perf_counter()
        call(requests[i % len(requests)])
        times.append(time.perf_counter() - began)
    return Latency(*(float(np.percentile(times, q)) * 1e6 for q in (50, 99)))


def main() -> None:
    """Run the rounds and print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    images = SAMPLE.read_bytes()[16:]
    requests = [PredictRequest(pixels=images[i : i + 784]).SerializeToString() for i in range(0, len(images), 784)]
    servers = {"digitserve": start_service(), "does nothing": start_nothing()}
    rest = {name: resident_megabytes(running.process) for name, running in servers.items()}
    try:
        channels = {name: grpc.insecure_channel(running.address) for name, running in servers.items()}
        for channel in channels.values():
            measure(channel, requests)  # warm
        found = {name: [measure(channel, requests) for _ in [0]] for name, channel in channels.items()}
        for _ in range(rounds - 1):
            for name, channel in channels.items():
                found[name].append(measure(channel, requests))
    finally:
        for running in servers.values():
            running.process.terminate()
    print(f"{rounds} rounds of {CALLS} calls in turn, one in flight, client and servers on one machine")
    for name, latencies in found.items():
        p50, p99 = (statistics.median(column) for column in zip(*latencies, strict=True))
        up = f"up in {servers[name].seconds:.2f} s, {rest[name]:.0f} MB at rest"
        print(f"{name:>14}: p50 {p50:6.0f} us   p99 {p99:6.0f} us   {up}")
    ratios = [ours.p50 / theirs.p50 for ours, theirs in zip(*found.values(), strict=True)]
    print(f"{'ratio of p50':>14}: {statistics.median(ratios):.2f} (rounds: {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
