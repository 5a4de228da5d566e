"""The client's error without a connection: the address, the cause, and the fix."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from certificates import Authority, Pair
from conftest import ROOT, SAMPLES, on_both_transports, serving
from digitserve_client import AsyncDigitsClient, DigitsClient, DigitsError
from digitserve_client.address import Proxy, endpoints, proxy
from grpc_health.v1 import health_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import ServiceProcess

BLANK = np.zeros((1, 784), np.uint8)
IMAGES = SAMPLES / "digits-100-images-idx3-ubyte"
TO_START = "the port is closed; start a server with `make run` or `python -m service`"


def said(address: str, ask: Callable[[DigitsClient], Any], **parameters: Any) -> str:
    with DigitsClient(address, **parameters) as client, pytest.raises(DigitsError) as caught:
        ask(client)
    return str(caught.value)


async def said_async(address: str, ask: Callable[[AsyncDigitsClient], Any], **parameters: Any) -> str:
    async with AsyncDigitsClient(address, **parameters) as client:
        with pytest.raises(DigitsError) as caught:
            await ask(client)
    return str(caught.value)


def predict(client: Any) -> Any:
    return client.predict(BLANK)


async def streamed(client: AsyncDigitsClient) -> None:
    async def batches() -> Any:
        yield BLANK

    async for _ in client.predict_stream(batches()):
        pass


CALLS: dict[str, Callable[[Any], Any]] = {
    "predict": predict,
    "explain": lambda client: client.explain(BLANK),
    "network": lambda client: client.network(),
    "health": lambda client: client.health(),
}


@pytest.mark.parametrize("name", CALLS)
async def test_without_a_server_an_error_names_the_address_and_the_start_command(name: str) -> None:
    """The error comes long before the deadline of an hour."""
    expected = f"UNAVAILABLE: 127.0.0.1:1: {TO_START}"
    assert said("127.0.0.1:1", CALLS[name], timeout=3600) == expected
    assert await said_async("127.0.0.1:1", CALLS[name], timeout=3600) == expected


async def test_without_a_server_a_stream_has_the_same_error() -> None:
    expected = f"UNAVAILABLE: localhost:1: {TO_START}"
    assert said("localhost:1", lambda client: list(client.predict_stream([BLANK]))) == expected
    assert await said_async("localhost:1", streamed) == expected


async def test_a_wait_that_times_out_names_its_condition() -> None:
    expected = f"UNAVAILABLE: 127.0.0.1:1: {TO_START}; health is not SERVING after 0.1 s"
    assert said("127.0.0.1:1", lambda client: client.wait_until_serving(0.1)) == expected
    assert await said_async("127.0.0.1:1", lambda client: client.wait_until_serving(0.1)) == expected


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("no-such-host.invalid:50051", "no-such-host.invalid:50051: the name does not resolve"),
        ("unix:/nonexistent/socket", f"unix:/nonexistent/socket: {TO_START}"),
        ("unix-abstract:nobody-listens-here", f"unix-abstract:nobody-listens-here: {TO_START}"),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", f"ipv4:127.0.0.1:1,127.0.0.1:2: {TO_START}"),
    ],
)
def test_every_kind_of_address_has_its_reason(address: str, sentence: str) -> None:
    assert said(address, predict) == f"UNAVAILABLE: {sentence}"


def predict_by_command(address: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "digitserve", "predict", IMAGES, "--address", address, *options]
    quiet = "GRPC_VERBOSITY"  # which the tests have from the server's module, and a terminal has not
    environment = {name: value for name, value in os.environ.items() if name != quiet}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_line_prints_the_error_in_one_line() -> None:
    done = predict_by_command("localhost:1")
    assert (done.returncode, done.stderr) == (3, f"UNAVAILABLE: localhost:1: {TO_START}\n")


@pytest.fixture
def silent() -> Iterator[str]:
    """A port that accepts connections and sends no data."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield "127.0.0.1:{}".format(*listening.getsockname()[1:])


@pytest.mark.slow
async def test_a_connection_that_was_never_made_is_not_an_answer_that_came_late(silent: str) -> None:
    expected = f"DEADLINE_EXCEEDED: {silent}: accepts the connection, but sends no data; no connection within 5 s"
    assert said(silent, predict, timeout=5) == expected
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    assert await said_async(silent, predict, timeout=5) == expected
    assert ticks > 10, "the loop continues during the diagnosis of the connection"
    ticking.cancel()


def test_a_stopped_server_is_reported_after_the_retries(model_path: Path) -> None:
    with serving(model_path) as service, DigitsClient(service.address, timeout=20) as client:
        client.predict(BLANK)
        service.process.kill()
        service.process.wait()
        with pytest.raises(DigitsError, match=rf"^UNAVAILABLE: {service.address}: the port is closed"):
            client.predict(BLANK)


