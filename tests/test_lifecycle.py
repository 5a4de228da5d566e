"""The start and the stop of the server, as an operator sees them."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import ANSWERS_WITHIN, ROOT, launch, serving
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import CapturingLogger

from service import __version__
from service.config import SettingsError, load
from service.errors import AddressInUse, StartError
from service.pb.digits.v1.digits_pb2 import PredictRequest, PredictResponse
from service.runtime.server import compose
from service.runtime.transport_choice import INSTALL_NATIVE, choose_transport
from service.transports.native import wheel

pytestmark = pytest.mark.usefixtures("transport")

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
IMAGE = PredictRequest(pixels=bytes(784)).SerializeToString()
LOG: Any = CapturingLogger()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(model_path: Path, number: signal.Signals) -> None:
    with serving(model_path) as service:
        assert service.stop(number) == 0
        events = [line["event"] for line in service.lines]
        assert events == ["starting", "serving", "stopping", "stopped"]
        assert service.lines[2]["signal"] == number.name


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_while_it_starts_stops_it_too(model_path: Path, number: signal.Signals, status: int) -> None:
    service = launch("--model", model_path, "--port", "0", "--metrics-port", "0")
    try:
        service.wait_for("starting")
        stopped = service.stop(number)
        was_serving = "serving" in [line["event"] for line in service.lines]  # the signal was late
        assert stopped == (0 if was_serving else status)
    finally:
        service.close()


def test_an_unknown_variable_is_logged_with_a_suggestion(model_path: Path) -> None:
    service = launch("--model", model_path, "--port", "0", "--metrics-port", "0", env={"DIGITS_TOKENS_FIL": "tokens"})
    try:
        told = service.wait_for("unknown variable")
        assert (told["variable"], told["suggestion"]) == ("DIGITS_TOKENS_FIL", "DIGITS_TOKENS_FILE")
        assert service.wait_for("serving")["tokens"] is False
    finally:
        service.close()


@pytest.mark.parametrize("arguments", [["--tokens-file", ""], ["--tls-cert="], ["--port", "1", "--model-sha256="]])
def test_an_empty_flag_is_rejected_by_name(arguments: list[str]) -> None:
    with pytest.raises(
        SettingsError, match=r"--(tokens-file|tls-cert|model-sha256) \(or DIGITS_\w+\) is empty; expected a value"
    ):
        load(arguments)


def test_the_start_line_shows_every_option(model_path: Path) -> None:
    with serving(model_path, "--max-batch-size", "12") as service:
        starting = service.lines[0]
        assert starting["max_batch_size"] == 12
        assert starting["model"] == str(model_path)
        assert {"port", "metrics_port", "shutdown_grace", "reflection", "log_level"} <= set(starting)


async def test_a_watcher_sees_serving_and_then_not_serving_before_the_end(model_path: Path) -> None:
    with serving(model_path, "--drain-wait", "600") as service:
        async with aio.insecure_channel(service.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            service.process.send_signal(signal.SIGTERM)
            assert (await watch.read()).status == NOT_SERVING
            # It still answers, so that a balancer that has not yet noticed loses no call.
            reply = await channel.unary_unary("/digits.v1.DigitService/Predict")(IMAGE, timeout=ANSWERS_WITHIN)
            assert len(PredictResponse.FromString(reply).digits) == 1
            assert await asyncio.to_thread(service.get, "/metrics")
            assert service.process.poll() is None


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_skips_the_drain_wait_and_answers_calls_in_flight(
    model_path: Path, second: signal.Signals
) -> None:
    with serving(model_path, "--drain-wait", "600", "--shutdown-grace", "100") as service:
        async with aio.insecure_channel(service.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            await watch.read()
            stream = channel.stream_stream("/digits.v1.DigitService/PredictStream")()
            await stream.write(IMAGE)
            await stream.read()
            service.process.send_signal(signal.SIGINT)
            assert (await watch.read()).status == NOT_SERVING
            began = time.monotonic()
            stopping = asyncio.create_task(asyncio.to_thread(service.stop, second))
            with pytest.raises(aio.AioRpcError, match="the server is stopping"):
                await stream.read()
            assert await stopping == 0
            assert time.monotonic() - began < 90
        events = [line["event"] for line in service.lines]
        assert events[:4] == ["starting", "serving", "stopping", "drain wait skipped"]
        assert events[-1] == "stopped"


async def test_a_third_signal_ends_it_at_once(model_path: Path) -> None:
    with serving(model_path, "--drain-wait", "600", "--shutdown-grace", "600") as service:
        async with aio.insecure_channel(service.address) as channel:
            # A call without a message delays the stop.
            await channel.stream_unary("/digits.v1.DigitService/Predict")().wait_for_connection()
            service.process.send_signal(signal.SIGINT)
            await asyncio.to_thread(service.wait_for, "stopping")
            service.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(service.stop, signal.SIGINT) == 1
    assert service.lines[-1]["event"] == "forced exit"
    assert service.lines[-1]["reason"].startswith("a third signal, SIG")


async def test_an_open_watch_does_not_delay_the_stop(model_path: Path) -> None:
    with serving(model_path, "--shutdown-grace", "100") as service:
        async with aio.insecure_channel(service.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            await watch.read()
            began = time.monotonic()
            assert await asyncio.to_thread(service.stop) == 0
            assert time.monotonic() - began < 50
        assert {line["level"] for line in service.lines} == {"info"}, "a normal stop logs no warning"


async def test_an_idle_stream_is_ended_with_unavailable_when_the_server_stops(model_path: Path) -> None:
    with serving(model_path, "--shutdown-grace", "100") as service:
        async with aio.insecure_channel(service.address) as channel:
            stream = channel.stream_stream("/digits.v1.DigitService/PredictStream")()
            await stream.write(IMAGE)
            assert len(PredictResponse.FromString(await stream.read()).digits) == 1
            began = time.monotonic()
            stopping = asyncio.create_task(asyncio.to_thread(service.stop))
            with pytest.raises(aio.AioRpcError) as caught:
                await stream.read()
            assert caught.value.code() is StatusCode.UNAVAILABLE
            assert "the server is stopping" in caught.value.details()
            assert await stopping == 0
            assert time.monotonic() - began < 50


async def test_every_call_that_was_sent_before_the_stop_is_answered(model_path: Path) -> None:
    with serving(model_path, "--drain-wait", "0.2") as service:
        async with aio.insecure_channel(service.address) as channel:
            predict = channel.unary_unary("/digits.v1.DigitService/Predict")
            calls = [asyncio.ensure_future(predict(IMAGE, timeout=ANSWERS_WITHIN)) for _ in range(200)]
            await calls[0]
            service.process.send_signal(signal.SIGTERM)
            assert len(await asyncio.gather(*calls)) == 200
        assert await asyncio.to_thread(service.ended) == 0


async def test_a_client_that_disconnects_in_a_stream_is_counted_as_canceled(
    model_path: Path,
) -> None:
    with serving(model_path) as service:
        channel = aio.insecure_channel(service.address)
        stream = channel.stream_stream("/digits.v1.DigitService/PredictStream")()
        await stream.write(IMAGE)
        await stream.read()
        stream.cancel()
        await channel.close()
        labels = ("Canceled", "PredictStream", "digits.v1.DigitService", "bidi_stream")
        for _ in range(2000):
            series = await asyncio.to_thread(service.series)
            if series["grpc_server_handled_total", labels]:
                break
            await asyncio.sleep(0.05)
        assert series["grpc_server_handled_total", labels] == 1
        assert await asyncio.to_thread(service.stop) == 0
        assert [line["event"] for line in service.lines] == ["starting", "serving", "stopping", "stopped"]


def refusal(*arguments: str | Path, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Return exit status and the last line's reason of a server that cannot start."""
    service = launch(*arguments, env=env)
    try:
        status = service.ended()
        return status, service.lines[-1]["reason"]
    finally:
        service.close()


