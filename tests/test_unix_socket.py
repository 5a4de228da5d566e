"""Clients of the same host reach the server by a Unix domain socket, the same on both transports."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from certificates import Authority
from conftest import ANSWERS_WITHIN, ROOT, SAMPLES, launch, on_both_transports, serving, until, wait_until
from digitserve_client import AsyncDigitsClient, DigitsClient, DigitsError
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.config import SettingsError, load
from service.errors import AddressInUse
from service.unix_socket import MAX_PATH_BYTES, UnixSocketFile, parse_address

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt
    from conftest import ServiceProcess

pytestmark = on_both_transports


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short path; those of `tmp_path` contain the test's name and are too long."""
    return tmp_path_factory.mktemp("s") / "digits.sock"


@pytest.fixture
def service(model_path: Path, path: Path) -> Iterator[ServiceProcess]:
    with serving(model_path, "--listen", f"unix:{path}") as running:
        yield running


def test_both_addresses_give_the_same_answers(
    service: ServiceProcess, path: Path, digits: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]
) -> None:
    assert service.lines[-1]["listen"] == f"unix:{path}"
    with DigitsClient(f"unix:{path}", timeout=ANSWERS_WITHIN) as near, DigitsClient(service.address) as far:
        answers = near.predict(digits)
        assert np.array_equal(answers.digits, far.predict(digits).digits)
        assert (answers.digits == labels).mean() > 0.9
        streamed = near.predict_stream(digits.reshape(10, 10, 784))
        assert np.array_equal(np.concatenate([one.digits for one in streamed]), answers.digits)
        assert near.health() == "SERVING"
        assert near.is_serving()


async def test_an_asyncio_client_reaches_it(service: ServiceProcess, path: Path, digits: npt.NDArray[np.uint8]) -> None:
    assert service.lines
    async with AsyncDigitsClient(f"unix://{path}", timeout=ANSWERS_WITHIN) as client:
        assert len((await client.predict(digits)).digits) == len(digits)


