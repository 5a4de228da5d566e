"""Servers listen on exactly the addresses of their options, the same on both transports, and log them."""

from __future__ import annotations

import errno
import socket
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import grpc
import pytest
from conftest import ANSWERS_WITHIN, on_both_transports, serving
from digitserve_client import DigitsClient
from prometheus_client import CollectorRegistry
from structlog.testing import CapturingLogger

from service.address import ensure_bindable, join_host_port, listen
from service.errors import AddressInUse
from service.observability.metrics import Metrics
from service.observability.metrics_server import MetricsServer
from service.transports.call_log import CallLogger
from service.transports.grpcio.server import RestartingServer
from service.transports.grpcio.unsent_replies import UnsentReplies

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOOPBACK = ("127.0.0.1", "::1")
ANY, ANY_IPV4 = "::", "0.0.0.0"  # noqa: S104 (the subject of the test)
OF_NO_MACHINE = "192.0.2.1"  # RFC 5737


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on loopback")


def answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), ANSWERS_WITHIN):
            return True
    except OSError as e:
        assert e.errno in {errno.ECONNREFUSED, errno.EADDRNOTAVAIL}, e
        return False


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", {"127.0.0.1"}),
        (ANY_IPV4, {"127.0.0.1"}),
        pytest.param("::1", {"::1"}, marks=needs_ipv6),
        pytest.param(ANY, {*LOOPBACK}, marks=needs_ipv6),
        ("localhost", None),
    ],
)
@on_both_transports
def test_both_ports_are_only_on_the_requested_addresses(model_path: Path, host: str, expected: set[str] | None) -> None:
    if expected is None:
        expected = {str(found[4][0]) for found in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)}
    with serving(model_path, "--host", host, "--metrics-host", host) as service:
        url = urlsplit(service.metrics_url)
        assert url.hostname == host
        for port in (int(service.address.rpartition(":")[2]), int(url.port or 0)):
            assert {address for address in LOOPBACK if answers(address, port)} == expected
        assert service.address.startswith(f"[{host}]:" if ":" in host else f"{host}:")
        if host not in {ANY, ANY_IPV4}:
            assert service.series()
            with DigitsClient(service.address, timeout=ANSWERS_WITHIN) as client:
                assert client.is_serving()


@pytest.fixture
def resolve_to(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that resolves a name to these addresses, as a hosts file does."""
    resolve = socket.getaddrinfo

    def patch(name: str, *addresses: str) -> None:
        def getaddrinfo(host: str, *rest: Any, **more: Any) -> list[Any]:
            return [one for each in (addresses if host == name else (host,)) for one in resolve(each, *rest, **more)]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return patch


@needs_ipv6
def test_a_name_of_two_addresses_has_one_port_on_both(resolve_to: Callable[..., None]) -> None:
    resolve_to("here.example", "127.0.0.1", "::1", "127.0.0.1")
    listeners = listen("here.example", 0)
    port = listeners[0].getsockname()[1]
    try:
        assert [listener.getsockname()[:2] for listener in listeners] == [(each, port) for each in LOOPBACK]
        with pytest.raises(AddressInUse, match=rf"^port {port} on here\.example is in use"):
            ensure_bindable("here.example", port)
    finally:
        for listener in listeners:
            listener.close()
    assert ensure_bindable("here.example", port) == [*LOOPBACK]


def test_a_foreign_address_is_skipped_if_another_address_is_local(resolve_to: Callable[..., None]) -> None:
    resolve_to("here.example", OF_NO_MACHINE, "127.0.0.1")
    assert ensure_bindable("here.example", 0) == ["127.0.0.1"]
    with pytest.raises(AddressInUse, match=rf"^cannot listen on {OF_NO_MACHINE} port 0: "):
        ensure_bindable(OF_NO_MACHINE, 0)


@needs_ipv6
def test_a_port_in_use_on_one_of_two_addresses_is_reported(resolve_to: Callable[..., None]) -> None:
    resolve_to("here.example", *LOOPBACK)
    with closing(socket.create_server(("::1", 0), family=socket.AF_INET6)) as other:
        port = other.getsockname()[1]
        with pytest.raises(AddressInUse):
            listen("here.example", port)
        assert not answers("127.0.0.1", port)


@needs_ipv6
def test_http_answers_on_every_address_of_a_name(resolve_to: Callable[..., None]) -> None:
    resolve_to("here.example", *LOOPBACK)
    endpoint = MetricsServer(CollectorRegistry(), is_serving=lambda: True)
    endpoint.start("here.example", 0)
    try:
        assert all(answers(address, endpoint.port) for address in LOOPBACK)
    finally:
        endpoint.stop()
    assert not any(answers(address, endpoint.port) for address in LOOPBACK)


def grpcio_server() -> RestartingServer:
    return RestartingServer(
        [], None, Metrics(CollectorRegistry()), CallLogger(CapturingLogger()), bool, UnsentReplies(0, bool)
    )


@needs_ipv6
async def test_grpcio_answers_on_every_address_of_a_name(resolve_to: Callable[..., None]) -> None:
    resolve_to("here.example", *LOOPBACK)
    server = grpcio_server()
    port = await server.start("here.example", 0)
    try:
        for address in LOOPBACK:
            async with grpc.aio.insecure_channel(join_host_port(address, port)) as channel:
                call: Any = channel.unary_unary("/no/Such")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(b"", timeout=ANSWERS_WITHIN)
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        await server.stop(0)


async def test_an_address_that_disappears_leaves_no_port_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.transports.grpcio.server.ensure_bindable", lambda *_: ["127.0.0.1", OF_NO_MACHINE])
    server = grpcio_server()
    with pytest.raises(AddressInUse, match=f"cannot listen on {OF_NO_MACHINE} port"):
        await server.start("here.example", 0)
    assert not answers("127.0.0.1", server._port)
