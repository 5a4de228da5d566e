"""HTTP proxies of the environment, and the hosts that are reached without one."""

from __future__ import annotations

import os
import urllib.parse
import urllib.request

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def bypass(*hosts: str) -> None:
    """Let this process and those that it starts reach these hosts, and loopback, without a proxy.

    gRPC reads `no_grpc_proxy` before `no_proxy`; Python, Go and curl prefer `no_proxy` to `NO_PROXY`.
    """
    present = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    os.environ["no_proxy"] = _extended(present, hosts)
    if "no_grpc_proxy" in os.environ:
        os.environ["no_grpc_proxy"] = _extended(os.environ["no_grpc_proxy"], hosts)  # noqa: SIM112 (as above)


def describe(url: str) -> str:
    """Return the end of a message about the URL: the proxy of Python's HTTP client, without a password; or ""."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.netloc):
        return ""
    address = urllib.parse.urlsplit(proxy).netloc.rpartition("@")[2] or proxy
    return f", by way of the proxy {address} of {parts.scheme}_proxy; no_proxy={parts.hostname} bypasses it"


def _extended(present: str, hosts: tuple[str, ...]) -> str:
    entries = [entry.strip() for entry in present.split(",") if entry.strip()]
    return ",".join(dict.fromkeys((*entries, *LOOPBACK, *hosts)))
