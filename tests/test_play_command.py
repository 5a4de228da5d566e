"""The command `python -m playground`: its errors, its printed address, and the browser that it opens."""

from __future__ import annotations

import contextlib
import os
import pty
import socket
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING

import pytest
from certificates import Authority
from conftest import ROOT
from typer.testing import CliRunner

from playground import browser
from playground.__main__ import app

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PLAIN_TEXT = "token_file: {} without TLS, which would send it in plain text; expected tls_ca"
WITHIN = 60
"""Seconds until a process must have started and finished its part, on a busy machine."""


def wait_for(path: Path) -> None:
    ends = time.monotonic() + WITHIN
    while not path.exists():
        assert time.monotonic() < ends, f"{path} was never written"
        time.sleep(0.02)


def test_a_port_in_use_is_a_one_line_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "playground", "--port", port]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=WITHIN)
    assert done.returncode == 1
    assert done.stderr.startswith(f"port: cannot listen on 127.0.0.1 port {port}: Address already in use; expected")
    assert "PLAY_PORT=... make play, or python -m playground --port ..." in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_foreign_host_is_a_one_line_error() -> None:
    command = [
        sys.executable,
        "-m",
        "playground",
        "--port",
        "0",
        "--host",
        "203.0.113.1",
    ]  # for documentation
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=WITHIN)
    assert done.returncode == 1
    assert done.stderr.startswith("host: cannot listen on 203.0.113.1 port 0: ")
    assert "PLAY_HOST=... make play, or python -m playground --host ..." in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]")])  # noqa: S104 (the subject of the test)
def test_the_printed_address_opens_in_a_browser(host: str, shown: str) -> None:
    if host == "::":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this machine has no IPv6")
    with at_a_terminal({}, "--host", host) as address:
        assert address.startswith(f"http://{shown}:")
        with urllib.request.urlopen(address, timeout=WITHIN) as reply:
            assert reply.status == 200


@contextlib.contextmanager
def at_a_terminal(environment: dict[str, str], *arguments: str) -> Iterator[str]:
    """Start `python -m playground` at a terminal, without other signs of a desktop; yield the page's address."""
    desktops = {"DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME", "SSH_CONNECTION", "BROWSER", "PLAY_BROWSER"}
    kept = {name: value for name, value in os.environ.items() if name not in desktops}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "playground", "--port", "0", *arguments]
    with (
        open(ours) as terminal,  # noqa: PTH123 (an open file)
        subprocess.Popen(command, cwd=ROOT, env={**kept, **environment}, stdout=theirs) as process,
    ):
        os.close(theirs)
        try:
            line = terminal.readline()
            assert line.startswith("look inside at http://"), line
            yield line.split()[-1]
        finally:
            process.terminate()
            process.wait()


@pytest.fixture
def visits(tmp_path: Path) -> Path:
    """The file to which the programs `browser` and `explorer.exe` in its folder write the address."""
    visited, new, program, shown = (tmp_path / name for name in ("visits", "new", "visit.py", "browser"))
    program.write_text(
        "import sys, urllib.request, pathlib\n"
        "status = urllib.request.urlopen(sys.argv[1]).status\n"
        f"pathlib.Path({str(new)!r}).write_text(f'{{sys.argv[1]}} {{status}}')\n"
        f"pathlib.Path({str(new)!r}).rename({str(visited)!r})\n"
    )
    shown.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{program}' \"$1\"\n")
    shown.chmod(0o755)
    (tmp_path / "explorer.exe").symlink_to(shown)
    return visited


def test_the_browser_of_a_desktop_opens_the_page_once_it_answers(visits: Path) -> None:
    environment = {"DISPLAY": ":0", "BROWSER": str(visits.parent / "browser")}
    with at_a_terminal(environment) as address:
        wait_for(visits)
    assert visits.read_text() == f"{address} 200"


