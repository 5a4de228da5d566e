"""The connections of a port, as the kernel reports them."""

from __future__ import annotations

import contextlib
import math
import socket
from pathlib import Path

import pytest

from service.observability import connections


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_open_connections_to_the_port_are_counted_and_no_others(family: socket.AddressFamily, host: str) -> None:
    if family == socket.AF_INET6 and not Path("/proc/self/net/if_inet6").read_text():
        pytest.skip("no IPv6 here")
    with contextlib.ExitStack() as stack:
        listening, other = (stack.enter_context(socket.create_server((host, 0), family=family)) for _ in range(2))
        port, elsewhere = (one.getsockname()[1] for one in (listening, other))
        assert connections.count_established(port) == 0
        callers = [stack.enter_context(socket.create_connection((host, port), 5)) for _ in range(3)]
        stack.enter_context(socket.create_connection((host, elsewhere), 5))
        assert connections.count_established(port) == 3
        assert connections.count_established(elsewhere) == 1
        callers[0].close()
        stack.enter_context(listening.accept()[0])
        assert connections.count_established(port) == 2
        assert connections.count_established(callers[1].getsockname()[1]) == 1  # its other end


@pytest.mark.parametrize("table", ["gone", ""])
def test_a_system_without_socket_tables_has_no_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, table: str
) -> None:
    monkeypatch.setattr(connections, "_TABLES", (tmp_path / table,))
    assert math.isnan(connections.count_established(1))
