"""The servers that are compared: how each is set up, started and found to answer."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from bench import http_call
from bench.messages import (
    HTTP_INFER,
    INFER,
    PREDICT,
    http_infer_request,
    infer_request,
    predict_request,
    read_http_infer,
    read_infer,
    read_predict,
)
from bench.peer_servers import kserve, mlserver, triton, triton_onnxruntime, triton_onnxruntime_batching
from bench.server import ABOUT, LARGEST_BATCH, LOG, MODEL, ROOT, Server, ServerUnavailable
from service.__main__ import GRPC_EXPERIMENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import numpy.typing as npt

UP_WITHIN = 60.0  # seconds


@dataclass
class Running:
    """A server that answers, and how long it took to."""

    server: Server
    process: subprocess.Popen[bytes] | subprocess.Popen[str]
    address: str
    seconds: float
    http_address: str = ""

    def cpu_seconds(self) -> float:
        """Processor time of its processes so far; Linux only."""
        return (
            sum(
                int(task.read_text().split()[0])
                for pid in self._pids()
                for task in Path(f"/proc/{pid}/task").glob("*/schedstat")
            )
            / 1e9
        )

    def megabytes(self) -> float:
        """Resident memory of its processes, in 10^6 bytes; Linux only."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self._pids())
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def stop(self) -> None:
        """End it and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 15)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
            self.process.wait()

    def _pids(self) -> list[int]:
        answer = [self.process.pid]
        for pid in answer:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                answer += [int(child) for child in children.read_text().split()]
        return answer


def available(names: list[str]) -> tuple[list[Server], dict[str, str]]:
    """The servers of these names that can be had here, and why the others cannot."""
    servers, missing = [], {}
    for name in names:
        try:
            servers.append(SERVERS[name]())
        except ServerUnavailable as e:
            missing[name] = str(e)
    return servers, missing


def start(server: Server, image: npt.NDArray[np.uint8], digit: int) -> Running:
    """Start it and wait until it reads that image as that digit."""
    port, http = _free_ports()
    LOG.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with (LOG / f"{server.name}.log").open("wb") as log:
        process = subprocess.Popen(
            server.command(port, http),
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env=os.environ | {"BENCH_MODEL": str(MODEL)} | server.environment,
            start_new_session=True,
        )
    running = Running(server, process, f"127.0.0.1:{port}", 0.0, f"127.0.0.1:{http}")
    try:
        _check_answers(running, image, digit)
    except BaseException:
        running.stop()
        raise
    running.seconds = time.perf_counter() - began
    return running


def _check_answers(running: Running, image: npt.NDArray[np.uint8], digit: int) -> None:
    for answer in _answers_of(running, image):
        if running.server.answers and answer != digit:
            raise ServerUnavailable(f"{running.server.name} reads the digit {digit} as {answer}")


def _answers_of(running: Running, image: npt.NDArray[np.uint8]) -> Iterator[int]:
    """Yield its answer by each of its protocols; wait for the first."""
    with grpc.insecure_channel(
        running.address, [("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 20)]
    ) as channel:
        for method in running.server.protocols:
            if method == HTTP_INFER:
                request = http_infer_request(image[None])
                reply = _first_reply(running, partial(http_call.infer, running.http_address, request))
                read = read_http_infer
            else:
                make, read = (predict_request, read_predict) if method == PREDICT else (infer_request, read_infer)
                call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
                reply = _first_reply(running, partial(call, make(image[None]), timeout=UP_WITHIN))
            yield read(reply) if running.server.answers else -1


def _first_reply(running: Running, call: Callable[[], bytes]) -> bytes:
    """Repeat the call until it succeeds."""
    give_up = time.monotonic() + UP_WITHIN
    while True:
        try:
            return call()
        except (grpc.RpcError, http_call.HttpCallError) as e:
            if running.process.poll() is not None or time.monotonic() > give_up:
                error = e.code().name if isinstance(e, grpc.RpcError) else e
                reason = f"{running.server.name} does not answer ({error}); see {LOG}"
                raise ServerUnavailable(reason) from e
            time.sleep(0.005)


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def _digitserve(transport: str) -> Server:
    def command(port: int, http: int) -> list[str]:
        return [
            *(sys.executable, "-m", "service", "--model", str(MODEL), "--port", str(port), "--metrics-port", str(http)),
            *("--transport", transport, "--max-batch-size", str(LARGEST_BATCH), "--log-level", "warning"),
        ]

    return Server(f"digitserve {transport}", ABOUT[transport], command, (PREDICT, INFER))


def _grpcio() -> Server:
    return _digitserve("grpcio")


def _http() -> Server:
    def command(port: int, http: int) -> list[str]:
        return [
            *(sys.executable, "-m", "service", "--model", str(MODEL), "--port", str(port), "--metrics-port", "0"),
            *("--transport", "grpcio", "--http-port", str(http), "--log-level", "warning"),
        ]

    return Server("digitserve http", ABOUT["http"], command, (HTTP_INFER,))


def _native() -> Server:
    if find_spec("digitserve_native") is None:
        raise ServerUnavailable("its wheel is not installed: `make native`")
    return _digitserve("native")


def _noop() -> Server:
    return _noop_server("no-op", ABOUT["noop"], {"GRPC_EXPERIMENTS": ""})


def _noop_tuned() -> Server:
    return _noop_server("no-op tuned", ABOUT["noop-tuned"], {"GRPC_EXPERIMENTS": GRPC_EXPERIMENTS})


def _noop_server(name: str, about: str, environment: dict[str, str]) -> Server:
    def command(port: int, _: int) -> list[str]:
        return [sys.executable, "-m", "bench.noop_grpcio", str(port)]

    return Server(name, about, command, (PREDICT,), answers=False, environment=environment)


def _noop_native() -> Server:
    if find_spec("digitserve_native") is None:
        raise ServerUnavailable("the native wheel is not installed: `make native`")

    def command(port: int, _: int) -> list[str]:
        return [sys.executable, "-m", "bench.noop_native", str(port)]

    return Server("no-op native", ABOUT["noop-native"], command, (PREDICT, INFER), answers=False)


SERVERS: dict[str, Callable[[], Server]] = {
    "noop": _noop,
    "noop-tuned": _noop_tuned,
    "grpcio": _grpcio,
    "http": _http,
    "noop-native": _noop_native,
    "native": _native,
    "mlserver": mlserver,
    "kserve": kserve,
    "triton": triton,
    "triton-onnxruntime": triton_onnxruntime,
    "triton-onnxruntime-batching": triton_onnxruntime_batching,
}
"""How each of ABOUT is had."""
