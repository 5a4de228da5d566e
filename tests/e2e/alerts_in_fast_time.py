"""The alerts that alerts.py omits, with real causes; the times of the rules are divided by 20.

`make e2e-alerts` runs them. promtool tests the rules with their real times: deploy/prometheus/tests/alerts.yml.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from typing import TYPE_CHECKING

import grpc
import pytest

sys.path.insert(0, __file__.rpartition("/")[0])

import fast_rules
from engine import (
    ADDRESS,
    FAST,
    FAULTS,
    GRPC_PORT,
    ROOT,
    SCALE,
    Cause,
    Faults,
    Load,
    Stack,
    certificate,
    docker,
    kill_with_calls,
    predict_once,
    query,
    until,
)
from hostile import HEADERS, PREDICT, PREFACE, frame, literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

pytest_plugins = ("docker_stack",)

BASE = ["docker-compose.yml", FAULTS, FAST]
SOON, LATER = 60, 300  # seconds: longer than the shortened rules take, on a busy machine


@pytest.fixture(scope="module")
def faults(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Faults:
    prometheus, folder = tmp_path_factory.mktemp("prometheus"), tmp_path_factory.mktemp("faults")
    fast_rules.write(ROOT / "deploy" / "prometheus", prometheus)
    stack.files = BASE
    stack.settings = {"E2E_PROMETHEUS": str(prometheus), "E2E_FAULTS": str(folder)}
    return Faults(folder)


@pytest.fixture(autouse=True)
def _no_fault_is_left(faults: Faults) -> Iterator[None]:
    yield
    for fault in ("error", "slow", "flaky", "device", "memory"):
        faults.end(fault)


@contextlib.contextmanager
def serving(stack: Stack, files: list[str] | None = None, **settings: str) -> Iterator[list[str]]:
    """Run the service with these settings; yield its containers."""
    before = stack.files, stack.settings
    stack.files, stack.settings = files or BASE, {**stack.settings, **settings}
    try:
        stack.up("--remove-orphans")
        ids = [container["Id"] for container in stack.containers("service")]
        until("every replica is scraped", lambda: len(query('up{job="digitserve"} == 1')) == len(ids))
        yield ids
    finally:
        stack.files, stack.settings = before


def test_faults_of_the_service_are_reported(stack: Stack, faults: Faults, images: list[bytes]) -> None:
    with serving(stack):
        assert predict_once(images[0])
        cause = Cause("every run of the model raises")
        faults.begin("error")
        with Load(images, callers=8, rest=0.05).running() as load:
            cause.fires("DigitserveServerErrors", SOON)
            cause.fires("DigitserveBudgetBurnsFast", SOON)
            cause.fires("DigitserveBudgetBurnsSlowly", LATER)
            cause.fires("DigitserveNoSuccess", LATER)
        assert set(load.codes) == {"INTERNAL"}, load.details
        faults.end("error")
        cause.ends("the fault is gone")
        assert predict_once(images[0])
        for alert in ("NoSuccess", "ServerErrors", "BudgetBurnsFast", "BudgetBurnsSlowly"):
            cause.clears(f"Digitserve{alert}", LATER)


def test_calls_past_their_deadline_are_reported(stack: Stack, faults: Faults, images: list[bytes]) -> None:
    with serving(stack):
        cause = Cause("runs take 200 ms, deadlines are 50 ms")
        faults.begin("slow")
        with Load(images, callers=16, timeout=0.05).running():
            cause.fires("DigitserveClientsGiveUp", SOON)
        faults.end("slow")
        cause.ends("the clients are gone")
        cause.clears("DigitserveClientsGiveUp", LATER)


def test_out_of_distribution_images_are_reported(
    stack: Stack, digits: npt.NDArray[np.uint8], images: list[bytes]
) -> None:
    with serving(stack):
        cause = Cause("4,000 inverted images")
        inverted = (255 - digits).tobytes()
        for _ in range(40):
            assert predict_once(inverted)
        cause.fires("DigitserveDigitsDrift", LATER)
        cause.fires("DigitserveConfidenceLow", LATER)
        assert predict_once(images[0])
        cause.ends("no such image for an hour")
        cause.clears("DigitserveDigitsDrift", LATER)
        cause.clears("DigitserveConfidenceLow", LATER)


def test_exhausted_resources_of_a_process_are_reported(stack: Stack, faults: Faults) -> None:
    with serving(stack, SERVICE_MEMORY="1G", DIGITS_MAX_CONNECTIONS="16"):
        cause = Cause("the process holds 450 MB more")
        faults.begin("memory")
        cause.fires("DigitserveMemoryHigh", LATER)
        faults.end("memory")
        cause.ends("it has freed them")
        cause.clears("DigitserveMemoryHigh", SOON)

        cause = Cause("14 of 16 connections are open")
        with contextlib.ExitStack() as opened:
            for _ in range(14):
                channel = grpc.insecure_channel(ADDRESS, [("grpc.use_local_subchannel_pool", 1)])
                opened.enter_context(channel)
                grpc.channel_ready_future(channel).result(20)
            cause.fires("DigitserveConnectionsFull", LATER)
        cause.ends("they are closed")
        cause.clears("DigitserveConnectionsFull", SOON)

        (container,) = stack.containers("service")
        handles = round(sum(query('process_open_fds{job="digitserve"}').values()))
        cause = Cause("`prlimit` leaves 10% of the file handles")
        limit_handles(container["State"]["Pid"], handles + handles // 10)
        cause.fires("DigitserveFileHandlesLow", LATER)
        limit_handles(container["State"]["Pid"], 65536)
        cause.ends("the limit is as before")
        cause.clears("DigitserveFileHandlesLow", SOON)


def limit_handles(pid: int, soft: int) -> None:
    """Set the soft limit of a process on the engine's machine, from a process of the same user."""
    limit = (
        f"import resource as r; _, hard = r.prlimit({pid}, r.RLIMIT_NOFILE); "
        f"r.prlimit({pid}, r.RLIMIT_NOFILE, (min({soft}, hard), hard))"
    )
    docker("run", "--rm", "--pid", "host", "--entrypoint", "python", "digitserve:e2e", "-c", limit)


