"""Tests on a cluster of four Ray nodes: the API, killed nodes and added replicas under load, and scoring.

`make test-ray` runs them; without Ray they are skipped. The cluster runs in separate processes: see ray_nodes.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import grpc
import numpy as np
import pytest
from conftest import ROOT, SAMPLES
from digitserve_client import DigitsClient, DigitsError
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from test_grpc_api import (  # noqa: F401
    channel,
    message,
    predict,
    test_a_hundred_real_digits_are_answered_as_the_reference_does,
    test_a_passed_deadline_is_deadline_exceeded,
    test_a_rejected_call_without_a_request_id_gets_one,
    test_a_stream_answers_every_message_in_order,
    test_a_stream_ends_at_its_first_malformed_message_with_the_replies_before_it,
    test_an_unknown_method_is_unimplemented,
    test_any_bytes_over_the_socket_are_answered_or_rejected_never_internal,
    test_health_is_serving_under_each_name,
    test_health_of_an_unknown_service_is_not_found,
    test_invalid_requests_are_rejected,
    test_large_batches_do_not_delay_small_requests,
    test_reflection_describes_the_contract_to_clients_without_the_proto,
    test_valid_requests_are_accepted,
)

# The tests of a single server, with the cluster as their fixture `server`.
from test_inference import (  # noqa: F401
    stub,
    test_an_error_in_a_stream_is_a_reply_and_the_stream_continues,
    test_another_model_is_not_found,
    test_any_bytes_are_rejected_never_internal,
    test_each_error_has_its_status_and_message,
    test_metadata_describes_the_server_and_the_model,
    test_the_repository_holds_the_one_model,
    test_typed_contents_in_give_typed_contents_out,
    test_unsupported_rpcs_are_unimplemented,
)
from test_scoring import content, score

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path


pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: `make test-ray` installs it")

WITHIN = 90  # seconds for an operation of the cluster
WORKERS = 3
ENVIRONMENT = {
    **os.environ,
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # see ray_nodes.py
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
"""The token of the nodes and their clients, so that other users of the machine have no access."""
PREDICT = "/digits.v1.DigitService/Predict"


def finished(command: Sequence[object]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )


class Cluster:
    """The nodes and the application on them."""

    def __init__(self, process: subprocess.Popen[str], model: Path, port: int, metrics_port: int) -> None:
        self._process = process
        self._model = model
        self.metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        self._port, self._metrics_port = port, metrics_port
        up = self._told()
        self.ray_address, self.ports = up["address"], up["ports"]
        self.address = f"127.0.0.1:{port}"

    def deploy(self, *options: str | int, model: Path | None = None) -> subprocess.CompletedProcess[str]:
        arguments = ["--ray-address", self.ray_address, "--port", self._port, "--metrics-port", self._metrics_port]
        command = [sys.executable, "-m", "ray_serve", *arguments, "--model", model or self._model, *options]
        return finished([*command, "--log-format", "json"])

    def command(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        self.ports = self._told()["ports"]

    def _told(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the nodes ended"
        return json.loads(line)

    def metrics(self) -> str:
        with urllib.request.urlopen(self.metrics_url, timeout=10) as reply:
            return str(reply.read().decode())

    def replicas(self) -> set[str]:
        return set(re.findall(r'^digits_serving\{replica="(\w+)"\} 1', self.metrics(), re.MULTILINE))

    def wait_for(self, happened: Callable[[set[str]], bool], what: str) -> set[str]:
        deadline = time.monotonic() + WITHIN
        found: set[str] = set()
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                found = self.replicas()
                if happened(found):
                    return found
            time.sleep(0.5)
        pytest.fail(f"not within {WITHIN} s: {what}; the replicas are {found}")


def free_ports(number: int) -> list[int]:
    import socket  # noqa: PLC0415

    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in found]


@pytest.fixture(scope="module")
def cluster(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    log = tmp_path_factory.mktemp("ray") / "nodes.log"
    command = [sys.executable, ROOT / "tests/ray_nodes.py", str(WORKERS)]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            list(map(str, command)),
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            found = Cluster(process, model_path, *free_ports(2))
            deployed = found.deploy("--min-replicas", 3, "--max-replicas", 3, "--max-queued", 1000)
            assert deployed.returncode == 0, deployed.stderr
            yield found
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(WITHIN)


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> SimpleNamespace:
    """The head's proxy, for the tests of a single server."""
    return SimpleNamespace(address=cluster.address)


