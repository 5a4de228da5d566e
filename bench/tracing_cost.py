"""The cost of traces: the grpcio server without them, with a hundredth of the calls traced, and with all.

    python bench/tracing_cost.py [ROUNDS]

As `metrics_cost.py` does it: all servers run all along and are asked in turn, round by round, in an order that changes
with every round; figures are medians over the rounds, and so is the ratio to the server without traces in each round.
The spans go to an OTLP receiver, a process of its own that reads them and forgets them.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bench.metrics_cost import CALLS, IN_FLIGHT, Round, Running, compare  # noqa: E402
from service.config import Settings  # noqa: E402
from service.observability.logs import make_logger  # noqa: E402
from service.runtime import server as composition  # noqa: E402

OFF = "no traces"
RATIOS = {"1 in 100": 0.01, "every call": 1.0}


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Reads spans and forgets them."""

    def Export(self, request: Any, _: Any) -> Any:  # noqa: N802 (named by the protocol)
        """Take some."""
        assert request.resource_spans
        return trace_service_pb2.ExportTraceServiceResponse()


def receive() -> None:
    """A receiver on a free port, which is printed, until the process is ended."""
    server = grpc.server(ThreadPoolExecutor(1))
    register: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server  # generated, without annotations
    register(Receiver(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, 0, flush=True)
    server.wait_for_termination()


async def serve(endpoint: str, ratio: float) -> None:
    """A server on free ports, which are printed, until the process is ended."""
    settings = Settings(
        model=ROOT / "model.onnx",
        port=0,
        metrics_port=0,
        transport="grpcio",
        otlp_endpoint=endpoint,
        trace_sample_ratio=ratio,
    )
    server = composition.Server(settings, make_logger("json", "error"))
    await server.start()
    print(server.port, server.metrics_port, flush=True)
    await asyncio.Event().wait()


def start(*arguments: str) -> Running:
    """This file as a receiver or a server."""
    process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port, metrics_port = map(int, process.stdout.readline().split())
    return Running(process, port, metrics_port)


def spans(server: Running) -> str:
    """What became of the spans of a server."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    spans = [line for line in lines if line.startswith("digits_trace_spans")]
    results = [line.split('"')[1::2] + line.rsplit(" ", 1)[1:] for line in spans]
    return ", ".join(f"{float(count):,.0f} {result}" for result, count in results)


def report(results: list[dict[str, Round]], servers: dict[str, Running]) -> None:
    """Print the medians of each server and what the traces cost it."""
    for name, server in servers.items():
        throughput, cpu = (statistics.median(rounds[name][i] for rounds in results) for i in (0, 1))
        print(f"{name:>10}: {throughput:6.0f} calls/s   {cpu:5.0f} us of server CPU a call", end="")
        if name == OFF:
            print()
            continue
        costs = [(rounds[name].cpu / rounds[OFF].cpu - 1) * 100 for rounds in results]
        low, median, high = statistics.quantiles(costs, n=4)
        print(f", {median:+.1f} % ({low:+.1f} to {high:+.1f})   spans: {spans(server)}")


def main() -> None:
    """Run the rounds and print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 21
    receiver = start("receive")
    endpoint = f"http://127.0.0.1:{receiver.port}"
    servers = {OFF: start("serve", "", "0")}
    servers |= {name: start("serve", endpoint, str(ratio)) for name, ratio in RATIOS.items()}
    try:
        results = asyncio.run(compare(servers, rounds))
        time.sleep(2)  # for what is in line
        print(f"{rounds} rounds of {CALLS} calls in turn, {IN_FLIGHT} in flight, grpcio {grpc.__version__}; medians")
        report(results, servers)
    finally:
        for one in (receiver, *servers.values()):
            one.process.terminate()
            one.process.wait()


if __name__ == "__main__":
    if sys.argv[1:] == ["receive"]:
        receive()
    elif sys.argv[1:2] == ["serve"]:
        asyncio.run(serve(sys.argv[2], float(sys.argv[3])))
    else:
        main()