def test_a_replica_that_is_starved_or_frozen_is_reported(stack: Stack) -> None:
    with serving(stack) as (replica,):
        cause = Cause("docker update --cpus 0.01")
        docker("update", "--cpus", "0.01", replica)
        cause.fires("DigitserveScrapeSlow", LATER)
        docker("update", "--cpus", "1", replica)
        cause.ends("docker update --cpus 1")
        cause.clears("DigitserveScrapeSlow", LATER)
        cause.clears("DigitserveReplicaDown", LATER)

        cause = Cause("docker pause")
        docker("pause", replica)
        cause.fires("DigitserveReplicaDown", SOON)
        docker("unpause", replica)
        cause.ends("docker unpause")
        cause.clears("DigitserveReplicaDown", SOON)
        # Scraped before its next health check; `docker compose up --wait` fails while it is unhealthy.
        health = ("inspect", "--format", "{{.State.Health.Status}}", replica)
        until("it is healthy", lambda: docker(*health).strip() == "healthy")


def test_a_replica_that_restarts_repeatedly_is_reported(stack: Stack) -> None:
    with serving(stack):
        cause = Cause("a replica killed 3 times")
        start = 'process_start_time_seconds{job="digitserve"}'
        for _ in range(3):
            before = set(query(start).values())
            (container,) = stack.containers("service")
            kill_with_calls(container)
            until("it is scraped again", lambda seen=before: set(query(start).values()) - seen, within=LATER)
            time.sleep(4)  # so that a sample of this start is recorded
        cause.fires("DigitserveRestarting", SOON)
        cause.ends("no start for an hour")
        cause.clears("DigitserveRestarting", LATER)


def test_failed_handshakes_and_an_expiring_certificate_are_reported(stack: Stack, faults: Faults) -> None:
    certificate(faults.folder, days=3)
    cause = Cause("the service's certificate of 3 days")
    with serving(stack, DIGITS_TLS_CERT="/faults/tls.crt", DIGITS_TLS_KEY="/faults/tls.key"):
        cause.fires("DigitserveCertificateExpires", LATER)
        certificate(faults.folder, days=30)
        cause.ends("a certificate of 30 days put in place")
        cause.clears("DigitserveCertificateExpires", SOON)

        cause = Cause("30 connections without TLS")
        for _ in range(30):
            with contextlib.suppress(ConnectionError), socket.create_connection(("localhost", GRPC_PORT), 20) as peer:
                peer.sendall(PREFACE)
                peer.recv(1)
        cause.fires("DigitserveHandshakesFail", LATER)
        cause.ends("no such connection for a quarter of an hour")
        cause.clears("DigitserveHandshakesFail", LATER)


