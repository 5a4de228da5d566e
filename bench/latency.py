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
from service.pb.inference.open_inference_pb2 import ModelInferRequest  # noqa: E402

PREDICT = "/digits.v1.DigitService/Predict"
INFER = "/inference.GRPCInferenceService/ModelInfer"


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


def measure(call: grpc.UnaryUnaryMultiCallable[bytes, bytes], requests: list[bytes]) -> Latency:
    """One round: CALLS calls, one after the other."""
    times = []
    for i in range(CALLS):
        began = time.perf_counter()
        call(requests[i % len(requests)])
        times.append(time.perf_counter() - began)
    return Latency(*(float(np.percentile(times, q)) * 1e6 for q in (50, 99)))


def infer_request(image: bytes) -> bytes:
    """The same image as tritonclient would send it, asking for what Predict answers."""
    request = ModelInferRequest(model_name="digits", raw_input_contents=[image])
    request.inputs.add(name="pixels", datatype="UINT8", shape=[1, 784])
    for name in ("digit", "activations"):
        request.outputs.add(name=name)
    return request.SerializeToString()


def main() -> None:
    """Run the rounds and print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    pixels = SAMPLE.read_bytes()[16:]
    images = [pixels[i : i + 784] for i in range(0, len(pixels), 784)]
    predicts = [PredictRequest(pixels=image).SerializeToString() for image in images]
    service, nothing = start_service(), start_nothing()
    try:
        rows = {
            "does nothing": (nothing, PREDICT, predicts),
            "Predict": (service, PREDICT, predicts),
            "ModelInfer": (service, INFER, [infer_request(image) for image in images]),
        }
        rest = {running.address: resident_megabytes(running.process) for running in (service, nothing)}
        calls: dict[str, tuple[grpc.UnaryUnaryMultiCallable[bytes, bytes], list[bytes]]] = {
            name: (grpc.insecure_channel(running.address).unary_unary(method), requests)
            for name, (running, method, requests) in rows.items()
        }
        for call, requests in calls.values():
            measure(call, requests)  # warm
        found = [{name: measure(*asked) for name, asked in calls.items()} for _ in range(rounds)]
    finally:
        for running in (service, nothing):
            running.process.terminate()
    print(f"{rounds} rounds of {CALLS} calls in turn, one in flight, client and servers on one machine; medians")
    for name in rows:
        p50, p99 = (statistics.median(latencies[name][i] for latencies in found) for i in (0, 1))
        ratios = [latencies[name].p50 / latencies["does nothing"].p50 for latencies in found]
        against = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:>12}: p50 {p50:5.0f} us   p99 {p99:5.0f} us   p50 against nothing {against}")
    for name, running in (("digitserve", service), ("does nothing", nothing)):
        print(f"{name:>12}: up in {running.seconds:.2f} s, {rest[running.address]:.0f} MB at rest")


if __name__ == "__main__":
    main()
