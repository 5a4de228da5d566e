"""The real parts that tests share: the committed network as model.onnx, real digits and a real server process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import environments
import pytest
from hypothesis import HealthCheck, settings
from prometheus_client.parser import text_string_to_metric_families

from commandline import proxies
from export import checkpoint, graph, mnist
from service.inference import plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import numpy.typing as npt

Test = TypeVar("Test", bound="Callable[..., object]")

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "samples"
proxies.bypass()  # the tests' servers are on this machine
DEAD_PROXIES = {
    **dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:1"),
    **dict.fromkeys(("no_proxy", "NO_PROXY", "no_grpc_proxy"), ""),
}
"""An environment in which every request to a proxy fails."""
ANSWERS_WITHIN = 120  # seconds until a test fails; long, so that tests pass on a busy machine

# On a busy machine, an example and its generation can take any time.
settings.register_profile("any pace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any pace")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print each reason to skip once, with its number of tests."""
    skipped = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.getreports("skipped"))
    for reason, count in sorted(skipped.items()):
        terminalreporter.write_line(f"SKIPPED [{count}] {reason}")


@pytest.fixture(autouse=True)
def _no_plugin_in_this_process() -> Iterator[None]:
    """Fail if a test registers a plugin. A plugin lists devices once in a process, so later tests would miss theirs."""
    before = plugins._register.cache_info().currsize
    yield
    after = plugins._register.cache_info().currsize
    assert after == before, "a plugin was registered; expected --provider cpu, or another process"


def _ports_beyond_the_kernels_choice() -> Iterator[int]:
    """Yield ports below the kernel's ephemeral range, each once, and different ones in each worker."""
    name = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    worker, workers = int(name.removeprefix("gw")), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports = range(10_000 + worker, 32_000, workers)
    begin = random.randrange(len(ports))  # another test run may be in progress
    yield from (*ports[begin:], *ports[:begin])


_ports = _ports_beyond_the_kernels_choice()


def free_port() -> int:
    """Find an unused port on loopback, for a server that needs its port before it starts."""
    for port in _ports:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("every port is in use")


