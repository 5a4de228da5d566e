"""The client's arguments and its end: addresses, timeouts, metadata, and a restarted server."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from conftest import ANSWERS_WITHIN, ROOT, free_port, on_both_transports, serving
from digitserve_client import AsyncDigitsClient, DigitsClient, DigitsError
from digitserve_client.address import authority, is_loopback, validate
from hypothesis import given
from hypothesis import strategies as st
from relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import ServiceProcess

BLANK = np.zeros((1, 784), np.uint8)
HERE = (
    *("localhost:50051", "LocalHost:1", "127.0.0.1:1", "127.8.9.1:65535", "[::1]:1", "dns:localhost:1"),
    *("dns:///localhost:1", "ipv4:127.0.0.1:1", "ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:1"),
    *("unix:/tmp/socket", "unix:///tmp/socket", "unix-abstract:name"),
)
ELSEWHERE = (
    *("localhost.evil.example:1", "127.evil.example:1", "127.0.0.1.evil.example:1", "far.example:1", "10.0.0.1:1"),
    *("[2001:db8::1]:1", "ipv4:127.0.0.1:1,10.0.0.1:1", "dns://9.9.9.9/localhost:1", "dns:///far.example:1"),
    *("xds:///digits", "unixes:1"),
)


@pytest.mark.parametrize("address", HERE)
def test_a_token_may_go_in_plain_text_within_this_machine(address: str, tmp_path: Path) -> None:
    assert is_loopback(validate(address))
    (tmp_path / "token").write_text("a-token-of-some-length")
    DigitsClient(address, token_file=tmp_path / "token").close()


@pytest.mark.parametrize("address", ELSEWHERE)
def test_a_token_does_not_leave_this_machine_in_plain_text(address: str, tmp_path: Path) -> None:
    assert not is_loopback(validate(address))
    (tmp_path / "token").write_text("a-token-of-some-length")
    with pytest.raises(ValueError, match=r"token_file: .* without TLS, which would send it in plain text"):
        DigitsClient(address, token_file=tmp_path / "token")


def test_a_token_does_not_go_to_a_proxy_in_plain_text(
    server: ServiceProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    (tmp_path / "token").write_text("a-token-of-some-length")
    with DigitsClient(server.address, token_file=tmp_path / "token") as client:
        assert len(client.predict(BLANK)) == 1


@pytest.mark.parametrize("address", ["unix:", "unix:/", "unix:///"])
def test_a_socket_without_a_path_is_rejected(address: str) -> None:
    with pytest.raises(ValueError, match=f"^address is {address!r}; expected unix:PATH, as unix:/run/digits.sock$"):
        DigitsClient(address)


@pytest.mark.parametrize(
    "address",
    [
        *("", " ", "localhost", "localhost:", ":50051", "localhost:0", "localhost:65536", "localhost:70000"),
        *("localhost:http", "http://localhost:50051", "https://localhost:50051", "grpc://localhost:50051"),
        *("localhost:50051/", "me@localhost:50051", "::1:50051", "[]:50051", "one:1,two:2", "localhost:50051\n"),
        *("ipv4:127.0.0.1", "ipv4:127.0.0.1:1,", "dns:///localhost", "dns:///"),
    ],
)
@pytest.mark.parametrize("make", [DigitsClient, AsyncDigitsClient])
def test_an_invalid_address_is_rejected_by_name(address: str, make: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match=r"^address is ") as caught:
        make(address)
    assert str(caught.value).startswith(
        f"address is {address!r}; expected host:port, as localhost:50051, the port from"
    )


@given(st.text(max_size=40))
def test_any_invalid_address_has_the_same_kind_of_error(address: str) -> None:
    try:
        validate(address)
    except ValueError:
        return
    assert is_loopback(address) in (True, False)
    assert authority(address) is None or "," in address


CLOSED = """
import asyncio, sys
import numpy as np
from digitserve_client import AsyncDigitsClient, DigitsClient

def said(ask):
    try:
        ask()
    except RuntimeError as e:
        print(e)

calls = {
    "predict": lambda c: c.predict(np.zeros((1, 784), np.uint8)),
    "network": lambda c: c.network(),
    "is_serving": lambda c: c.is_serving(),
    "health": lambda c: c.health(),
    "wait_until_serving": lambda c: c.wait_until_serving(0.1),
}
name, address = sys.argv[1:]
client = DigitsClient(address)
client.close()
client.close()
said(lambda: calls[name](client))
said(lambda: list(client.predict_stream([])))

