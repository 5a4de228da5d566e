"""Find the addresses of the compose stack on this machine, by `docker compose config`, which reads .env."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENVOY_TLS = "/etc/envoy/tls"
TOKENS = "/tokens"
GRPC_PORT, HTTP_PORT, PROMETHEUS_PORT = 50051, 8000, 9090  # in the containers


@dataclass(frozen=True)
class StackAddresses:
    """Addresses for a client on this machine, and the files that it needs."""

    grpc: str = "localhost:50051"
    http: str | None = "http://localhost:8000"
    prometheus: str = "http://localhost:9090"
    tls_ca: Path | None = None
    tokens_file: Path | None = None


def read_stack(root: Path) -> StackAddresses:
    """Read compose's configuration, from .env and COMPOSE_FILE; return the defaults without docker compose."""
    command = ["docker", "compose", "config", "--format", "json"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return StackAddresses()
    return parse_config(json.loads(done.stdout))


def parse_config(config: dict[str, Any]) -> StackAddresses:
    """Find the addresses in the output of `docker compose config --format json`."""
    services = config["services"]
    edge = services.get("envoy", services["service"])
    tls, tokens = _mount(edge, ENVOY_TLS), _mount(services["service"], TOKENS)
    return StackAddresses(
        grpc=_published(edge, GRPC_PORT) or StackAddresses.grpc,
        http=f"http{'s' if tls else ''}://{http}" if (http := _published(edge, HTTP_PORT)) else None,
        prometheus=f"http://{_published(services['prometheus'], PROMETHEUS_PORT)}",
        tls_ca=tls / "tls.crt" if tls else None,
        tokens_file=tokens / "tokens" if tokens else None,
    )


def _published(service: dict[str, Any], target: int) -> str | None:
    port = next((port for port in service.get("ports", []) if port["target"] == target), None)
    if port is None:
        return None
    host = port.get("host_ip", "0.0.0.0")  # noqa: S104 (published on all addresses, including loopback)
    loopback = {"0.0.0.0": "localhost", "127.0.0.1": "localhost", "::": "localhost"}  # noqa: S104 (as above)
    host = loopback.get(host, f"[{host}]" if ":" in host else host)
    return f"{host}:{port['published']}"


def _mount(service: dict[str, Any], target: str) -> Path | None:
    sources = [volume["source"] for volume in service.get("volumes", []) if volume["target"] == target]
    return Path(sources[0]) if sources else None