class NotServing:
    """grpc.health.v1 of a server that reports NOT_SERVING, for a Watch too."""

    def service(self, details: Any) -> Any:
        reply = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
        if not details.method.endswith("Watch"):
            return None

        def watch(_: Any, context: Any) -> Iterator[Any]:
            left = threading.Event()
            context.add_callback(left.set)
            yield reply
            left.wait()

        return grpc.unary_stream_rpc_method_handler(
            watch, health_pb2.HealthCheckRequest.FromString, health_pb2.HealthCheckResponse.SerializeToString
        )


def test_a_server_that_is_not_serving_is_reported_as_such() -> None:
    from concurrent import futures  # noqa: PLC0415 (only for this test)

    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=(NotServing(),))  # type: ignore[arg-type]
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        assert said(address, predict) == f"UNAVAILABLE: {address}: the server is NOT_SERVING"
    finally:
        server.stop(0).wait()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


@on_both_transports
async def test_a_tls_error_is_reported_with_its_cause(model_path: Path, authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "strange", "stranger")
    pair, ours = authority.issue("server"), {"tls_ca": authority.certificate}
    with serving(model_path, "--host", "0.0.0.0", "--tls-cert", pair.certificate, "--tls-key", pair.key) as service:  # noqa: S104
        port = service.address.rpartition(":")[2]
        here, elsewhere = f"localhost:{port}", f"127.0.0.2:{port}"
        for address, files, sentence in (
            (here, {}, "the server speaks TLS; expected tls_ca, the CA that vouches for it"),
            (here, {"tls_ca": stranger.certificate}, "no CA that is trusted vouches for the server's certificate"),
            (elsewhere, ours, "the server's certificate is not for 127.0.0.2"),
        ):
            expected = f"UNAVAILABLE: {address}: {sentence}"
            assert said(address, predict, **files).startswith(expected)
            assert (await said_async(address, predict, **files)).startswith(expected)
        done = predict_by_command(here, "--tls-ca", stranger.certificate)
        assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
        assert done.stderr.startswith(f"UNAVAILABLE: {here}: no CA that is trusted")
    with serving(model_path) as service:
        expected = f"UNAVAILABLE: {service.address}: the server does not speak TLS; expected no tls_ca"
        assert said(service.address, predict, **ours) == expected
        trusting = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
        assert said(service.address, predict, credentials=trusting) == expected
        metrics = service.metrics_url.split("/")[2]
        assert said(metrics, predict) == f"UNAVAILABLE: {metrics}: does not speak gRPC; is it the right port?"