async def run():
    client = AsyncDigitsClient(address)
    await client.close()
    await client.close()
    await calls[name](client)

said(lambda: asyncio.run(run()))
"""


@pytest.mark.parametrize("name", ["predict", "network", "is_serving", "health", "wait_until_serving"])
def test_a_closed_client_rejects_calls(server: ServiceProcess, name: str) -> None:
    """In a separate process, because grpcio could end it."""
    command = [sys.executable, "-c", CLOSED, name, server.address]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"the client of {server.address} is closed\n" * 3


@pytest.mark.parametrize("timeout", [float("nan"), 0.0, -1.0, float("-inf")])
def test_an_invalid_timeout_is_rejected(server: ServiceProcess, timeout: float) -> None:
    sentence = rf"^timeout is {timeout}; expected seconds, more than 0$"
    with pytest.raises(ValueError, match=sentence):
        DigitsClient(server.address, timeout=timeout)
    with DigitsClient(server.address) as client:
        for ask in (
            lambda: client.predict(BLANK, timeout=timeout),
            lambda: client.is_serving(timeout=timeout),
            lambda: list(client.predict_stream([BLANK], timeout=timeout)),
        ):
            with pytest.raises(ValueError, match=sentence):
                ask()


@on_both_transports
def test_a_timeout_has_no_upper_limit(model_path: Path) -> None:
    with serving(model_path) as service:
        for timeout in (1e8, 1e10, float("inf")):
            with DigitsClient(service.address, timeout=timeout) as client:
                assert len(client.predict(BLANK)) == 1


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("Trace", "1", "metadata 'Trace': expected a key of lower-case letters"),
        ("", "1", "metadata '': expected a key"),
        (
            "trace",
            "caf\u00e9",
            "metadata 'trace': expected printable ASCII; other text goes as bytes under `trace-bin`",
        ),
        ("trace", "a\nb", "metadata 'trace': expected printable ASCII"),
        ("trace", b"1", "metadata 'trace': is bytes; expected bytes under `-bin`, else str"),
        ("trace-bin", "1", "metadata 'trace-bin': is str; expected bytes under `-bin`, else str"),
    ],
)
async def test_invalid_metadata_is_rejected_by_its_key(
    server: ServiceProcess, key: str, value: Any, sentence: str
) -> None:
    with DigitsClient(server.address, metadata=lambda: [(key, value)]) as client:
        for ask in (lambda: client.predict(BLANK), lambda: list(client.predict_stream([BLANK]))):
            with pytest.raises(ValueError, match=f"^{sentence}"):
                ask()
    async with AsyncDigitsClient(server.address, metadata=lambda: [(key, value)]) as asynchronous:
        with pytest.raises(ValueError, match=f"^{sentence}"):
            await asynchronous.predict(BLANK)


@on_both_transports
def test_a_client_can_set_the_request_id(model_path: Path) -> None:
    with (
        serving(model_path) as service,
        DigitsClient(service.address, metadata=lambda: [("x-request-id", "mine-7"), ("more-bin", b"\x00")]) as client,
    ):
        assert client.predict(BLANK).request_id == "mine-7"
        with pytest.raises(DigitsError) as caught:
            client.predict(BLANK, model_version="9")
        assert caught.value.request_id == "mine-7"
        assert service.wait_for("call rejected")["request_id"] == "mine-7"


@on_both_transports
def test_a_call_outlasts_a_restart_of_the_only_server(model_path: Path) -> None:
    """The second server is up at once, so that its start time is no part of the test."""
    relay, is_gone = Relay(free_port()), threading.Event()

    def begin() -> list[tuple[str, str]]:
        if is_gone.is_set():
            relay.open(second.address)
        return []

    def see(state: grpc.ChannelConnectivity) -> None:
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            is_gone.set()

    with serving(model_path) as first, serving(model_path) as second, contextlib.closing(relay):
        relay.open(first.address)
        with DigitsClient(relay.address, timeout=ANSWERS_WITHIN, metadata=begin) as client:
            assert len(client.predict(BLANK)) == 1
            client._channel.subscribe(see)
            first.process.kill()
            relay.close()
            assert is_gone.wait(ANSWERS_WITHIN)
            assert len(client.predict(BLANK)) == 1