class Load:
    """Clients that send calls without a pause, each in a thread; `outcomes` counts the results."""

    def __init__(self, call: Callable[[], None], callers: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(call,)) for _ in range(callers)]

    def _run(self, call: Callable[[], None]) -> None:
        while not self._stop.is_set():
            outcome = "OK"
            try:
                call()
            except DigitsError as e:
                outcome = f"{e.code.name}: {e}"
            except grpc.RpcError as e:
                outcome = f"{e.code().name}: {e.details()}"
            with self._lock:
                self.outcomes[outcome] += 1

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(WITHIN)


def test_every_nodes_proxy_answers(cluster: Cluster, digits: np.ndarray) -> None:
    for port in cluster.ports:
        with DigitsClient(f"127.0.0.1:{port}") as client:
            assert client.is_serving()
            assert len(client.predict(digits).digits) == 100


def test_the_metrics_of_all_replicas_are_on_every_node(cluster: Cluster, digits: np.ndarray) -> None:
    def counted() -> float:
        found = re.findall(r"^digits_predictions_total\{.*\} (\S+)$", cluster.metrics(), re.MULTILINE)
        return sum(map(float, found))

    before = counted()
    with DigitsClient(cluster.address) as client:
        for digit in digits:
            client.predict(digit)
    assert counted() - before == 100
    assert len(cluster.replicas()) == 3


async def test_health_can_be_watched(server: SimpleNamespace) -> None:
    async with aio.insecure_channel(server.address) as channel_:
        watching = health_pb2_grpc.HealthStub(channel_).Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        watching.cancel()
        unknown = health_pb2_grpc.HealthStub(channel_).Watch(health_pb2.HealthCheckRequest(service="x"), timeout=30)
        assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        unknown.cancel()


async def test_the_request_id_of_the_client_is_returned(server: SimpleNamespace) -> None:
    async with aio.insecure_channel(server.address) as channel_:
        for request in (message(bytes(784)), b""):
            call = channel_.unary_unary(PREDICT)(request, metadata=[("x-request-id", "mine")], timeout=10)
            await asyncio.wait([asyncio.ensure_future(call.code())])
            assert ("x-request-id", "mine") in list(await call.trailing_metadata())


async def test_an_oversized_message_is_rejected_with_its_limit(server: SimpleNamespace) -> None:
    """Ray's proxy limits messages to 2 GB, so the handler reports the error of the library."""
    async with aio.insecure_channel(server.address, [("grpc.max_send_message_length", -1)]) as channel_:
        with pytest.raises(aio.AioRpcError) as caught:
            await predict(channel_, message(bytes(784 * 5000)))
    assert caught.value.code() is StatusCode.INVALID_ARGUMENT
    assert "holds 5000 images; at most 1024" in caught.value.details()


