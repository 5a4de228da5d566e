"""Ctrl-C in the first seconds of every command: at most one line, status 130, never a traceback.

Python prints a traceback if the signal arrives before the first line of a command, during the import of `site`. So
each command reports when it has installed its handler of SIGINT, and the modules imported until then.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, SAMPLES

WITHIN = 120  # seconds, on the busiest machine
SLOW = {"PIL", "google", "grpc", "numpy", "onnx", "onnxruntime", "pydantic", "ray", "rich", "typer", "uvicorn"}

# Python imports it at its start. It writes one line: the slow modules that are already imported.
SITECUSTOMIZE = f"""
import os, signal, sys
install, report = signal.signal, os.environ.pop("REPORT_SIGNALS", "")
def reporting(number, handler):
    global report
    previous = install(number, handler)
    if number == signal.SIGINT and report:
        os.write(int(report), " ".join({SLOW!r} & set(sys.modules)).encode() + b"\\n")
        report = ""
    return previous
signal.signal = reporting
"""

DIGITS = SAMPLES / "digits-100-images-idx3-ubyte"
NO_SERVER = "127.0.0.1:1"

# The arguments of each command, and its exit statuses if the signal comes too late.
COMMANDS = {
    "service": (["-m", "service"], {0}),
    "demo": (["-m", "digitserve", "demo", "--wait", "60", "--address", NO_SERVER], set[int]()),
    "predict": (["-m", "digitserve", "predict", DIGITS, "--address", NO_SERVER], {3}),
    "score": (["-m", "digitserve", "score", DIGITS, "--output", "scored", "--workers", "1"], {0}),
    "export": (["-m", "export", "onnx", "--out", "model.onnx"], {0}),
    "playground": (["-m", "playground"], {0}),
    "ray_serve": (["-m", "ray_serve", "--ray-address", NO_SERVER], {1}),
    "bench": (["-m", "bench", "--help"], {0}),
    "run": ([ROOT / "scripts" / "run.py"], {0}),
    "look": ([ROOT / "scripts" / "run_playground.py"], {0}),
}


INSTALLED = Path(sys.executable).parent
"""The folder of installed scripts."""

COMMANDS |= {
    f"digitserve {command}": ([INSTALLED / "digitserve", command, *COMMANDS[same][0][first:]], COMMANDS[same][1])
    for command, same, first in (
        ("serve", "service", 2),
        ("ray", "ray_serve", 2),
        ("export", "export", 2),
        ("play", "playground", 2),
        ("demo", "demo", 3),
        ("predict", "predict", 3),
    )
}


@dataclass
class Command:
    """A command in a separate process group, as a terminal starts it."""

    process: subprocess.Popen[str]
    imported: set[str]

    def interrupted(self, seconds: float) -> tuple[int, list[str]]:
        """Press Ctrl-C after that time; return the shell's status and standard error without answers."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGINT)
        _, complaint = self.process.communicate(timeout=WITHIN)
        status = self.process.returncode  # negative if the interpreter had removed its handlers
        return 128 - status if status < 0 else status, [
            line for line in complaint.splitlines() if " images " not in line
        ]


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


def start(arguments: list[str | Path], folder: Path, model: Path) -> Command:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    reading, writing = os.pipe()
    environment = {
        **os.environ,
        **{name: free_port() for name in ("DIGITS_PORT", "DIGITS_METRICS_PORT", "PLAY_PORT")},
        "DIGITS_MODEL": str(model),
        "DIGITS_LOG_LEVEL": "error",
        "DIGITS_SHUTDOWN_GRACE": "1",
        "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))),
        "REPORT_SIGNALS": str(writing),
    }
    with os.fdopen(reading) as told:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            pass_fds=(writing,),
        )
        os.close(writing)
        assert select.select([told], [], [], WITHIN)[0]
        imported = told.readline()
    if not imported:
        process.kill()
        process.communicate()
        pytest.fail("no handler of Ctrl-C was installed")
    return Command(process, set(imported.split()))


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_at_any_time_ends_it_with_130_and_at_most_one_line(name: str, tmp_path: Path, model_path: Path) -> None:
    arguments, otherwise = COMMANDS[name]
    if name == "score":
        arguments = [*arguments, "--model", str(model_path)]
    for seconds in (0.0, random.uniform(0.02, 0.3), random.uniform(0.3, 1.5)):
        command = start(list(arguments), tmp_path, model_path)
        status, said = command.interrupted(seconds)
        assert status in {130, *otherwise}, (seconds, said)
        assert len(said) <= 1, (seconds, said)
        assert not command.imported, "a Ctrl-C at that time would have printed a traceback"
    if name.endswith("export"):
        assert {path.name for path in tmp_path.glob("*model.onnx*")} <= {"model.onnx"}


def test_a_background_job_of_a_shell_ignores_ctrl_c(tmp_path: Path) -> None:
    arguments = ["-m", "export", "onnx", "--out", str(tmp_path / "model.onnx")]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    _, said = process.communicate()
    assert (process.returncode, said) == (0, "")
