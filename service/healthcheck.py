"""The container's health probe: exit status 0 if every server in the container answers GET /healthz with 200.

python -I -S service/healthcheck.py [PID ...]    without a PID: every process that the probe can see

A server publishes the address of /healthz as the name of an anonymous file, which Linux shows in /proc/PID/fd. So the
probe knows the true address, whether a flag, a variable or a free port chose it, and the server writes no file. TLS,
tokens and proxies do not apply to it.

The probe costs 10 ms of CPU, and imports only a few modules: `socket` alone would double that.
"""

import _socket
import os
import sys

TIMEOUT = 5.0  # seconds, for each step of an exchange
_NAME = "digitserve-healthz@"
_LINK = f"/memfd:{_NAME}"
_MAX_RESPONSE = 4096  # bytes
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (the address of a listener is not that of a client)


def publish_address(host: str, port: int) -> int | None:
    """Publish the address until the returned descriptor is closed; None if the operating system does not support it."""
    try:
        return os.memfd_create(f"{_NAME}{_LOOPBACK.get(host, host)}:{port}")
    except (AttributeError, OSError):
        return None


def find_addresses(processes: list[str]) -> list[tuple[str, int]]:
    """Return the addresses that these processes publish; processes of other users are skipped."""
    addresses = []
    for process in processes:
        try:
            descriptors = sorted(os.listdir(f"/proc/{process}/fd"), key=int)  # noqa: PTH208 (pathlib: 20 ms of CPU)
        except OSError:
            continue
        for descriptor in descriptors:
            try:
                link = os.readlink(f"/proc/{process}/fd/{descriptor}")  # noqa: PTH115 (as above)
            except OSError:
                continue
            if link.startswith(_LINK):
                host, _, port = link.removeprefix(_LINK).removesuffix(" (deleted)").rpartition(":")
                addresses.append((host, int(port)))
                break
    return addresses


def probe(host: str, port: int) -> tuple[bool, str]:
    """Return whether /healthz answers with 200, and its text or the reason."""
    connection = _socket.socket(_socket.AF_INET6 if ":" in host else _socket.AF_INET, _socket.SOCK_STREAM)
    response = b""
    try:
        connection.settimeout(TIMEOUT)
        connection.connect((host, port))
        connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        while len(response) < _MAX_RESPONSE and (more := connection.recv(_MAX_RESPONSE)):
            response += more
    except OSError as e:
        return False, str(e)
    finally:
        connection.close()
    head, _, text = response.decode("ascii", "replace").partition("\r\n\r\n")
    return head.split()[1:2] == ["200"], text.strip() or f"not an HTTP response: {head[:64].strip()!r}"


def main(processes: list[str]) -> int:
    """Return the exit status: 0 every server serves, 1 one does not or there is none, 2 wrong usage."""
    if not all(process.isdecimal() for process in processes):
        print("usage: healthcheck.py [PID ...]", file=sys.stderr)  # noqa: T201 (a probe's output)
        return 2
    processes = processes or [name for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 (as above)
    addresses = find_addresses(processes)
    if not addresses:
        print("no server: expected a process of this user that serves /healthz", file=sys.stderr)  # noqa: T201 (as above)
        return 1
    status = 0
    for host, port in addresses:
        serves, text = probe(host, port)
        print(f"{host}:{port}: {text}", file=sys.stdout if serves else sys.stderr)
        status |= not serves
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
