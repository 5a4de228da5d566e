"""Native against grpcio against Triton: the same messages by h2load, the servers in turn, medians over the rounds.

    python bench/transports.py [--rounds 5] [--seconds 2] [--triton DIRECTORY]

DIRECTORY is the `pytriton/tritonserver` of an installed nvidia-pytriton wheel, which holds Triton with its Python
backend alone: there the model is this project's own graph, run by the onnxruntime package in Triton's Python process
with one thread and dynamic batching, as here. Also measured: the native transport with a model that does nothing. Every
server runs alone while it is measured; client and server share the machine. Needs h2load (Debian: nghttp2-client).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import grpc
import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from service.pb.digits.v1.digits_pb2 import PredictRequest  # noqa: E402
from service.pb.inference.open_inference_pb2 import ModelInferRequest, ModelReadyRequest  # noqa: E402
from service.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL = ROOT / "model.onnx"
SAMPLE = ROOT / "samples" / "digits-100-images-idx3-ubyte"
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/digits.v1.DigitService/PredictStream"
STARTS_WITHIN = 60  # seconds
MESSAGES_A_STREAM = 200


class Row(NamedTuple):
    """A load: what is asked, over how many connections, how many in flight on each."""

    path: str
    images: int
    connections: int
    streams: int
    messages: int = 1


class Found(NamedTuple):
    """What one round of a load gave; times in microseconds, `cpu` a message."""

    rate: float
    p50: float
    p99: float
    cpu: float


ROWS = {
    "1 image, 1 in flight": Row(INFER, 1, 1, 1),
    "1 image, 64 in flight": Row(INFER, 1, 4, 16),
    "256 images, 8 in flight": Row(INFER, 256, 4, 2),
    "1,024 images, 8 in flight": Row(INFER, 1024, 4, 2),
    "stream, 1 image a message": Row(STREAM, 1, 4, 1, MESSAGES_A_STREAM),
}

TRITON_CONFIG = """
name: "digits"
backend: "python"
max_batch_size: 1024
input [{ name: "pixels" data_type: TYPE_UINT8 dims: [784] }]
output [{ name: "digit" data_type: TYPE_INT64 dims: [1] }, { name: "activations" data_type: TYPE_FP32 dims: [10] }]
dynamic_batching { }
instance_group [{ count: 1 kind: KIND_CPU }]
"""
TRITON_MODEL = '''
"""The project's graph behind Triton's Python backend: what gathered becomes one run."""
import sys

sys.path[:0] = @PATH@

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession("@MODEL@", options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        arrays = [pb.get_input_tensor_by_name(request, "pixels").as_numpy() for request in requests]
        pixels = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        digit, activations = self.session.run(["digit", "activations"], {"pixels": pixels})
        replies, start = [], 0
        for array in arrays:
            rows = slice(start, start + len(array))
            start = rows.stop
            outputs = [pb.Tensor("digit", digit[rows].reshape(-1, 1)), pb.Tensor("activations", activations[rows])]
            replies.append(pb.InferenceResponse(outputs))
        return replies
'''


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def message(row: Row) -> bytes:
    """The gRPC frame, or frames, of one call."""
    pixels = (SAMPLE.read_bytes()[16:] * 11)[: row.images * 784]
    if row.path == STREAM:
        request = PredictRequest(pixels=pixels).SerializeToString()
    else:
        infer = ModelInferRequest(model_name="digits", raw_input_contents=[pixels])
        infer.inputs.add(name="pixels", datatype="UINT8", shape=[row.images, 784])
        for name in ("digit", "activations"):
            infer.outputs.add(name=name)
        request = infer.SerializeToString()
    return (struct.pack(">BI", 0, len(request)) + request) * row.messages


def cpu_seconds(pid: int) -> float:
    """Of a process and its children, so far."""
    parents: dict[int, list[int]] = {}
    ticks = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            child = int(stat.parent.name)
            parents.setdefault(int(fields[1]), []).append(child)
            ticks[child] = int(fields[11]) + int(fields[12])
    found, line = 0, [pid]
    while line:
        one = line.pop()
        found += ticks.get(one, 0)
        line += parents.get(one, [])
    return found / os.sysconf("SC_CLK_TCK")


def measure(row: Row, port: int, pid: int, seconds: float) -> Found:
    """One round of one load."""
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder) / "body", Path(folder) / "log"
        body.write_bytes(message(row))
        command = [
            "h2load",
            f"-c{row.connections}",
            f"-m{row.streams}",
            "-t1",
            f"-D{round(seconds * 1000)}ms",
            f"-d{body}",
        ]
        headers = ["-Hcontent-type: application/grpc", "-Hte: trailers", f"--log-file={log}"]
        before = cpu_seconds(pid)
        done = subprocess.run(
            [*command, *headers, f"http://127.0.0.1:{port}{row.path}"], capture_output=True, text=True, check=True
        )
        used = cpu_seconds(pid) - before
        lines = [line.split() for line in log.read_text().splitlines()]
    times = [int(fields[2]) for fields in lines if fields[1] == "200"]
    if not times or len(times) < len(lines):
        sys.exit(f"calls failed: {done.stdout}")
    calls = len(times) * row.messages
    p50, p99 = (float(np.percentile(times, q)) for q in (50, 99))
    return Found(calls / seconds, p50, p99, used / calls * 1e6)


@contextlib.contextmanager
def running(command: list[str], port: int, **env: str) -> Iterator[tuple[int, int]]:
    """A server that is ready, by what it says over gRPC; its port and process."""
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            until = time.monotonic() + STARTS_WITHIN
            ready = GRPCInferenceServiceStub(channel).ModelReady
            while True:
                with contextlib.suppress(grpc.RpcError):
                    if ready(ModelReadyRequest(name="digits"), timeout=1, wait_for_ready=True).ready:
                        break
                if time.monotonic() > until or process.poll() is not None:
                    sys.exit(f"did not start: {' '.join(command)}")
                time.sleep(0.1)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(STARTS_WITHIN)


def servers(stack: contextlib.ExitStack, triton: Path | None) -> dict[str, tuple[int, int]]:
    """Port and process of each."""
    found = {}
    for transport in ("native", "grpcio"):
        port = free_port()
        command = [sys.executable, "-m", "service", "--model", str(MODEL), "--transport", transport]
        ports = ["--port", str(port), "--metrics-port", "0"]
        found[transport] = stack.enter_context(running([*command, *ports], port))
    port = free_port()
    found["no model"] = stack.enter_context(running([sys.executable, "bench/nothing_native.py", str(port)], port))
    if triton:
        port = free_port()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found["Triton"] = stack.enter_context(running(triton_command(triton, folder, port), port))
    return found


def triton_command(triton: Path, folder: Path, port: int) -> list[str]:
    """How Triton is started on a model repository that is written into `folder`."""
    backend, model = folder / "backends", folder / "models" / "digits"
    path = [entry for entry in sys.path if entry.endswith("site-packages")]
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(TRITON_CONFIG)
    (model / "1" / "model.py").write_text(TRITON_MODEL.replace("@MODEL@", str(MODEL)).replace("@PATH@", repr(path)))
    shutil.copytree(triton / "backends", backend)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = "triton_python_backend_stub"
    shutil.copy(triton / "python_backend_stubs" / version / stub, backend / "python" / stub)
    options = [f"--model-repository={model.parent}", f"--backend-directory={backend}", f"--grpc-port={port}"]
    quiet = ["--allow-http=false", "--allow-metrics=false", "--grpc-address=127.0.0.1"]
    libraries = next(triton.parent.parent.glob("nvidia_pytriton.libs"))
    return ["env", f"LD_LIBRARY_PATH={libraries}", str(triton / "bin" / "tritonserver"), *options, *quiet]


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--triton", type=Path)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        addresses = servers(stack, options.triton)
        for name, row in ROWS.items():
            asked = {n: a for n, a in addresses.items() if row.path != STREAM or n in ("native", "grpcio")}
            for address in asked.values():
                measure(row, *address, seconds=0.5)  # warm
            rounds = [{n: measure(row, *a, options.seconds) for n, a in asked.items()} for _ in range(options.rounds)]
            show(name, list(asked), rounds)


def show(name: str, asked: list[str], rounds: list[dict[str, Found]]) -> None:
    """One row of the table: each server's medians, and the native transport's rate against it."""
    print(f"\n{name}")
    for server in asked:
        rate, p50, p99, cpu = (statistics.median(found[server][i] for found in rounds) for i in range(4))
        ratios = [found["native"].rate / found[server].rate for found in rounds]
        against = f"native is {statistics.median(ratios):5.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
        print(
            f"{server:>10}: {rate:9,.0f}/s   p50 {p50:7,.0f} us   p99 {p99:7,.0f} us   {cpu:7.1f} us of CPU   {against}"
        )


if __name__ == "__main__":
    main()
