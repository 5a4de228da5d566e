"""Where a server is: a name of gRPC's (https://grpc.github.io/grpc/core/md_doc_naming.html), looked at beforehand.

gRPC itself takes a port of 70000 as 4464, `http://HOST` as a host named `http`, and no port as 443.
"""

from __future__ import annotations

import ipaddress
import re

_SCHEMES = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds", "google-c2p")
_HOSTS = ("", "dns", "ipv4", "ipv6")  # the schemes under which hosts and ports stand
_SCHEME = re.compile(rf"({'|'.join(_SCHEMES)}):(.*)", re.DOTALL)
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]@]+):([0-9]{1,5})")


def checked(address: str) -> str:
    """The address; ValueError, saying what was expected, where gRPC would take it for another."""
    scheme, _, hosts = _parts(address)
    if scheme in _HOSTS and not all(map(_is_host_port, hosts)):
        raise ValueError(f"address is {address!r}; expected host:port, as localhost:50051, the port from 1 to 65535")
    return address


def is_this_machine(address: str) -> bool:
    """Whether all that goes to the address stays here, for sure: by loopback or by a socket in the file system."""
    scheme, asked, hosts = _parts(address)
    if scheme in _HOSTS:
        # A name server that is named may say of `localhost` what it likes.
        return not asked and all(_is_loopback(host.rpartition(":")[0]) for host in hosts)
    return scheme.startswith("unix")


def authority(address: str) -> str | None:
    """What names the server in each call where gRPC has no name of its own: HTTP knows no :authority of several."""
    _, _, hosts = _parts(address)
    return hosts[0] if len(hosts) > 1 else None


def _parts(address: str) -> tuple[str, str, list[str]]:
    """Scheme, name server, and the hosts with their ports."""
    found = _SCHEME.fullmatch(address)
    scheme, rest = (found[1], found[2]) if found else ("", address)
    if scheme == "dns" and rest.startswith("//"):
        asked, _, rest = rest[2:].partition("/")
        return scheme, asked, [rest]
    return scheme, "", rest.split(",") if scheme in ("ipv4", "ipv6") else [rest]


def _is_host_port(text: str) -> bool:
    found = _HOST_PORT.fullmatch(text)
    return found is not None and 1 <= int(found[2]) <= 65535


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
