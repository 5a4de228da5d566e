"""Validate a server's address, a gRPC name (https://grpc.github.io/grpc/core/md_doc_naming.html).

gRPC itself takes a port of 70000 as 4464, `http://HOST` as a host named `http`, and no port as 443.
"""

from __future__ import annotations

import ipaddress
import os
import re
import urllib.parse
from typing import NamedTuple

_SCHEMES = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds", "google-c2p")
_HOSTS = ("", "dns", "ipv4", "ipv6")  # the schemes under which hosts and ports stand
_SCHEME = re.compile(rf"({'|'.join(_SCHEMES)}):(.*)", re.DOTALL)
_URL = re.compile(r"https?://(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/?#\[\]@\\]+)(?::([0-9]{1,5}))?/?")
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]@]+):([0-9]{1,5})")


def validate(address: str) -> str:
    """Return the address. Raise ValueError if gRPC would take it for another."""
    scheme, _, hosts = _parts(address)
    if scheme in _HOSTS and not all(map(_is_host_port, hosts)):
        raise ValueError(f"address is {address!r}; expected host:port, as localhost:50051, the port from 1 to 65535")
    if scheme == "unix" and not hosts[0].strip("/"):
        raise ValueError(f"address is {address!r}; expected unix:PATH, as unix:/run/digits.sock")
    return address


def is_url(address: str) -> bool:
    """Whether the address is a URL of HTTP and no gRPC name."""
    return address.startswith(("http://", "https://"))


def validate_url(address: str) -> str:
    """Return a URL of HTTP without a path; ValueError for another."""
    parsed = _URL.fullmatch(address)
    if parsed is None or not 1 <= int(parsed[2] or 1) <= 65535:
        raise ValueError(f"address is {address!r}; expected http://host:port, as http://localhost:8000, or https://")
    return address


def is_loopback(address: str) -> bool:
    """Whether all that goes to the address stays here, for sure: by loopback or by a socket in the file system."""
    if is_url(address):
        url = _URL.fullmatch(address)
        return url is not None and _is_loopback_host(url[1])
    scheme, resolver, hosts = _parts(address)
    if scheme in _HOSTS:
        # A name server in the address may resolve `localhost` to any address.
        return not resolver and all(_is_loopback_host(host.rpartition(":")[0]) for host in hosts)
    return scheme.startswith("unix")


def authority(address: str) -> str | None:
    """Return the :authority of calls to several addresses, for which gRPC has none; HTTP allows only one."""
    _, _, hosts = _parts(address)
    return hosts[0] if len(hosts) > 1 else None


def endpoints(address: str) -> list[tuple[str, int] | str]:
    """Return the targets of a socket, (host, port) or a path; none if only gRPC can resolve them."""
    scheme, resolver, hosts = _parts(address)
    if scheme in _HOSTS and not resolver:
        return [(host.strip("[]"), int(port)) for host, _, port in (each.rpartition(":") for each in hosts)]
    if scheme == "unix":
        return [hosts[0].removeprefix("//")]
    return ["\0" + hosts[0]] if scheme == "unix-abstract" else []


def proxy(address: str) -> Proxy | None:
    """The proxy of the environment that gRPC's own rules choose for the address; none to this machine."""
    names = [name for name in ("grpc_proxy", "https_proxy", "http_proxy") if name in os.environ]
    parsed = endpoints(address)
    if not names or len(parsed) != 1 or isinstance(parsed[0], str) or is_loopback(address):
        return None
    no_proxy = os.environ.get("no_grpc_proxy", os.environ.get("no_proxy", ""))  # noqa: SIM112 (gRPC reads these alone)
    url = urllib.parse.urlsplit(os.environ[names[0]])
    if (
        url.scheme != "http"
        or not url.hostname
        or any(_bypasses_proxy(parsed[0][0], entry) for entry in no_proxy.split(","))
    ):
        return None
    credentials = urllib.parse.unquote(url.netloc.rpartition("@")[0])
    return Proxy(names[0], url.hostname, url.port or 443, credentials)


class Proxy(NamedTuple):
    """An HTTP proxy: its environment variable, its address, and `user:password` or an empty string."""

    variable: str
    host: str
    port: int
    credentials: str


def _bypasses_proxy(host: str, entry: str) -> bool:
    """Whether an entry of `no_proxy` covers a host: as its end, or as the network of its address."""
    entry = entry.strip().lower()
    if not entry:
        return False
    if host.lower().endswith(entry):
        return True
    try:
        return "/" in entry and ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def _parts(address: str) -> tuple[str, str, list[str]]:
    """Scheme, name server, and the hosts with their ports."""
    parsed = _SCHEME.fullmatch(address)
    scheme, rest = (parsed[1], parsed[2]) if parsed else ("", address)
    if scheme == "dns" and rest.startswith("//"):
        resolver, _, rest = rest[2:].partition("/")
        return scheme, resolver, [rest]
    return scheme, "", rest.split(",") if scheme in ("ipv4", "ipv6") else [rest]


def _is_host_port(text: str) -> bool:
    parsed = _HOST_PORT.fullmatch(text)
    return parsed is not None and 1 <= int(parsed[2]) <= 65535


def _is_loopback_host(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
