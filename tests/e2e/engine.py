"""The stack of the compose files on the local Docker engine, with its own name and ports, and its load."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc import aio

from service.pb.digits.v1.digits_pb2 import PredictRequest, PredictResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent.parent
# A second run on the same engine chooses other ones by variables, as `make e2e-alerts` does.
PROJECT = os.environ.get("E2E_PROJECT", "digitserve-e2e")
GRPC_PORT = int(os.environ.get("E2E_FIRST_PORT", "51050"))
HTTP_PORT, PROMETHEUS_PORT, PLAY_PORT = GRPC_PORT + 1, GRPC_PORT + 2, GRPC_PORT + 3
ADDRESS = f"localhost:{GRPC_PORT}"
PROMETHEUS = f"http://localhost:{PROMETHEUS_PORT}"
SCALE = ["docker-compose.yml", "compose.scale.yml"]
TLS = [*SCALE, "compose.tls.yml"]
FAULTS, FAST = "tests/e2e/compose.faults.yml", "tests/e2e/compose.fast.yml"
PREDICT = "/digits.v1.DigitService/Predict"


def say(message: str) -> None:
    print(f"    {message}", flush=True)


def docker(*arguments: str, env: dict[str, str] | None = None, check: bool = True, both: bool = False) -> str:
    """Run docker; return its standard output, or both streams."""
    command = ["docker", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if check and done.returncode:
        pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr if both else done.stdout


def why_not() -> str:
    """Return why no stack can start on this machine; empty if one can."""
    try:
        engine = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "docker: not found; expected Docker Engine"
    if engine.returncode:
        return "Docker engine: no answer; expected a running engine, locally or at DOCKER_HOST"
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        return "docker compose: not found; expected docker-compose-plugin"
    return ""


class Stack:
    """`docker compose` with compose files and settings; both may change between calls."""

    def __init__(self) -> None:
        self.files = ["docker-compose.yml"]
        self.settings: dict[str, str] = {}

    @property
    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            "COMPOSE_PROJECT_NAME": PROJECT,
            "COMPOSE_FILE": ":".join(self.files),
            "COMPOSE_DISABLE_ENV_FILE": "1",
            "GRPC_PORT": str(GRPC_PORT),
            "HTTP_PORT": str(HTTP_PORT),
            "PROMETHEUS_PORT": str(PROMETHEUS_PORT),
            "PLAY_PORT": str(PLAY_PORT),
            "IMAGE_TAG": "e2e",
            **self.settings,
        }

    def compose(self, *arguments: str) -> str:
        return docker("compose", *arguments, env=self.env)

    def up(self, *arguments: str) -> None:
        self.compose("up", "--detach", "--wait", *arguments)

    def containers(self, service: str) -> list[dict[str, Any]]:
        """Return the `docker inspect` output of each container of a service, including ended ones."""
        ids = self.compose("ps", "--all", "--quiet", service).split()
        return list(json.loads(docker("inspect", *ids))) if ids else []

    def in_container(self, service: str, *command: str) -> str:
        return self.compose("exec", "--no-TTY", service, *command)


def kill_with_calls(container: dict[str, Any]) -> None:
    """Send SIGKILL to the process of a container, from outside the engine. The engine then restarts it.

    The process is first suspended for 0.2 s, so that it has calls in flight when it is killed.
    """
    pid = container["State"]["Pid"]
    kill = f"import os, signal, time; os.kill({pid}, signal.SIGSTOP); time.sleep(0.2); os.kill({pid}, signal.SIGKILL)"
    docker(
        *("run", "--rm", "--pid", "host", "--user", "0", "--cap-add", "KILL", "--entrypoint", "python"),
        *("digitserve:e2e", "-c", kill),
    )


def until(what: str, ask: Callable[[], Any], within: float = 60) -> Any:
    """Return the first true answer; fail the test if there is none within that many seconds."""
    began, answer = time.monotonic(), None
    while time.monotonic() - began < within:
        with contextlib.suppress(OSError):
            if answer := ask():
                return answer
        time.sleep(0.2)
    pytest.fail(f"not within {within:g} s: {what}; the last answer was {answer!r}")


def certificate(folder: Path, days: int) -> None:
    """Write a pair for localhost by renaming, readable by Envoy's user."""
    new = folder / "new"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", str(days), "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    new.mkdir(exist_ok=True)
    subprocess.run([*command, "-keyout", new / "tls.key", "-out", new / "tls.crt"], check=True, capture_output=True)
    for name in ("tls.key", "tls.crt"):
        (new / name).chmod(0o644)
        (new / name).replace(folder / name)


