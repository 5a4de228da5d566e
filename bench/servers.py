"""The servers that are compared: how each is set up, started and found to answer."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from bench.messages import INFER, PREDICT, infer_request, predict_request, read_infer, read_predict
from service.__main__ import GRPC_EXPERIMENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import numpy.typing as npt

ROOT = Path(__file__).parent.parent
PEERS = Path(__file__).parent / "peers"
MODEL = ROOT / "model.onnx"
LARGEST_BATCH = 4096
UP_WITHIN = 60.0  # seconds
_LOG = ROOT / "build" / "bench"


ABOUT = {
    "noop": "a server of grpcio as it comes that answers every message with the same bytes",
    "noop-tuned": "the same with connections read as this server has them read",
    "grpcio": "this server, --transport grpcio",
    "noop-native": "the native transport with a model that answers zeros",
    "native": "this server, --transport native",
    "mlserver": "MLServer with a runtime of our own around ONNX Runtime, no worker processes",
    "kserve": "KServe's Python server with a model of our own around ONNX Runtime",
    "triton": "Triton, the server binary of the nvidia-pytriton wheel, with a model for its Python backend",
}
"""What can be asked for by name, and what it is."""


class ServerUnavailable(Exception):
    """A server cannot be had on this machine; the text says why."""


@dataclass(frozen=True)
class Server:
    """A server under test: `command` takes two free ports (gRPC, HTTP) and gives what starts it."""

    name: str
    about: str
    command: Callable[[int, int], list[str]]
    protocols: tuple[str, ...] = (INFER,)
    answers: bool = True
    """False for what does nothing: its replies are not looked at."""
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Running:
    """A server that answers, and how long it took to."""

    server: Server
    process: subprocess.Popen[bytes]
    address: str
    seconds: float

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
    _LOG.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with (_LOG / f"{server.name}.log").open("wb") as log:
        process = subprocess.Popen(
            server.command(port, http),
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env=os.environ | {"BENCH_MODEL": str(MODEL)} | server.environment,
            start_new_session=True,
        )
    running = Running(server, process, f"127.0.0.1:{port}", 0.0)
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
    """What it answers by each protocol that it speaks; waits for the first answer."""
    give_up = time.monotonic() + UP_WITHIN
    with grpc.insecure_channel(
        running.address, [("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 20)]
    ) as channel:
        for method in running.server.protocols:
            make, read = (predict_request, read_predict) if method == PREDICT else (infer_request, read_infer)
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
            while True:
                try:
                    reply = call(make(image[None]), timeout=UP_WITHIN)
                    break
                except grpc.RpcError as e:
                    if running.process.poll() is not None or time.monotonic() > give_up:
                        reason = f"{running.server.name} does not answer ({e.code().name}); see {_LOG}"
                        raise ServerUnavailable(reason) from e
                    time.sleep(0.005)
            yield read(reply) if running.server.answers else -1


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


def _mlserver() -> Server:
    python = _environment("mlserver")
    folder = _LOG / "mlserver"

    def command(port: int, http: int) -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(PEERS / "mlserver" / "runtime.py", folder)
        settings = {"name": "digits", "implementation": "runtime.Digits"}
        (folder / "model-settings.json").write_text(json.dumps(settings))
        # As its documentation advises for light models: no worker processes.
        options = {
            "http_port": http,
            "grpc_port": port,
            "metrics_port": 0,
            "parallel_workers": 0,
            "debug": False,
            "grpc_max_message_length": 2**30,
            "metrics_endpoint": None,
        }
        (folder / "settings.json").write_text(json.dumps(options))
        return [str(python.with_name("mlserver")), "start", str(folder)]

    return Server("mlserver", ABOUT["mlserver"], command)


def _kserve() -> Server:
    python = _environment("kserve")

    def command(port: int, http: int) -> list[str]:
        return [str(python), str(PEERS / "kserve" / "server.py"), str(port), str(http)]

    return Server("kserve", ABOUT["kserve"], command)


def _triton() -> Server:
    python = _environment("triton")
    site = next(python.parent.parent.glob("lib/python3*/site-packages"))
    shipped, folder = site / "pytriton" / "tritonserver", _LOG / "triton"

    def command(port: int, http: int) -> list[str]:
        shutil.rmtree(folder, ignore_errors=True)
        backend, model = folder / "backends" / "python", folder / "models" / "digits"
        shutil.copytree(shipped / "backends" / "python", backend)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copy(shipped / "python_backend_stubs" / version / "triton_python_backend_stub", backend)
        (model / "1").mkdir(parents=True)
        shutil.copy(PEERS / "triton" / "config.pbtxt", model)
        shutil.copy(PEERS / "triton" / "model.py", model / "1")
        return [
            *(str(shipped / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}"),
            *(f"--backend-directory={folder / 'backends'}", f"--grpc-port={port}", f"--http-port={http}"),
            "--allow-metrics=false",
        ]

    environment = {
        "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }
    return Server("triton", ABOUT["triton"], command, environment=environment)


def _environment(peer: str) -> Path:
    """The Python of the peer's own environment, made on first use."""
    folder, wanted = ROOT / ".venv" / "peers" / peer, PEERS / peer / "requirements.txt"
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists() or done.read_text() != wanted.read_text():
        print(f"bench: installing {peer} into {folder.relative_to(ROOT)} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(wanted)]
        if subprocess.run(pip, check=False).returncode:
            raise ServerUnavailable(f"pip cannot install {wanted.relative_to(ROOT)}")
        done.write_text(wanted.read_text())
    return python


SERVERS: dict[str, Callable[[], Server]] = {
    "noop": _noop,
    "noop-tuned": _noop_tuned,
    "grpcio": _grpcio,
    "noop-native": _noop_native,
    "native": _native,
    "mlserver": _mlserver,
    "kserve": _kserve,
    "triton": _triton,
}
"""How each of ABOUT is had."""
