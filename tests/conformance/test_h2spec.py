"""Conformance to RFC 7540 and RFC 7541 by h2spec's 146 tests, on both transports, plain and over TLS."""

from __future__ import annotations

import json
import subprocess
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import toolchains
from certificates import Authority
from conftest import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

ALLOWED = Path(__file__).parent / "h2spec" / "allowed.toml"
AT_A_TIME = 16  # a failed test waits for its time limit, so tests run side by side
TIME_LIMIT = "2s"


@pytest.fixture(scope="module")
def h2spec() -> Path:
    return toolchains.h2spec()


@pytest.fixture(scope="module", params=["plain", "tls"])
def target(
    request: pytest.FixtureRequest, model_path: Path, transport: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[str]]:
    """Start a server for h2spec; yield the options with its address."""
    del transport  # sets the environment
    options: list[str | Path] = []
    if request.param == "tls":
        pair = Authority(tmp_path_factory.mktemp("authority")).issue("server")
        options = ["--tls-cert", pair.certificate, "--tls-key", pair.key]
    with serving(model_path, *options) as service:
        yield ["-port", service.address.rsplit(":", 1)[1], *(["-tls"] if request.param == "tls" else [])]


def allowed(transport: str) -> dict[str, str]:
    """Return the tests that this transport may fail, each with its reason."""
    groups = tomllib.loads(ALLOWED.read_text())[transport]
    return {test: group["reason"] for group in groups for test in group["tests"]}


def run(*command: str | Path) -> list[dict[str, Any]]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_h2spec_fails_only_the_allowed_tests(h2spec: Path, target: list[str], transport: str) -> None:
    tests = [test["id"] for test in run(h2spec, "-list")]
    assert len(tests) == len(set(tests)) == 146
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        found = list(pool.map(lambda test: run(h2spec, *target, "-timeout", TIME_LIMIT, test), tests))
    results = {result["id"]: result for [result] in found}
    assert set(results) == set(tests)
    failed = {test: result for test, result in results.items() if result["outcome"] != "passed"}
    expected = allowed(transport)
    new = [failed[test] for test in failed if test not in expected]
    assert not new, f"not in {ALLOWED.name}: {json.dumps(new, indent=2)}"
    mended = [f"{test}: {reason}" for test, reason in expected.items() if test not in failed]
    assert not mended, f"pass now, take them out of {ALLOWED.name}: {json.dumps(mended, indent=2)}"
