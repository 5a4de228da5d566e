"""The scripts of `make run` and `make play`: their output and their error messages."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import pytest
from conftest import ANSWERS_WITHIN, DEAD_PROXIES, ROOT, free_port, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def environment(model_path: Path) -> dict[str, str]:
    """An environment with unused ports."""
    ports = {name: str(free_port()) for name in ("DIGITS_PORT", "DIGITS_METRICS_PORT", "PLAY_PORT")}
    return {**os.environ, **ports, "DIGITS_MODEL": str(model_path), "DIGITS_SHUTDOWN_GRACE": "1"}


@contextmanager
def started(script: str, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Start a command in a separate process group, as a terminal does."""
    command, pipe = [sys.executable, ROOT / "scripts" / script], subprocess.PIPE
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=ANSWERS_WITHIN)


def refused(script: str, environment: dict[str, str]) -> tuple[int, str, str]:
    command = [sys.executable, ROOT / "scripts" / script]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=ANSWERS_WITHIN, check=False
    )
    return done.returncode, done.stdout, done.stderr


def lines_until(output: IO[str] | None, text: str) -> list[str]:
    assert output is not None
    lines = []
    for line in output:
        lines.append(line)
        if text in line:
            return lines
    pytest.fail(f"ended without {text!r}: {lines}")


def test_run_shows_ten_digits_and_serves_until_it_is_stopped(environment: dict[str, str]) -> None:
    with started("run.py", environment) as process:
        shown = "".join(lines_until(process.stdout, f"Serving on at 127.0.0.1:{environment['DIGITS_PORT']}; Ctrl-C"))
        assert f"sent to 127.0.0.1:{environment['DIGITS_PORT']} over gRPC" in shown
        assert shown.count("right") + shown.count(", not ") == 10
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(ANSWERS_WITHIN) == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])  # noqa: S104 (the subject of the test)
def test_run_bypasses_proxies_for_its_server(environment: dict[str, str], host: str) -> None:
    with started("run.py", {**environment, **DEAD_PROXIES, "DIGITS_HOST": host}) as process:
        shown = "".join(lines_until(process.stdout, "Serving on at"))
        assert shown.count("right") + shown.count(", not ") == 10


def test_the_play_page_bypasses_proxies_for_its_server(environment: dict[str, str]) -> None:
    with started("run_playground.py", {**environment, **DEAD_PROXIES}) as process:
        lines_until(process.stdout, "look inside at")


@pytest.mark.parametrize("cargo", [True, False])
def test_run_names_the_transport_and_the_installation_of_the_faster_one(
    environment: dict[str, str], tmp_path: Path, cargo: bool
) -> None:
    (tmp_path / "digitserve_native.py").write_text("raise ImportError('none here')")
    (tmp_path / "cargo").touch(mode=0o755)
    variables = {"PYTHONPATH": str(tmp_path), "PATH": str(tmp_path) if cargo else "", "DIGITS_TRANSPORT": "auto"}
    with started("run.py", {**environment, **variables}) as process:
        shown = lines_until(process.stdout, "Serving on at")
    need = "" if cargo else " (needs Rust: https://rustup.rs)"
    assert "Transport: grpcio: the wheel digitserve-native does not load: none here.\n" in shown
    assert f"10 times as many small calls/s: make native{need}.\n" in shown


def test_run_names_the_requested_transport_without_a_suggestion(environment: dict[str, str]) -> None:
    with started("run.py", {**environment, "DIGITS_TRANSPORT": "grpcio"}) as process:
        shown = lines_until(process.stdout, "Serving on at")
    assert "Transport: grpcio.\n" in shown
    assert not [line for line in shown if "make native" in line]


def test_run_is_quiet_and_fits_eighty_columns_when_it_is_piped(environment: dict[str, str]) -> None:
    with started("run.py", environment) as process:
        shown = lines_until(process.stdout, "DIGITS_LOG_LEVEL=info")
        assert max(len(line.rstrip("\n")) for line in shown) <= 80
        assert not [line for line in shown if "…" in line or "\x1b" in line]
        os.killpg(process.pid, signal.SIGINT)
        more, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert more == ""
    assert said in {"", f"waiting for 127.0.0.1:{environment['DIGITS_PORT']} to be SERVING ...\n"}


def test_run_shows_the_whole_log_if_a_level_is_set(environment: dict[str, str]) -> None:
    with started("run.py", {**environment, "DIGITS_LOG_LEVEL": "info"}) as process:
        shown = lines_until(process.stdout, "Serving on at")
        process.send_signal(signal.SIGTERM)
        more, said = process.communicate(timeout=20)
    assert more == "", "it names an option that is already set"
    assert not [line for line in shown if "DIGITS_LOG_LEVEL" in line]
    assert [event for event in ("starting", "serving", "stopping", "stopped") if f'"{event}"' not in said] == []


@pytest.mark.parametrize("script", ["run.py", "run_playground.py"])
@pytest.mark.parametrize("variable", ["DIGITS_PORT", "DIGITS_METRICS_PORT"])
def test_a_port_in_use_is_reported_before_the_start(environment: dict[str, str], script: str, variable: str) -> None:
    with socket.create_server(("127.0.0.1", int(environment[variable]))):
        status, shown, said = refused(script, environment)
    assert (status, shown) == (1, "")
    assert f"port {environment[variable]} on 127.0.0.1 is in use" in said
    assert variable in said


@pytest.mark.parametrize("script", ["run.py", "run_playground.py"])
@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("DIGITS_MAX_BATCH_SIZE", "0", "max-batch"),
        ("DIGITS_PORT", "0", "DIGITS_PORT is 0"),
        ("DIGITS_MODEL", "/no", "/no"),
    ],
)
def test_an_invalid_environment_is_reported_without_a_page(
    environment: dict[str, str], script: str, variable: str, value: str, sentence: str
) -> None:
    status, shown, said = refused(script, {**environment, variable: value})
    assert status > 0
    assert sentence in said
    assert "look inside at" not in shown
    assert "right" not in shown


def test_play_serves_model_and_page_until_it_is_stopped(environment: dict[str, str]) -> None:
    with started("run_playground.py", environment) as process:
        lines_until(process.stdout, f"look inside at http://127.0.0.1:{environment['PLAY_PORT']}")
        process.send_signal(signal.SIGTERM)
        assert process.wait(ANSWERS_WITHIN) == 0


def test_play_uses_a_running_server_and_does_not_stop_it(environment: dict[str, str], model_path: Path) -> None:
    with serving(model_path) as service:
        port = service.address.rpartition(":")[2]
        with started("run_playground.py", {**environment, "DIGITS_PORT": port}) as process:
            shown = lines_until(process.stdout, "look inside at")
            assert shown[0] == f"a server is up at 127.0.0.1:{port}: the page calls that server\n"
            process.send_signal(signal.SIGTERM)
            process.wait(ANSWERS_WITHIN)
        time.sleep(0.2)
        assert service.get("/healthz").startswith("SERVING")


@pytest.mark.slow
def test_play_without_a_free_port_fails_and_stops_its_server(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", int(environment["PLAY_PORT"]))):
        status, shown, said = refused("run_playground.py", environment)
    assert status == 1
    assert "look inside at" not in shown
    assert f"cannot listen on 127.0.0.1 port {environment['PLAY_PORT']}" in said
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(environment["DIGITS_PORT"])), 1).close()
