"""The clients of examples/, in Go, Java, Node and Rust, built from their lock files and run against both transports."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from typing import TYPE_CHECKING

import pytest
import toolchains
from secure_server import TOKEN, SecureServer, serving_securely

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import ServiceProcess
    from toolchains import Client

BEHAVIOURS = [
    *("unary", "stream", "deadline", "cancel", "gzip", "metadata", "too large", "health", "reflection v1"),
    *("reflection v1alpha", "tls", "wrong token"),
]

# (transport, behaviour) that may fail, with the reason; a pass then fails the run.
ALLOWED: dict[tuple[str, str], str] = {}


@pytest.fixture(scope="module")
def secure(model_path: Path, transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureServer]:
    del transport  # sets the environment
    with serving_securely(model_path, tmp_path_factory.mktemp("secure")) as server:
        yield server


@pytest.fixture(scope="module", params=list(toolchains.CLIENTS))
def client(request: pytest.FixtureRequest) -> Client:
    return toolchains.CLIENTS[request.param]()


@pytest.fixture(scope="module")
def results(client: Client, server: ServiceProcess, secure: SecureServer) -> dict[str, str]:
    """Run the check program; return its result of each behaviour: `ok`, or the failure."""
    command = [*client.check, server.address, secure.address, secure.authority, TOKEN]
    done = subprocess.run(command, cwd=client.folder, capture_output=True, text=True, check=False, timeout=300)
    found = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert list(found) == BEHAVIOURS, done.stdout + done.stderr
    assert (done.returncode == 0) == all(result == "ok" for result in found.values()), done.stderr
    return found


def test_the_smallest_example_reads_a_digit(client: Client, server: ServiceProcess) -> None:
    environment = {**os.environ, "DIGITS_ADDRESS": server.address}
    done = subprocess.run(
        client.predict, cwd=client.folder, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("digit 0, activation 0.9"), done.stdout


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_a_client_finds_the_behaviour(
    behaviour: str, results: dict[str, str], transport: str, request: pytest.FixtureRequest
) -> None:
    if reason := ALLOWED.get((transport, behaviour)):
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    assert results[behaviour] == "ok"


def test_the_examples_are_formatted() -> None:
    run = partial(subprocess.run, capture_output=True, text=True, check=False, timeout=60)
    gofmt = run([toolchains.program("gofmt"), "-l", "check", "predict"], cwd=toolchains.EXAMPLES / "go")
    assert (gofmt.returncode, gofmt.stdout) == (0, ""), gofmt.stderr
    rustfmt = run([toolchains.program("cargo"), "fmt", "--check"], cwd=toolchains.EXAMPLES / "rust")
    assert rustfmt.returncode == 0, rustfmt.stdout