@dataclass
class ServiceProcess:
    """`python -m service` as an operator starts it; a thread reads its log, so that no pipe fills up."""

    process: subprocess.Popen[str]
    lines: list[dict[str, Any]] = field(default_factory=list)
    _unread: queue.Queue[str | None] = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for text in self.process.stderr:
            self._unread.put(text)
        self._unread.put(None)

    def wait_for(self, event: str, **fields: Any) -> dict[str, Any]:
        """Wait for a log line of that event with those fields; fail the test if the process ends first."""
        while (text := self._unread.get(timeout=ANSWERS_WITHIN)) is not None:
            self.lines.append(json.loads(text))
            if {"event": event, **fields}.items() <= self.lines[-1].items():
                return self.lines[-1]
        pytest.fail(f"the service ended without {event!r}: {self.lines}")

    @property
    def address(self) -> str:
        return str(self._serving()["address"])

    @property
    def metrics_url(self) -> str:
        return str(self._serving()["metrics"])

    def _serving(self) -> dict[str, Any]:
        return next(line for line in self.lines if line["event"] == "serving")

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.metrics_url.replace("/metrics", path), timeout=ANSWERS_WITHIN) as reply:
            return str(reply.read().decode())

    def series(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """Read the samples of /metrics by name and label values, in the order of the label names."""
        return {
            (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.get("/metrics"))
            for sample in family.samples
        }

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop the server with a signal; return its exit status."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """Wait until the server has ended and its log is read; return its exit status."""
        status = self.process.wait(ANSWERS_WITHIN)
        self._reader.join(ANSWERS_WITHIN)
        while (text := self._unread.get(timeout=ANSWERS_WITHIN)) is not None:
            self.lines.append(json.loads(text))
        return status

    def close(self) -> None:
        """Kill the process and close its files, also after a failed test."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


def launch(*arguments: str | Path, env: dict[str, str] | None = None) -> ServiceProcess:
    command = [sys.executable, "-m", "service", "--log-format", "json", *map(str, arguments)]
    return ServiceProcess(
        subprocess.Popen(
            command,
            cwd=ROOT,
            # With auto, the log contains why no GPU is used if a plugin for one is installed.
            env={"DIGITS_PROVIDER": "cpu", **os.environ, **(env or {})},
            stderr=subprocess.PIPE,
            text=True,
        )
    )


@contextlib.contextmanager
def serving(model: Path, *arguments: str | Path) -> Iterator[ServiceProcess]:
    """Start a server, wait until it serves, and stop it after the test."""
    service = launch("--model", model, "--port", "0", "--metrics-port", "0", *arguments)
    try:
        service.wait_for("serving")
        yield service
    finally:
        service.close()


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build the wheels of digitserve and digitserve_client, each from its sdist."""
    return environments.build(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that writes a committed network as ONNX and returns the path."""

    def make(activation: Any = "sigmoid", version: str = "1", input_form: Any = "uint8") -> Path:
        path = tmp_path_factory.mktemp("model") / "model.onnx"
        trained = checkpoint.load(checkpoint.committed(activation))
        graph.write(graph.build(trained, version=version, input_form=input_form), path)
        return path

    return make


@pytest.fixture(scope="session")
def model_path(make_model: Callable[..., Path]) -> Path:
    return make_model()


needs_native = pytest.mark.skipif(
    find_spec("digitserve_native") is None, reason="the native wheel is not installed: `make native`"
)


_has_h2load = pytest.mark.skipif(
    not shutil.which("h2load"), reason="no h2load: install nghttp2-client (Debian's package)"
)


def needs_h2load(test: Test) -> Test:
    """Mark a test as slow, and skip it without h2load."""
    return pytest.mark.slow(_has_h2load(test))


@pytest.fixture(scope="session", params=["grpcio", pytest.param("native", marks=needs_native)])
def transport(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once on each transport, for all servers that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIGITS_TRANSPORT", request.param)
        yield request.param


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """A function that prints a figure if figures are enabled, as by `make chaos`."""

    def say(text: str) -> None:
        if os.environ.get("CHAOS"):
            with capfd.disabled():
                print(f"\n    {text}")  # noqa: T201 (the purpose of make chaos)

    return say


on_both_transports = pytest.mark.usefixtures("transport")


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition is true."""
    ends = time.monotonic() + ANSWERS_WITHIN
    while not condition():
        if time.monotonic() > ends:
            pytest.fail(f"condition still false after {ANSWERS_WITHIN} s")
        await asyncio.sleep(0.01)


def wait_until(condition: Callable[[], object], *passing: type[Exception]) -> None:
    """Wait as `until` does, outside an event loop; an exception of these types counts as false."""
    ends = time.monotonic() + ANSWERS_WITHIN
    while True:
        with contextlib.suppress(*passing):
            if condition():
                return
        if time.monotonic() > ends:
            pytest.fail(f"condition still false after {ANSWERS_WITHIN} s")
        time.sleep(0.02)


@pytest.fixture(scope="session")
def server(model_path: Path, transport: str) -> Iterator[ServiceProcess]:  # noqa: ARG001 (sets the environment)
    """One server that the tests share; tests of counters compare differences."""
    with serving(model_path) as service:
        yield service


@pytest.fixture(scope="session")
def digits() -> npt.NDArray[np.uint8]:
    """100 real digits, (100, 784), 10 of each."""
    return mnist.read_idx(SAMPLES / "digits-100-images-idx3-ubyte").reshape(-1, 784)


@pytest.fixture(scope="session")
def labels() -> npt.NDArray[np.uint8]:
    """The labels of the 100 digits, (100,)."""
    return mnist.read_idx(SAMPLES / "digits-100-labels-idx1-ubyte")