def test_a_node_is_killed_under_load_and_no_client_that_retries_loses_a_call(
    cluster: Cluster, digits: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [("grpc.enable_retries", 0)]
    before = cluster.replicas()
    large = message(np.tile(digits, (10, 1)).tobytes())  # so that a killed replica has many calls
    with DigitsClient(cluster.address) as client, grpc.insecure_channel(cluster.address, options) as bare:
        call = bare.unary_unary(PREDICT)
        with (
            Load(lambda: void(client.predict(digits[0])), 4) as retrying,
            Load(lambda: void(call(large, timeout=10)), 8) as plain,
        ):
            time.sleep(2)
            cluster.command("kill 0")
            cluster.wait_for(lambda now: len(now) == 3 and now != before, "a replica in the place of the killed one")
            time.sleep(2)
    with capsys.disabled():
        print(f"\nnode killed: with retries {dict(retrying.outcomes)}, without {dict(plain.outcomes)}")
    assert set(retrying.outcomes) == {"OK"}
    lost = set(plain.outcomes) - {"OK"}
    assert lost <= {"UNAVAILABLE: the replica of this call is gone, or none is ready yet: send the call again"}
    assert plain.outcomes["OK"] > 20


def void(_: object) -> None:
    """Discard the reply of a call."""


def test_replicas_scale_with_the_load_and_no_call_is_lost(
    cluster: Cluster, digits: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    with DigitsClient(cluster.address) as client, Load(lambda: void(client.predict(digits[0])), 1) as steady:
        replaced = cluster.deploy(
            *("--min-replicas", 1, "--max-replicas", 3, "--target-ongoing", 4),
            *("--scale-up-after", 1, "--scale-down-after", 3),
        )
        assert replaced.returncode == 0, replaced.stderr
        cluster.wait_for(lambda now: len(now) == 1, "one replica for one client")
        began = time.monotonic()
        with Load(lambda: void(client.predict(digits[0])), 24) as heavy:
            cluster.wait_for(lambda now: len(now) == 3, "three replicas for 25 clients")
            up = time.monotonic() - began
        began = time.monotonic()
        cluster.wait_for(lambda now: len(now) == 1, "one replica again")
    with capsys.disabled():
        print(
            f"\nscaled up in {up:.0f} s, down in {time.monotonic() - began:.0f} s: {steady.outcomes + heavy.outcomes}"
        )
    assert set(steady.outcomes) == set(heavy.outcomes) == {"OK"}


def test_all_replicas_load_another_model_and_no_call_is_lost(
    cluster: Cluster, make_model: Callable[..., Path], digits: np.ndarray
) -> None:
    versions: Counter[str] = Counter()
    with DigitsClient(cluster.address) as client:

        def call() -> None:
            versions[client.predict(digits[0]).model_version] += 1

        with Load(call, 2) as load:
            swapped = cluster.deploy("--min-replicas", 2, "--max-replicas", 2, model=make_model(version="2"))
            assert swapped.returncode == 0, swapped.stderr
            deadline = time.monotonic() + WITHIN
            while client.predict(digits[0]).model_version != "2":
                assert time.monotonic() < deadline
            time.sleep(1)
    assert set(load.outcomes) == {"OK"}
    assert set(versions) == {"1", "2"}


def test_a_model_that_cannot_serve_never_reaches_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    refused = cluster.deploy(model=tmp_path / "model.onnx")
    assert refused.returncode == 1
    assert "model.onnx: not a model that `python -m export onnx` wrote" in refused.stderr
    assert "Traceback" not in refused.stderr
    with DigitsClient(cluster.address) as client:
        assert client.is_serving()


def test_scoring_on_the_cluster_gives_the_bytes_of_one_process(
    cluster: Cluster, model_path: Path, tmp_path: Path
) -> None:
    assert score(SAMPLES, tmp_path / "local", model_path, "--shard-rows", 30).exit_code == 1
    for workers in (1, 2):
        output = tmp_path / f"ray-{workers}"
        command = [sys.executable, "-m", "digitserve", "score", SAMPLES, "--output", output, "--model", model_path]
        command += ["--ray-address", cluster.ray_address, "--workers", workers, "--shard-rows", 30]
        scored = finished(command)
        assert scored.returncode == 1, scored.stderr
        assert content(output) == content(tmp_path / "local")


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("127.0.0.1:1", "no Ray answers there (connection refused); start one with `ray start --head"),
        ("nowhere", "expected auto or HOST:PORT, as `ray start --head` prints it"),
    ],
)
def test_an_address_without_ray_is_an_error(model_path: Path, tmp_path: Path, address: str, sentence: str) -> None:
    scored = score(SAMPLES, tmp_path / "out", model_path, "--ray-address", address)
    assert scored.exit_code == 5
    assert f"--ray-address is {address!r}: {sentence}" in scored.stderr
    command = [sys.executable, "-m", "ray_serve", "--ray-address", address, "--model", model_path]
    found = subprocess.run(
        [*map(str, command), "--log-format", "json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert f"--ray-address (or DIGITS_RAY_ADDRESS) is '{address}': {sentence}" in found.stderr