def test_a_failed_device_and_a_hung_run_are_reported(stack: Stack, faults: Faults, images: list[bytes]) -> None:
    with serving(stack, DIGITS_PROVIDER="cuda", DIGITS_WATCHDOG_TIMEOUT="2"):
        assert predict_once(images[0])
        cause = Cause("the device is lost")
        faults.begin("device")
        for _ in range(3):
            assert predict_once(images[0]) is None
        cause.fires("DigitserveDeviceFails", SOON)
        cause.fires("DigitserveReplicaNotServing", SOON)
        faults.end("device")
        cause.ends("the device is back")
        until("it answers", lambda: predict_once(images[0]))
        cause.clears("DigitserveReplicaNotServing", SOON)
        cause.clears("DigitserveDeviceFails", LATER)

        cause = Cause("a run hangs")
        faults.begin("device", "hangs")
        assert predict_once(images[0]) is None
        cause.fires("DigitserveStalled", SOON)
        faults.end("device")
        cause.ends("it returns")
        until("it answers", lambda: predict_once(images[0]))
        cause.clears("DigitserveStalled", LATER)


def test_a_full_queue_and_a_server_of_grpcio_that_ends_are_reported(
    stack: Stack, faults: Faults, images: list[bytes]
) -> None:
    queue = {"DIGITS_MAX_BATCH_SIZE": "4", "DIGITS_MAX_QUEUED_IMAGES": "8", "DIGITS_INLINE_IMAGES": "0"}
    with serving(stack, DIGITS_TRANSPORT="grpcio", **queue):
        cause = Cause("32 clients, runs of 200 ms, a queue of 8")
        faults.begin("slow")
        with Load(images, callers=32, rest=0.02).running() as load:
            cause.fires("DigitserveQueueFull", LATER)
        assert {"OK", "RESOURCE_EXHAUSTED"} <= set(load.codes), load.details
        faults.end("slow")
        cause.ends("the clients are gone")
        cause.clears("DigitserveQueueFull", LATER)

        cause = Cause("a path that is not text, to grpcio's accept loop")
        with socket.create_connection(("localhost", GRPC_PORT), 20) as peer:
            headers = HEADERS.replace(literal(b":path", PREDICT.encode()), literal(b":path", b"/\xff"))
            peer.sendall(PREFACE + frame(1, 4, 1, headers) + frame(0, 1, 1, bytes(5)))
            cause.fires("DigitserveTransportRestarts", SOON)
        until("the next server answers", lambda: predict_once(images[0]))
        cause.ends("no other for 10 minutes")
        cause.clears("DigitserveTransportRestarts", LATER)


def test_other_models_and_repeated_calls_are_reported(stack: Stack, faults: Faults, images: list[bytes]) -> None:
    with serving(stack, [*SCALE, FAULTS, FAST], REPLICAS="1", DIGITS_PROVIDER="cuda"):
        cause = Cause("a run in 10 fails, behind Envoy")
        stack.up("--no-recreate", "--scale", "service=2")
        until("both are scraped", lambda: len(query('up{job="digitserve"} == 1')) == 2)
        faults.begin("flaky")
        with Load(images, callers=4, rest=0.02).running() as load:
            cause.fires("DigitserveEnvoyRetries", LATER)
        faults.end("flaky")
        assert load.codes["OK"] > 100
        cause.ends("runs do not fail")
        cause.clears("DigitserveEnvoyRetries", LATER)

        cause = Cause("a second replica with another model")
        stack.up("--no-recreate", "--scale", "service=1")
        stack.settings = {**stack.settings, "MODEL_VERSION": "2"}
        stack.compose("rm", "--force", "export")
        stack.up("--no-recreate", "--scale", "service=2")
        cause.fires("DigitserveModelsDiffer", LATER)
        stack.up("--no-recreate", "--scale", "service=1")
        cause.ends("docker compose up --scale service=1")
        cause.clears("DigitserveModelsDiffer", LATER)