def query(promql: str) -> dict[str, float]:
    """Query Prometheus; return the values by instance."""
    url = f"{PROMETHEUS}/api/v1/query?{urllib.parse.urlencode({'query': promql})}"
    with urllib.request.urlopen(url, timeout=10) as reply:
        result = json.load(reply)["data"]["result"]
    return {row["metric"].get("instance", ""): float(row["value"][1]) for row in result}


def firing() -> set[str]:
    """Return the names of the alerts that fire."""
    with urllib.request.urlopen(f"{PROMETHEUS}/api/v1/alerts", timeout=10) as reply:
        alerts = json.load(reply)["data"]["alerts"]
    return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


class Faults:
    """The files that cause faults in the service of compose.faults.yml: see faulty_service.py."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)

    def begin(self, fault: str, text: str = "") -> None:
        new = self.folder / f"{fault}.new"
        new.write_text(text)
        new.chmod(0o644)
        new.replace(self.folder / fault)

    def end(self, fault: str) -> None:
        (self.folder / fault).unlink(missing_ok=True)


class Cause:
    """The cause of alerts, with its begin and end; prints when each alert fired and cleared."""

    def __init__(self, cause: str) -> None:
        self._cause, self._end = cause, ""
        self._before = set[str]()
        with contextlib.suppress(OSError):  # Prometheus is not up yet
            self._before = firing()
        self._began = time.monotonic()

    def fires(self, alert: str, within: float) -> None:
        assert alert not in self._before, "another cause had fired it"
        until(f"{alert} fires", lambda: alert in firing(), within=within)
        say(f"{alert}: {self._cause}; fired after {time.monotonic() - self._began:.0f} s")

    def ends(self, end: str) -> None:
        self._end, self._began = end, time.monotonic()

    def clears(self, alert: str, within: float) -> None:
        until(f"{alert} clears", lambda: alert not in firing(), within=within)
        say(f"{alert}: {self._end}; cleared after {time.monotonic() - self._began:.0f} s")


class Load:
    """Clients that each send one image after the other over one connection, without retries."""

    def __init__(self, images: list[bytes], callers: int, *, timeout: float = 20, rest: float = 0) -> None:
        self._timeout, self._rest = timeout, rest
        self._requests = [PredictRequest(pixels=image).SerializeToString() for image in images]
        self._callers = callers
        self._ends = threading.Event()
        self.codes: collections.Counter[str] = collections.Counter()
        self.versions: collections.Counter[str] = collections.Counter()
        self.details: set[str] = set()
        self.slowest = 0.0

    async def _call(self, channel: aio.Channel, number: int) -> None:
        predict = channel.unary_unary(PREDICT)
        while not self._ends.is_set():
            number += 1
            began = time.perf_counter()
            try:
                reply: Any = await predict(self._requests[number % len(self._requests)], timeout=self._timeout)
            except aio.AioRpcError as e:
                self.codes[e.code().name] += 1
                self.details.add(str(e.details()))
            else:
                self.codes["OK"] += 1
                self.versions[PredictResponse.FromString(reply).model_version] += 1
            self.slowest = max(self.slowest, time.perf_counter() - began)
            if self._rest:
                await asyncio.sleep(self._rest)

    async def _run(self) -> None:
        async with aio.insecure_channel(ADDRESS, [("grpc.enable_retries", 0)]) as channel:
            await asyncio.gather(*(self._call(channel, 7 * number) for number in range(self._callers)))

    @contextlib.contextmanager
    def running(self) -> Iterator[Load]:
        thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        thread.start()
        try:
            yield self
        finally:
            self._ends.set()
            thread.join()

    def __str__(self) -> str:
        return f"{dict(self.codes)}, slowest {self.slowest:.2f} s"


def predict_once(image: bytes, credentials: grpc.ChannelCredentials | None = None, *, address: str = ADDRESS) -> Any:
    """Send one call, over TLS if there are credentials; return None if no server answers."""
    channel = grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
    with channel:
        try:
            reply = channel.unary_unary(PREDICT)(PredictRequest(pixels=image).SerializeToString(), timeout=5)
        except grpc.RpcError:
            return None
    return PredictResponse.FromString(reply)
