"""Each alert that can be caused within minutes: with a real cause it fires, and it clears without the cause.

`make e2e-alerts` runs the tests in this order, for about 25 minutes. The alert on a missing replica needs a longer
history with the replica than without it, which the earlier tests provide.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, __file__.rpartition("/")[0])

from engine import (
    FAULTS,
    SCALE,
    TLS,
    Cause,
    Faults,
    Load,
    Stack,
    certificate,
    docker,
    firing,
    kill_with_calls,
    predict_once,
    query,
    say,
    until,
)

if TYPE_CHECKING:
    from pathlib import Path


pytest_plugins = ("docker_stack",)

MINUTE = 60
REPLICAS = 3
UP = 'sum(up{job="digitserve"})'
MODEL = "/model/sigmoid-1.onnx"


def in_model_volume(stack: Stack, script: str) -> None:
    stack.compose("run", "--rm", "--no-deps", "--entrypoint", "sh", "export", "-c", script)


@pytest.fixture(scope="module")
def scaled(stack: Stack) -> Stack:
    """Three replicas behind Envoy, scraped by Prometheus, without an alert."""
    stack.files, stack.settings = SCALE, {"REPLICAS": str(REPLICAS), "DIGITS_MODEL_POLL": "1"}
    stack.up()
    until("every replica is scraped", lambda: query(UP).get("") == REPLICAS)
    until("Envoy is scraped", lambda: query('up{job="envoy"} == 1'))
    until("no alert fires", lambda: not firing(), within=3 * MINUTE)
    return stack


def test_a_rejected_model_is_reported_until_a_valid_one_is_loaded(scaled: Stack) -> None:
    # By renaming, as a deployment does.
    in_model_volume(scaled, f"cp {MODEL} /model/good && head -c 5000 {MODEL} > /model/bad && mv /model/bad {MODEL}")
    cause = Cause("the model's file cut short")
    cause.fires("DigitserveReloadRejected", 2 * MINUTE)
    in_model_volume(scaled, f"mv /model/good {MODEL}")
    cause.ends("the file put back")
    cause.clears("DigitserveReloadRejected", 2 * MINUTE)


def test_a_stopped_envoy_is_reported(scaled: Stack) -> None:
    scaled.compose("stop", "envoy")
    cause = Cause("docker compose stop envoy")
    cause.fires("DigitserveEnvoyDown", 3 * MINUTE)
    scaled.compose("start", "envoy")
    cause.ends("docker compose start envoy")
    cause.clears("DigitserveEnvoyDown", 2 * MINUTE)


def test_an_envoy_without_replicas_is_reported_by_envoy_and_by_the_service(scaled: Stack, images: list[bytes]) -> None:
    scaled.compose("stop", "service")
    cause = Cause("docker compose stop service, and a call")
    assert predict_once(images[0]) is None
    cause.fires("DigitserveNotServing", 3 * MINUTE)
    cause.fires("DigitserveEnvoyUnavailable", 3 * MINUTE)
    scaled.compose("start", "service")
    cause.ends("docker compose start service")
    cause.clears("DigitserveNotServing", 2 * MINUTE)
    until("Envoy finds a replica", lambda: predict_once(images[0]))
    cause.clears("DigitserveEnvoyUnavailable", 8 * MINUTE)


def test_a_container_that_restarts_repeatedly_is_reported(scaled: Stack) -> None:
    """It clears an hour after the last start; the test does not wait for that."""
    start = 'process_start_time_seconds{job="digitserve"}'
    victim = scaled.containers("service")[0]["Id"]
    until("every replica is scraped", lambda: query(UP).get("") == REPLICAS)
    cause = Cause("one replica killed 3 times")
    for _ in range(3):
        before = set(query(start).values())
        (container,) = [one for one in scaled.containers("service") if one["Id"] == victim]
        kill_with_calls(container)
        until("it is scraped again", lambda seen=before: set(query(start).values()) - seen, within=2 * MINUTE)
        time.sleep(15)  # so that a sample of this start is recorded
    cause.fires("DigitserveRestarting", 2 * MINUTE)


def test_a_missing_replica_and_an_expiring_certificate_are_reported(
    scaled: Stack, images: list[bytes], tmp_path: Path
) -> None:
    expires = tmp_path / "tls"
    expires.mkdir(mode=0o755)
    scaled.files, scaled.settings = TLS, {**scaled.settings, "TLS_DIRECTORY": str(expires)}
    certificate(expires, days=3)
    expiring = Cause("a certificate of 3 days at Envoy")
    scaled.up("--no-deps", "envoy")
    until("every replica was there for most of the time", lambda: surplus() > 7 * MINUTE, within=20 * MINUTE)
    gone = scaled.containers("service")[0]["Id"]
    docker("rm", "--force", gone)
    missing = Cause("docker rm --force of one of 3")
    missing.fires("DigitserveReplicasMissing", 9 * MINUTE)
    expiring.fires("DigitserveEnvoyCertificateExpires", 12 * MINUTE)
    missing.ends("docker compose up")
    scaled.up("--no-recreate")
    missing.clears("DigitserveReplicasMissing", 3 * MINUTE)
    certificate(expires, days=30)
    expiring.ends("a certificate of 30 days put in place")
    expiring.clears("DigitserveEnvoyCertificateExpires", 3 * MINUTE)
    assert predict_once(images[0]) is None, "it is TLS"


def test_a_queue_that_stays_full_is_reported(scaled: Stack, images: list[bytes], tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    scaled.files = [*SCALE, FAULTS]
    scaled.settings = {
        **scaled.settings,
        "E2E_FAULTS": str(tmp_path),
        "REPLICAS": "1",
        "DIGITS_TRANSPORT": "grpcio",
        "DIGITS_INLINE_IMAGES": "0",
        "DIGITS_MAX_BATCH_SIZE": "4",
        "DIGITS_MAX_QUEUED_IMAGES": "8",
    }
    scaled.up()
    cause = Cause("32 clients, runs of 200 ms, a queue of 8")
    faults.begin("slow")
    with Load(images, callers=32, rest=0.02).running() as load:
        cause.fires("DigitserveSaturated", 6 * MINUTE)
    say(f"{load}")
    cause.ends("the clients are gone")
    cause.clears("DigitserveSaturated", 6 * MINUTE)


def surplus() -> float:
    """Return the seconds of the last hour with every replica, minus those with another number."""
    counted = f"2 * (job:digits_replicas:up == bool {REPLICAS}) - 1"
    return 5 * sum(query(f"sum_over_time(({counted})[1h:5s])").values())