@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
def test_a_port_in_use_is_a_one_line_error(model_path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ports = {"--port": "0", "--metrics-port": "0", option: port}
        status, reason = refusal("--model", model_path, *(word for pair in ports.items() for word in pair))
    assert status == 1
    assert reason == f"port {port} on 127.0.0.1 is in use: stop the other process, or choose another port"


def test_a_second_server_on_the_same_port_does_not_start(model_path: Path) -> None:
    with serving(model_path) as service:
        port = service.address.rsplit(":", 1)[1]
        status, reason = refusal("--model", model_path, "--port", port, "--metrics-port", "0")
        assert (status, "is in use" in reason) == (1, True)


def test_a_missing_model_is_a_one_line_error(tmp_path: Path) -> None:
    status, reason = refusal("--model", tmp_path / "none.onnx")
    assert status == 1
    assert reason == f"{tmp_path}/none.onnx: no such file: write it with `python -m export onnx`"


def test_a_foreign_address_is_a_one_line_error(model_path: Path) -> None:
    status, reason = refusal("--model", model_path, "--host", "192.0.2.1", "--metrics-port", "0")
    assert status == 1
    assert reason.startswith("cannot listen on 192.0.2.1 port 50051: ")


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=ANSWERS_WITHIN
    )


@pytest.mark.parametrize(
    ("arguments", "env", "sentence"),
    [
        (["--port", "abc"], {}, "--port (or DIGITS_PORT) is 'abc'; expected a valid integer"),
        (["--port", "65536"], {}, "--port (or DIGITS_PORT) is '65536'; expected less than or equal to 65535"),
        (
            [],
            {"DIGITS_MAX_BATCH_SIZE": "0"},
            "--max-batch-size (or DIGITS_MAX_BATCH_SIZE) is '0'; expected greater than or equal",
        ),
        (
            ["--shutdown-grace", "nan"],
            {},
            "--shutdown-grace (or DIGITS_SHUTDOWN_GRACE) is 'nan'; expected a finite number",
        ),
        (["--model-sha256", "abc"], {}, "--model-sha256 (or DIGITS_MODEL_SHA256) is 'abc'; expected a match of"),
        (["--log-level", "loud"], {}, "--log-level"),
        (["--io-threads", "0"], {}, "--io-threads (or DIGITS_IO_THREADS) is '0'; expected greater than or equal to 1"),
        (["--prot", "1"], {}, "unrecognized arguments: --prot 1"),
    ],
)
def test_a_bad_option_is_rejected_by_name(arguments: list[str], env: dict[str, str], sentence: str) -> None:
    done = run(*arguments, env=env)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_every_option() -> None:
    done = run("--help")
    assert done.returncode == 0
    for option in ("--model", "--port", "--metrics-port", "--max-batch-size", "--drain-wait", "--log-format"):
        assert option in done.stdout
    assert "DIGITS_METRICS_PORT" in done.stdout