@contextlib.contextmanager
def tls_server(pair: Pair, ca: Path | None = None, protocols: list[str] | None = None) -> Iterator[str]:
    """A TLS server of OpenSSL that completes handshakes and closes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if protocols:
        context.set_alpn_protocols(protocols)
    if ca:
        context.load_verify_locations(ca)
        context.verify_mode = ssl.CERT_REQUIRED

    def run(listening: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it is closed
            while True:
                connection, _ = listening.accept()
                with (
                    contextlib.suppress(OSError),
                    connection,
                    context.wrap_socket(connection, server_side=True) as done,
                ):
                    done.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=run, args=(listening,), daemon=True)
        thread.start()
        yield "127.0.0.1:{}".format(*listening.getsockname()[1:])
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(20)


def test_the_alert_of_a_tls_server_is_reported(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "strange", "stranger").issue("caller")
    expired, pair, trusted = authority.issue("expired", days=-1), authority.issue("server"), authority.certificate

    def refused(address: str, shown: Pair | None = None) -> str:
        files = {"tls_cert": shown.certificate, "tls_key": shown.key} if shown else {}
        return said(address, predict, tls_ca=trusted, **files).removeprefix(f"UNAVAILABLE: {address}: ")

    with tls_server(pair, trusted, ["h2"]) as address:
        assert refused(address) == "the server requires a certificate; expected tls_cert and tls_key"
        assert refused(address, stranger) == "the server does not trust the CA of tls_cert"
        assert refused(address, expired) == "the server rejects tls_cert, which has expired"
    with tls_server(pair) as address:
        assert refused(address) == "the server speaks TLS, but not HTTP/2 (ALPN h2)"
    with tls_server(authority.issue("old", days=-1), None, ["h2"]) as address:
        assert refused(address) == "the server's certificate has expired"


class ConnectProxy:
    """An HTTP proxy that forwards every CONNECT to one server, or rejects it; it records the requests."""

    def __init__(self, server: str, refusal: bytes = b"") -> None:
        self._server, self._refusal = server, refusal
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:{}".format(*self._listening.getsockname()[1:])
        self.asked: list[str] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096)
            self.asked.append(head.split(b"\r\n", 1)[0].decode())
            if self._refusal:
                connection.sendall(self._refusal)
                return
            host, _, port = self._server.rpartition(":")
            with socket.create_connection((host, int(port))) as onward:
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                threading.Thread(target=_copy, args=(onward, connection), daemon=True).start()
                _copy(connection, onward)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


def _copy(source: socket.socket, to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            to.sendall(chunk)
        to.shutdown(socket.SHUT_WR)


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
async def test_loopback_never_goes_through_a_proxy(
    server: ServiceProcess, no_proxies: pytest.MonkeyPatch, variable: str
) -> None:
    no_proxies.setenv(variable, "http://127.0.0.1:1")
    with DigitsClient(server.address) as client:
        assert len(client.predict(BLANK)) == 1
        assert client.health() == "SERVING"
    async with AsyncDigitsClient(server.address) as asynchronous:
        assert len(await asynchronous.predict(BLANK)) == 1
    command = [sys.executable, "-m", "digitserve", "health", "--address", server.address]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "SERVING\n"), done.stderr


def test_a_proxy_that_fails_is_named_without_its_password(no_proxies: pytest.MonkeyPatch) -> None:
    no_proxies.setenv("https_proxy", "http://me:secret-word@127.0.0.1:1")
    by_way = "UNAVAILABLE: far.example:50051, by way of the proxy 127.0.0.1:1 of https_proxy"
    found = said("far.example:50051", predict)
    assert found == f"{by_way}: the proxy does not listen; no_proxy=far.example goes past the proxy"


def test_the_answer_of_a_proxy_is_reported(no_proxies: pytest.MonkeyPatch) -> None:
    refusing = ConnectProxy("", b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
    no_proxies.setenv("http_proxy", f"http://{refusing.address}")
    by_way = f"UNAVAILABLE: far.example:50051, by way of the proxy {refusing.address} of http_proxy"
    found = said("far.example:50051", predict)
    refusing.close()
    assert found == f"{by_way}: the proxy answers 403 Forbidden; no_proxy=far.example goes past the proxy"


def test_a_working_proxy_is_used(server: ServiceProcess, no_proxies: pytest.MonkeyPatch) -> None:
    leading = ConnectProxy(server.address)
    no_proxies.setenv("http_proxy", f"http://{leading.address}")
    with DigitsClient("far.example:50051") as client:
        assert len(client.predict(BLANK)) == 1
    leading.close()
    assert leading.asked == ["CONNECT far.example:50051 HTTP/1.1"]


@pytest.mark.parametrize(
    ("past", "address", "used"),
    [
        ("", "far.example:50051", True),
        ("near.example", "far.example:50051", True),
        ("near.example, .example", "far.example:50051", False),
        ("FAR.example", "far.example:50051", False),
        ("192.0.2.0/24", "192.0.2.7:50051", False),
        ("198.51.100.0/24,nonsense/99", "192.0.2.7:50051", True),
        ("192.0.2.7", "192.0.2.7:50051", False),
        ("", "dns:///far.example:50051", True),
    ],
)
def test_the_rules_of_no_proxy_are_those_of_grpc(
    server: ServiceProcess, no_proxies: pytest.MonkeyPatch, past: str, address: str, used: bool
) -> None:
    leading = ConnectProxy(server.address)
    no_proxies.setenv("http_proxy", f"http://{leading.address}")
    no_proxies.setenv("no_proxy", past)
    host, _, port = leading.address.rpartition(":")
    assert proxy(address) == (Proxy("http_proxy", host, int(port), "") if used else None)
    with DigitsClient(address, timeout=20 if used else 0.3) as client, contextlib.suppress(DigitsError):
        client.predict(BLANK)
    leading.close()
    assert bool(leading.asked) is used, "gRPC's own decision"


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("localhost:1", [("localhost", 1)]),
        ("[::1]:2", [("::1", 2)]),
        ("dns:///far.example:3", [("far.example", 3)]),
        ("dns://9.9.9.9/far.example:3", []),
        ("ipv4:10.0.0.1:4,10.0.0.2:5", [("10.0.0.1", 4), ("10.0.0.2", 5)]),
        ("ipv6:[::1]:6", [("::1", 6)]),
        ("unix:relative/socket", ["relative/socket"]),
        ("unix:///tmp/socket", ["/tmp/socket"]),  # noqa: S108 (a name, no file)
        ("unix-abstract:name", ["\0name"]),
        ("xds:///digits", []),
    ],
)
def test_an_address_names_its_socket(address: str, found: list[Any]) -> None:
    assert endpoints(address) == found


def test_an_async_client_may_be_made_before_any_loop_and_outlive_several(server: ServiceProcess) -> None:
    client = AsyncDigitsClient(server.address)

    async def ask() -> int:
        async def batches() -> Any:
            yield BLANK

        await client.wait_until_serving(20)
        streamed_ = [len(found) async for found in client.predict_stream(batches())]
        return len(await client.predict(BLANK)) + sum(streamed_)

    assert [asyncio.run(ask()) for _ in range(3)] == [2, 2, 2]
    asyncio.run(client.close())
    with pytest.raises(RuntimeError, match="is closed"):
        asyncio.run(ask())


def test_an_async_client_in_two_loops_is_an_error(server: ServiceProcess) -> None:
    client = AsyncDigitsClient(server.address)

    async def ask() -> int:
        return len(await client.predict(BLANK))

    async def elsewhere() -> None:
        await ask()
        with pytest.raises(RuntimeError, match="in use by the event loop of another thread; expected one for each"):
            await asyncio.to_thread(asyncio.run, ask())
        assert await ask() == 1
        await client.close()

    asyncio.run(elsewhere())