def test_under_wsl_the_browser_of_windows_opens_the_page(visits: Path) -> None:
    environment = {"WSL_DISTRO_NAME": "Debian", "PATH": f"{visits.parent}:{os.environ['PATH']}"}
    with at_a_terminal(environment) as address:
        wait_for(visits)
    assert visits.read_text() == f"{address} 200"


@pytest.mark.parametrize(
    ("environment", "arguments"), [({}, ["--no-browser"]), ({"PLAY_BROWSER": "0"}, []), ({"DISPLAY": ""}, [])]
)
def test_no_browser_is_opened_without_a_desktop(
    visits: Path, environment: dict[str, str], arguments: list[str]
) -> None:
    desktop = {"DISPLAY": ":0", "BROWSER": str(visits.parent / "browser")}
    with at_a_terminal({**desktop, **environment}, *arguments) as address:
        urllib.request.urlopen(address, timeout=WITHIN).close()
    assert not visits.exists()


@pytest.mark.parametrize(
    ("environment", "platform", "is_terminal", "wanted"),
    [
        ({"DISPLAY": ":0"}, "linux", True, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True, True),
        ({"WSL_DISTRO_NAME": "Debian"}, "linux", True, True),
        ({}, "darwin", True, True),
        ({}, "win32", True, True),
        ({}, "linux", True, False),
        ({"DISPLAY": ":0"}, "linux", False, False),
        ({}, "darwin", False, False),
        ({"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "192.0.2.1 50000 192.0.2.2 22"}, "linux", True, False),
        ({"SSH_CONNECTION": "192.0.2.1 50000 192.0.2.2 22"}, "darwin", True, False),
    ],
)
def test_a_browser_is_opened_for_a_user_at_a_desktop(
    environment: dict[str, str], platform: str, is_terminal: bool, wanted: bool
) -> None:
    assert browser.is_wanted(environment, platform, is_terminal=is_terminal) is wanted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--address", "http://"], "address is 'http://'; expected http://host:port"),
        (["--address", "http://localhost:0"], "address is 'http://localhost:0'; expected http://host:port"),
        (["--address", "http://user@localhost:1"], "address is 'http://user@localhost:1'; expected http://host:port"),
        (["--address", "https://localhost/path"], "address is 'https://localhost/path'; expected http://host:port"),
        (["--address", "localhost"], "address is 'localhost'; expected host:port, as localhost:50051"),
        (["--compare", "localhost"], "address is 'localhost'; expected host:port, as localhost:50051"),
        (["--address", ""], "address is ''; expected host:port, as localhost:50051"),
        (["--address", "http://localhost:1", "--tls-ca", "CA"], "address is 'http://localhost:1' with TLS files"),
        (["--address", "http://example.com", "--token-file", "TOKEN"], PLAIN_TEXT.format("http://example.com")),
        (["--address", "http://unix:80", "--token-file", "TOKEN"], PLAIN_TEXT.format("http://unix:80")),
        (["--compare", "http://10.0.0.1:80", "--token-file", "TOKEN"], PLAIN_TEXT.format("http://10.0.0.1:80")),
        (["--address", "example.com:80", "--token-file", "TOKEN"], PLAIN_TEXT.format("example.com:80")),
        (["--address", "https://localhost:1", "--tls-ca", "TOKEN"], "TOKEN: not certificates in PEM"),
    ],
)
def test_a_wrong_address_is_one_sentence(tmp_path: Path, arguments: list[str], message: str) -> None:
    files = {"CA": tmp_path / "CA", "TOKEN": tmp_path / "TOKEN"}
    files["CA"].write_bytes(Authority(tmp_path / "ours").certificate.read_bytes())
    files["TOKEN"].write_text("a-token-of-this-test")
    given = [str(files.get(argument, argument)) for argument in arguments]
    nowhere = ["--host", "203.0.113.1", "--no-browser"]  # so that it ends if it takes the address
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*nowhere, *given])
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_a_page_without_its_token_file_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "playground", "--token-file", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WITHIN, check=False)
    assert done.returncode == 2
    assert "cannot be read: No such file" in " ".join(done.stderr.replace("│", " ").split())
