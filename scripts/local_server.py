"""The parts that `make run` and `make play` share: the server that they start as a separate process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from digitserve_client import DigitsClient

from commandline import proxies
from service.address import ensure_bindable, join_host_port
from service.config import SettingsError, load
from service.errors import AddressInUse

if TYPE_CHECKING:
    from service.config import Settings

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (a listening address, mapped to one that clients can call)


class Processes:
    """The processes of one command, which ends them at SIGINT, SIGTERM or SIGHUP.

    Each has its own process group, so that only this process receives a terminal's Ctrl-C and forwards it. Otherwise a
    starting Python would print a traceback, and a server would count each signal twice.
    """

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []
        self.stopped_by = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, self._on_signal)

    @property
    def stopped_status(self) -> int:
        """The exit status of a command that a signal ended before its purpose was reached."""
        return 128 + self.stopped_by

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start `python -m` with these arguments, and these variables in addition to those of this process."""
        command, variables = [sys.executable, "-m", *arguments], {**os.environ, **environment}
        process = subprocess.Popen(command, env=variables, process_group=0)
        self._started.append(process)
        if self.stopped_by:  # a signal arrived during the start
            process.terminate()
        return process

    def start_service(self) -> subprocess.Popen[bytes]:
        """Start the server. It only logs warnings, unless DIGITS_LOG_LEVEL is set."""
        return self.start("service", DIGITS_LOG_LEVEL=log_level() or "warning")

    def stop(self) -> None:
        """Stop all processes, unless a signal has, and wait for their end."""
        if not self.stopped_by:
            for process in self._started:
                process.terminate()
        for process in self._started:
            process.wait()

    def _on_signal(self, number: int, _: object) -> None:
        self.stopped_by = self.stopped_by or number
        for process in self._started:
            process.terminate()


def log_level() -> str:
    """Return the level of the server's log from the environment."""
    return os.environ.get("DIGITS_LOG_LEVEL", "")


def settings() -> Settings:
    """Read the settings from the environment, or end the process; let calls of the server bypass proxies."""
    try:
        settings_ = load([])
    except SettingsError as e:
        print(e, file=sys.stderr)
        sys.exit(2)
    if settings_.port == 0:
        print("DIGITS_PORT is 0: choose a port, so that clients can call the server", file=sys.stderr)
        sys.exit(2)
    proxies.bypass(address(settings_).rpartition(":")[0].strip("[]"))  # the server is on this machine
    return settings_


def address(settings: Settings) -> str:
    """Return the server's address for clients on this machine."""
    return join_host_port(ANYWHERE.get(settings.host, settings.host), settings.port)


def end_if_taken(settings: Settings) -> None:
    """End the process with a message if another one listens, because the demo would call that server."""
    try:
        for host, port in ((settings.host, settings.port), (settings.metrics_host, settings.metrics_port)):
            ensure_bindable(host, port)
    except AddressInUse as e:
        print(f"{e} by DIGITS_PORT and DIGITS_METRICS_PORT", file=sys.stderr)
        sys.exit(1)


def answers(where: str) -> bool:
    """Return whether a server without TLS is SERVING at the address."""
    with DigitsClient(where) as client:
        return client.is_serving()


def comes_up(server: subprocess.Popen[bytes], where: str) -> bool:
    """Wait until it is SERVING; return False if it ends first, after its error message."""
    while server.poll() is None:
        if answers(where):
            return True
        time.sleep(0.05)
    return False
