"""Every channel argument of the client has its effect; grpc ignores unknown keys, so a test must check each."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from digitserve_client import DigitsClient, base
from grpc import StatusCode
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from hostile import PING, PREFACE, SETTINGS, each_frame, frame, kernel_waits
from test_server_arguments import ACK, keys_in_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


pytestmark = pytest.mark.slow  # the tests wait for the client's pauses


def refusing(listener: socket.socket, count: int) -> None:
    """Accept and close that many connections."""
    listener.settimeout(60)
    for _ in range(count):
        listener.accept()[0].close()


def replaced(monkeypatch: pytest.MonkeyPatch, **values: int) -> None:
    """Replace values of the client's arguments, so that a test waits less."""
    options = [(key, values.get(key.removeprefix("grpc."), value)) for key, value in base._OPTIONS]
    assert options != base._OPTIONS
    monkeypatch.setattr(base, "_OPTIONS", options)


def tries_grow_from_the_first_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 attempts take 4 s from a pause of 0.1 s on, and 40 s from gRPC's default of 1 s."""
    replaced(monkeypatch, max_reconnect_backoff_ms=120_000)
    assert seconds_of_tries(8) < 20


def tries_go_on_at_the_longest_pause(_: pytest.MonkeyPatch) -> None:
    """16 attempts take 7 s; with a pause that grows further, 3 minutes."""
    assert seconds_of_tries(16) < 60


def seconds_of_tries(count: int) -> float:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:
        began = time.monotonic()
        tries = thread.submit(refusing, listener, count)
        with DigitsClient(f"127.0.0.1:{listener.getsockname()[1]}") as client:
            while not tries.done():
                client.is_serving(timeout=5)
        tries.result()
        return time.monotonic() - began


def a_silent_server_is_asked_whether_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, keepalive_time_ms=200)
    with silent_server() as (address, first), DigitsClient(address) as client, ThreadPoolExecutor(1) as thread:
        thread.submit(client.is_serving, timeout=5)  # without a call, the client sends no ping
        assert next(kind for kind, flags, *_ in each_frame(first()) if kind == PING and flags == 0)


def a_server_whose_kernel_does_not_answer_is_left(_: pytest.MonkeyPatch) -> None:
    with silent_server() as (address, connections), DigitsClient(address) as client:
        client.is_serving(timeout=1)
        assert kernel_waits(connections().getsockname()[1]) == 10_000


@contextlib.contextmanager
def silent_server() -> Iterator[tuple[str, Callable[[], socket.socket]]]:
    """A server that sends only SETTINGS: its address, and a function that returns its first connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        listener.settimeout(20)

        def first() -> socket.socket:
            peer = stack.enter_context(listener.accept()[0])
            peer.sendall(frame(SETTINGS, 0, 0, b"") + frame(SETTINGS, ACK, 0, b""))
            assert peer.recv(len(PREFACE) - 9, socket.MSG_WAITALL) == PREFACE[:-9]
            return peer

        yield f"127.0.0.1:{listener.getsockname()[1]}", first


def large_replies_are_taken(_: pytest.MonkeyPatch) -> None:
    with answering(lambda _, __: bytes(5_000_000)) as address, DigitsClient(address) as client, client._open() as to:
        call: Any = to.unary_unary("/any/Method")
        assert len(call(b"", timeout=20)) == 5_000_000


def what_met_no_server_is_asked_again(_: pytest.MonkeyPatch) -> None:
    asked = list[bytes]()

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        asked.append(request)
        if len(asked) < 3:
            context.abort(StatusCode.UNAVAILABLE, "again")
        return b""

    with answering(answer) as address, DigitsClient(address) as client:
        client.network()
    assert len(asked) == 3


def of_several_addresses_one_is_the_authority(_: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        with DigitsClient(f"ipv4:{host},127.0.0.1:1") as client, ThreadPoolExecutor(1) as thread:
            thread.submit(client.is_serving, timeout=5)
            with listener.accept()[0] as peer:
                peer.recv(len(PREFACE) - 9, socket.MSG_WAITALL)
                peer.sendall(frame(SETTINGS, 0, 0, b"") + frame(SETTINGS, ACK, 0, b""))
                headers = next(payload for kind, _, _, payload in each_frame(peer) if kind == 1)
    assert b":authority" + bytes([len(host)]) + host.encode() in headers


def a_token_goes_to_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy, answering(lambda _, __: b"") as address:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")
        with tempfile.NamedTemporaryFile("w") as token:
            token.write("a-token-of-some-length")
            token.flush()
            with DigitsClient(address, token_file=token.name) as client:
                client.network()
        proxy.settimeout(0)
        with pytest.raises(BlockingIOError):
            proxy.accept()


def health_is_asked_of_a_server_that_does_not_serve(_: pytest.MonkeyPatch) -> None:
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    servicer.set("digits.v1.DigitService", health_pb2.HealthCheckResponse.NOT_SERVING)
    with grpc_server() as (server, address):
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        with DigitsClient(address) as client:
            assert client.health(timeout=20) == "NOT_SERVING"


@contextlib.contextmanager
def grpc_server() -> Iterator[tuple[grpc.Server, str]]:
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield server, f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


@contextlib.contextmanager
def answering(answer: Callable[[bytes, grpc.ServicerContext], bytes]) -> Iterator[str]:
    """Start a server with this answer to each call; yield its address."""

    class All(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            return None if "Health" in details.method else grpc.unary_unary_rpc_method_handler(answer)

    with grpc_server() as (server, address):
        server.add_generic_rpc_handlers((All(),))
        yield address


CLIENT = {
    "grpc.default_authority": of_several_addresses_one_is_the_authority,
    "grpc.enable_http_proxy": a_token_goes_to_no_proxy,
    "grpc.inhibit_health_checking": health_is_asked_of_a_server_that_does_not_serve,
    "grpc.initial_reconnect_backoff_ms": tries_grow_from_the_first_pause,
    "grpc.keepalive_time_ms": a_silent_server_is_asked_whether_it_is_there,
    "grpc.keepalive_timeout_ms": a_server_whose_kernel_does_not_answer_is_left,
    "grpc.max_receive_message_length": large_replies_are_taken,
    "grpc.max_reconnect_backoff_ms": tries_go_on_at_the_longest_pause,
    "grpc.service_config": what_met_no_server_is_asked_again,
}


def test_each_argument_of_the_client_has_a_test_of_its_effect() -> None:
    assert sorted(keys_in_sources("client/digitserve_client")) == list(CLIENT)


@pytest.mark.parametrize("effect", CLIENT.values(), ids=lambda effect: effect.__name__)
def test_client(effect: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    effect(monkeypatch)
