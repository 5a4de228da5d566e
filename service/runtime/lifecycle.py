"""The signals that stop the server, each sooner than the one before, and the end of what hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_CLEARING_UP = 5.0
"""Seconds beyond those that calls in flight have; only what is stuck takes so long."""


class StopSignals:
    """SIGTERM and SIGINT: the first asks to stop, the second to skip the drain wait, the third ends the process."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self.name = ""
        """Of the first."""
        self._log = log

    def listen(self) -> None:
        """Take them from now on, on the running event loop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if not self.first.is_set():
            self.name = number.name
            self.first.set()
        elif not self.second.is_set():
            self.second.set()
        else:
            _end(self._log, f"a third signal, {number.name}")


def end_within(seconds: float, log: FilteringBoundLogger) -> None:
    """End the process after so long, whatever it waits for: a run or a read that never comes back keeps its thread."""
    reason = f"it had not ended {_CLEARING_UP:g} s after the grace"
    force = threading.Timer(seconds + _CLEARING_UP, _end, (log, reason))
    force.daemon = True
    force.start()


def _end(log: FilteringBoundLogger, reason: str) -> None:
    waits_for = [thread.name for thread in threading.enumerate() if not thread.daemon]
    log.error("forced exit", reason=reason, threads=waits_for)
    os._exit(1)