NOT_INSTALLED = "the wheel digitserve-native is not installed"


@pytest.mark.parametrize(
    ("asked", "problem", "expected"),
    [
        ("auto", "", ("native", "", "")),
        ("auto", NOT_INSTALLED, ("grpcio", NOT_INSTALLED, INSTALL_NATIVE)),
        ("grpcio", "", ("grpcio", "", "")),
        ("native", "", ("native", "", "")),
    ],
)
def test_auto_uses_the_native_transport_if_its_wheel_is_installed(
    monkeypatch: pytest.MonkeyPatch, asked: str, problem: str, expected: tuple[str, str, str]
) -> None:
    monkeypatch.setattr(wheel, "problem", lambda: problem)
    assert choose_transport(load([f"--transport={asked}"])) == expected


def test_the_native_transport_without_its_wheel_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "problem", lambda: NOT_INSTALLED)
    with pytest.raises(StartError) as caught:
        choose_transport(load(["--transport=native"]))
    assert str(caught.value) == (
        f"--transport (or DIGITS_TRANSPORT) is 'native', but {NOT_INSTALLED}: "
        "`make native` in a clone, or pip install 'digitserve[native]', or choose grpcio"
    )


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("__version__ = '0.0.9'", f"the wheel digitserve-native has version 0.0.9; expected {__version__}"),
        ("raise ImportError('wrong ELF class')", "the wheel digitserve-native does not load: wrong ELF class"),
        (f"__version__ = {__version__!r}", ""),
    ],
)
def test_a_wheel_of_another_version_or_platform_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, problem: str
) -> None:
    (tmp_path / "another_native.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(wheel, "NAME", "another_native")
    monkeypatch.delitem(sys.modules, "another_native", raising=False)
    assert wheel.problem() == problem


def test_a_wheel_of_another_commit_is_a_one_line_error(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "digitserve_native.py").write_text(f"__version__ = {__version__!r}\nclass Server: pass\n")
    environment = {"PYTHONPATH": str(tmp_path), "DIGITS_TRANSPORT": "auto"}
    service = launch("--model", model_path, "--port", "0", "--metrics-port", "0", env=environment)
    try:
        reason = service.wait_for("cannot start")["reason"]
        assert reason.startswith("the wheel digitserve-native does not match the server: Server() takes no arguments")
        assert reason.endswith("run `make native`, or choose grpcio")
        assert service.ended() == 1
    finally:
        service.close()


def refuses_connections(port: int) -> bool:
    with socket.socket() as peer:
        return peer.connect_ex(("127.0.0.1", port)) != 0


async def test_stop_closes_all_resources_of_start(model_path: Path) -> None:
    before = set(threading.enumerate())
    server = compose(load([f"--model={model_path}", "--port=0", "--metrics-port=0", "--provider=cpu"]), LOG)
    await server.start()
    assert server.health.is_serving()
    assert not refuses_connections(server.port)
    assert not refuses_connections(server.metrics_server.port)
    await server.stop()
    assert not server.health.is_serving()
    assert refuses_connections(server.port)
    assert refuses_connections(server.metrics_server.port)
    left = {thread.name.rstrip("-0123456789") for thread in set(threading.enumerate()) - before}
    assert not left & {"http", "watchdog", "model", "native", "native-model"}


async def test_a_failed_start_closes_its_resources(model_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        port = occupied.getsockname()[1]
        server = compose(load([f"--model={model_path}", f"--port={port}", "--metrics-port=0", "--provider=cpu"]), LOG)
        with pytest.raises(AddressInUse):
            await server.start()
    assert server.metrics_server.port
    assert refuses_connections(server.metrics_server.port)
    assert "http" not in {thread.name for thread in threading.enumerate()}


def test_the_log_names_the_transport(model_path: Path, transport: str) -> None:
    with serving(model_path) as service:
        assert service.lines[-1]["transport"] == transport
        assert f'transport="{transport}"' in service.get("/metrics")


def test_the_log_explains_a_missing_native_transport_and_its_installation(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "digitserve_native.py").write_text("raise ImportError('none here')")
    environment = {"PYTHONPATH": str(tmp_path), "DIGITS_TRANSPORT": "auto"}
    service = launch("--model", model_path, "--port", "0", "--metrics-port", "0", env=environment)
    try:
        chosen = service.wait_for("transport chosen")
        assert chosen["reason"] == "the wheel digitserve-native does not load: none here"
        assert chosen["faster"] == f"native, 10 times with small calls: {INSTALL_NATIVE}"
        assert chosen["transport"] == service.wait_for("serving")["transport"] == "grpcio"
    finally:
        service.close()


def test_options_of_grpcio_are_never_silently_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "problem", lambda: "")
    monkeypatch.delenv("DIGITS_TRANSPORT", raising=False)
    option = "--otlp-endpoint=http://127.0.0.1:1"
    assert choose_transport(load(["--transport=grpcio", option])) == ("grpcio", "", "")
    assert choose_transport(load([option])) == ("grpcio", "native does not offer --otlp-endpoint", "")
    with pytest.raises(StartError, match="'native', but native does not offer --otlp-endpoint: choose grpcio"):
        choose_transport(load(["--transport=native", option]))


def test_grpcio_reads_calls_in_the_thread_that_hands_them_on(model_path: Path, transport: str) -> None:
    """An experimental option enables this. The test fails when a release of grpcio no longer has the option."""
    if transport == "native":
        pytest.skip("only the native transport serves")
    large = PredictRequest(pixels=bytes(784 * 200)).SerializeToString()
    with serving(model_path) as service, grpc.insecure_channel(service.address) as channel:
        for _ in range(300):
            channel.unary_unary("/digits.v1.DigitService/Predict")(large)
        took = dict[str, int]()
        for task in Path(f"/proc/{service.process.pid}/task").iterdir():
            name, ns = (task / "comm").read_text().strip(), int((task / "schedstat").read_text().split()[0])
            took[name] = took.get(name, 0) + ns
    assert took.get("event_engine", 0) < took["python"] / 50