def test_the_commands_reach_it(service: ServiceProcess, path: Path) -> None:
    assert service.lines
    for command in (["health"], ["predict", "--limit", "1", str(SAMPLES / "digits-100-images-idx3-ubyte")]):
        done = subprocess.run(
            [sys.executable, "-m", "digitserve", *command, "--address", f"unix:{path}", "--timeout", "60"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_the_owner_and_the_group_may_connect_and_no_other_user(service: ServiceProcess, path: Path) -> None:
    assert stat.filemode(path.stat().st_mode) == "srw-rw----"
    assert [*path.parent.iterdir()] == [path]
    assert service.stop() == 0
    assert not path.exists()


def test_its_connections_are_counted(service: ServiceProcess, path: Path) -> None:
    def connections() -> float:
        return service.series()["digits_connections", ()]

    assert connections() == 0
    with DigitsClient(f"unix:{path}", timeout=ANSWERS_WITHIN) as near, DigitsClient(service.address) as far:
        assert near.is_serving()
        assert far.is_serving()
        wait_until(lambda: connections() == 2)
    wait_until(lambda: connections() == 0)


def test_one_connection_too_many_is_closed(model_path: Path, path: Path) -> None:
    with serving(model_path, "--listen", f"unix:{path}", "--max-connections", "1"):
        with DigitsClient(f"unix:{path}", timeout=ANSWERS_WITHIN) as client:
            assert client.is_serving()
            with socket.socket(socket.AF_UNIX) as excess:
                excess.settimeout(ANSWERS_WITHIN)
                excess.connect(str(path))
                assert excess.recv(1) == b""
            assert client.is_serving()
        with DigitsClient(f"unix:{path}", timeout=ANSWERS_WITHIN) as client:
            client.wait_until_serving(ANSWERS_WITHIN)


def test_calls_need_a_token_there_too(model_path: Path, path: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("token-0123456789-0123456789\n")
    image = np.full((1, 784), 7, np.uint8)
    with serving(model_path, "--listen", f"unix:{path}", "--tokens-file", tokens):
        with DigitsClient(f"unix:{path}", timeout=ANSWERS_WITHIN, token_file=tokens) as client:
            assert len(client.predict(image).digits) == 1
        with DigitsClient(f"unix:{path}", timeout=ANSWERS_WITHIN) as client:
            with pytest.raises(DigitsError) as caught:
                client.predict(image)
            assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED


def test_the_socket_has_no_tls_if_the_port_has(model_path: Path, path: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("localhost")
    tls = ("--tls-cert", pair.certificate, "--tls-key", pair.key)
    with serving(model_path, "--listen", f"unix:{path}", *tls) as service:
        with DigitsClient(f"unix:{path}", timeout=ANSWERS_WITHIN) as client:
            assert client.is_serving()
        with DigitsClient(service.address, timeout=ANSWERS_WITHIN, tls_ca=authority.certificate) as client:
            assert client.is_serving()


def test_the_socket_of_a_server_that_was_killed_is_replaced(model_path: Path, path: Path) -> None:
    with serving(model_path, "--listen", f"unix:{path}") as first:
        first.process.kill()
        first.process.wait()
        assert path.is_socket()
        with serving(model_path, "--listen", f"unix:{path}") as second:
            with DigitsClient(f"unix:{path}", timeout=ANSWERS_WITHIN) as client:
                assert client.is_serving()
            assert second.stop() == 0
    assert not path.exists()


def test_a_client_continues_after_a_restart(model_path: Path, path: Path) -> None:
    with DigitsClient(f"unix:{path}", timeout=ANSWERS_WITHIN) as client:
        for _ in range(2):
            with serving(model_path, "--listen", f"unix:{path}") as service:
                client.wait_until_serving(ANSWERS_WITHIN)
                assert service.stop() == 0
        assert not client.is_serving()


async def test_a_drain_answers_the_calls_in_flight_and_takes_no_new_connection(model_path: Path, path: Path) -> None:
    with serving(model_path, "--listen", f"unix:{path}", "--shutdown-grace", str(ANSWERS_WITHIN)) as service:
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            service.process.terminate()
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            await until(lambda: not path.exists())
            with socket.socket(socket.AF_UNIX) as late, pytest.raises(OSError, match="No such file"):
                late.connect(str(path))
        assert service.ended() == 0


def reason_not_to_start(model_path: Path, *arguments: str) -> str:
    service = launch("--model", model_path, "--port", "0", "--metrics-port", "0", *arguments)
    try:
        assert service.ended() == 1
        return str(service.lines[-1]["reason"])
    finally:
        service.close()


def test_the_path_of_a_running_server_is_in_use(service: ServiceProcess, path: Path, model_path: Path) -> None:
    reason = reason_not_to_start(model_path, "--listen", f"unix:{path}")
    assert reason == f"--listen: a server listens on {path}; expected a path of its own, or stop that server"
    with DigitsClient(f"unix:{path}", timeout=ANSWERS_WITHIN) as client:
        assert client.is_serving()
    assert service.stop() == 0


def test_a_file_that_is_no_socket_stays(model_path: Path, path: Path) -> None:
    path.write_text("kept")
    reason = reason_not_to_start(model_path, "--listen", f"unix:{path}")
    assert reason == f"--listen: {path} is no socket; expected the path of a socket or of no file"
    assert path.read_text() == "kept"


def test_a_folder_that_is_missing_is_named(model_path: Path, path: Path) -> None:
    reason = reason_not_to_start(model_path, "--listen", f"unix:{path.parent}/none/digits.sock")
    assert reason == f"--listen: the folder {path.parent}/none does not exist; expected one that does"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/dev/null/digits.sock", "/dev/null is no folder; expected one"),
        ("/sys/digits.sock", "not permitted to create /sys/digits.sock; expected a folder that this user may write to"),
    ],
)
def test_a_place_without_permission_for_a_socket_is_named(path: str, reason: str) -> None:
    with pytest.raises(AddressInUse) as caught:
        UnixSocketFile(path).ensure_bindable()
    assert str(caught.value) == f"--listen: {reason}"


@pytest.mark.parametrize(
    "text",
    [
        *("/run/digits.sock", "unix:", "unix:/", "unix://host/digits.sock", "unix-abstract:digits", "tcp:127.0.0.1:1"),
        *("unix:/run/%41", "unix:/run/a?b", "unix:/run/a#b", "unix:/run/a\nb", "unix:/" + "a" * MAX_PATH_BYTES),
    ],
)
def test_an_invalid_socket_path_is_rejected_by_name(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^--listen \(or DIGITS_LISTEN\) is .* expected unix:PATH, the path"):
        load([f"--listen={text}"])


def test_a_path_may_have_two_slashes_before_it_as_in_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_address("unix:///run/digits.sock") == "/run/digits.sock"
    assert parse_address("unix:" + "/" + "a" * (MAX_PATH_BYTES - 1))
    monkeypatch.setenv("DIGITS_LISTEN", "unix:digits.sock")
    assert load([]).listen == "unix:digits.sock"


def test_the_longest_path_can_be_bound(path: Path) -> None:
    longest = UnixSocketFile(f"{path.parent}/{'a' * (MAX_PATH_BYTES - 1 - len(str(path.parent)))}")
    assert len(str(longest.path)) == MAX_PATH_BYTES
    longest.ensure_bindable()
    assert [*path.parent.iterdir()] == []


def test_the_socket_of_another_server_stays(path: Path) -> None:
    ours = UnixSocketFile(str(path))
    with socket.socket(socket.AF_UNIX) as listener, ours.binding() as bound_path:
        listener.bind(bound_path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        ours.remove()
        assert path.is_socket()
        with pytest.raises(AddressInUse, match="a server listens on"):
            ours.ensure_bindable()
