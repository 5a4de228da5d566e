"""The hosts that the commands reach without a proxy, by the rules of Python and of gRPC."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request

import pytest
from conftest import DEAD_PROXIES, ROOT
from digitserve_client.address import proxy

from commandline import proxies

VARIABLES = ("no_proxy", "NO_PROXY", "no_grpc_proxy")


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in DEAD_PROXIES.items():
        monkeypatch.setenv(name, value)
    for name in VARIABLES:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("present", [{}, {"no_proxy": "far.example"}, {"NO_PROXY": "far.example"}])
def test_loopback_and_the_named_hosts_bypass_proxies_in_addition_to_those_of_the_environment(
    dead: pytest.MonkeyPatch, present: dict[str, str]
) -> None:
    for name, value in present.items():
        dead.setenv(name, value)
    proxies.bypass("10.1.2.3")
    for host in ("localhost:50051", "127.0.0.1:50051", "10.1.2.3:50051", *(["far.example:1"] if present else [])):
        assert urllib.request.proxy_bypass(host), host
        assert proxy(host) is None, host
    assert not urllib.request.proxy_bypass("other.example:1")
    assert proxy("other.example:1") is not None


def test_a_list_for_grpc_alone_is_extended_too(dead: pytest.MonkeyPatch) -> None:
    dead.setenv("no_grpc_proxy", "far.example")
    proxies.bypass("10.1.2.3")
    assert proxy("10.1.2.3:50051") is None
    assert proxy("far.example:50051") is None
    assert os.environ["no_grpc_proxy"].startswith("far.example,")  # noqa: SIM112 (gRPC only reads this name)


@pytest.mark.usefixtures("dead")
def test_a_proxy_is_described_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://me:secret-word@proxy.example:3128")
    said = proxies.describe("http://far.example:9090/x")
    assert said == ", by way of the proxy proxy.example:3128 of http_proxy; no_proxy=far.example bypasses it"
    proxies.bypass("far.example")
    assert proxies.describe("http://far.example:9090/x") == ""


def test_the_benchmark_bypasses_proxies_for_its_servers() -> None:
    ask = "import bench, urllib.request; print(bool(urllib.request.proxy_bypass('127.0.0.1:1')))"
    command = [sys.executable, "-c", ask]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **DEAD_PROXIES}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"
