"""Exhausted resources: the server reports a one-line error or serves completely; it never hangs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import ANSWERS_WITHIN, ROOT, ServiceProcess, free_port, wait_until
from hostile import PREFACE, connected, handles, still_serves

if TYPE_CHECKING:
    from collections.abc import Iterator

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
pytestmark = [pytest.mark.usefixtures("transport"), pytest.mark.slow]


def command(model: Path, *arguments: str) -> list[str]:
    ports = ("--port", "0", "--metrics-port", "0", "--log-format", "json")
    return [sys.executable, "-m", "service", "--model", str(model), *ports, *arguments]


@contextlib.contextmanager
def started(*words: str, **environment: str) -> Iterator[ServiceProcess]:
    process = subprocess.Popen(
        words, cwd=ROOT, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    service = ServiceProcess(process)
    try:
        service.wait_for("serving")
        yield service
    finally:
        service.close()


def can_unshare() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0  # noqa: S607


needs_mounts = pytest.mark.skipif(not can_unshare(), reason="needs root and unshare, to mount over folders")


def shell(script: str, words: list[str]) -> list[str]:
    return ["unshare", "-m", "sh", "-c", f'{script} && exec "$@"', "sh", *words]


@needs_mounts
def test_it_serves_on_a_read_only_file_system(model_path: Path) -> None:
    """Every disk is read-only, without shared memory and without space for temporary files."""
    script = (
        "mount -t tmpfs -o size=4k none /var/tmp && (cat /dev/zero > /var/tmp/full 2>/dev/null; true)"
        " && umount -l /dev/shm && mount -o remount,ro,bind /"
    )
    with started(*shell(script, command(model_path)), TMPDIR="/var/tmp") as service:  # noqa: S108
        still_serves(service)
        assert service.stop() == 0


@pytest.mark.parametrize("way", ["a full disk", "a closed pipe", "no standard error"])
def test_the_server_serves_without_a_writable_log(model_path: Path, way: str) -> None:
    port, metrics_port = free_port(), free_port()
    words = [*command(model_path), "--port", str(port), "--metrics-port", str(metrics_port)]
    reader, writer = os.pipe()
    os.close(reader)
    redirect = {"a full disk": "2>/dev/full", "a closed pipe": "", "no standard error": "2>&-"}[way]
    process = subprocess.Popen(["sh", "-c", f'exec "$@" {redirect}', "sh", *words], cwd=ROOT, stderr=writer)  # noqa: S607
    os.close(writer)
    try:
        service = Quiet(port, metrics_port)
        service.wait()
        still_serves(service)  # type: ignore[arg-type] # it only uses the address and the metrics
        assert service.series()["digits_log_lines_dropped_total", ()] > 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(ANSWERS_WITHIN) == 0
    finally:
        process.kill()
        process.wait()


class Quiet(ServiceProcess):
    """A server without a readable log, with known ports."""

    def __init__(self, port: int, metrics_port: int) -> None:
        self.lines = [
            {
                "event": "serving",
                "address": f"127.0.0.1:{port}",
                "metrics": f"http://127.0.0.1:{metrics_port}/metrics",
            }
        ]

    def wait(self) -> None:
        wait_until(lambda: self.get("/healthz").startswith("SERVING"), OSError)


def test_with_64_file_handles_it_serves_open_connections_and_others_later(model_path: Path) -> None:
    words = ["sh", "-c", 'ulimit -n 64 && exec "$@"', "sh", *command(model_path)]
    with started(*words) as service:
        still_serves(service)
        level = handles(service)
        peers = [connected(service, PREFACE) for _ in range(100)]
        time.sleep(0.3)
        assert service.process.poll() is None
        for peer in peers:
            peer.close()
        wait_until(lambda: handles(service) <= level + 5, OSError)
        still_serves(service)
        assert service.stop() == 0


@pytest.mark.skipif(FAKETIME is None, reason="needs libfaketime, Debian's package faketime")
def test_a_clock_that_jumps_forward_and_back_disturbs_no_call(model_path: Path, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0")
    fake = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # as in a real jump, which leaves the monotonic clock unchanged
    }
    with started(*command(model_path, "--shutdown-grace", "5"), **fake) as service:
        for jump in ("+0", "+40d", "-3650d", "+3650d", "+0"):
            clock.write_text(jump)
            still_serves(service)
            still_serves(service)
        seen = service.series()["digits_last_success_timestamp_seconds", ()]
        assert abs(seen - time.time()) < 60
        assert service.stop() == 0


@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
def test_a_port_in_use_ends_the_start_with_a_one_line_error(model_path: Path, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = [*command(model_path), option, port]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=ANSWERS_WITHIN, check=False)
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1 is in use" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
