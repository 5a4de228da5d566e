"""Structured logs: one line an event, for people on a terminal and as JSON elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Any, TextIO, cast

import structlog

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


class Tolerant:
    """Standard error as the log writes to it: a line that cannot be written is lost and counted, and nothing fails.

    A full disk or a reader that has gone must not end the server or a call.
    """

    lost = 0
    """Lines, of the whole process."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write it if that can be done."""
        if self._stream is None:  # the process was started without one
            Tolerant.lost += 1
            return
        try:
            self._stream.write(text)
        except (OSError, ValueError):  # ValueError: it is closed
            Tolerant.lost += 1

    def flush(self) -> None:
        """As `write`."""
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether people read it on a terminal."""
        return self._stream is not None and self._stream.isatty()


def make_logger(log_format: str, level: str) -> FilteringBoundLogger:
    """A logger that writes to standard error; `log_format` is auto, console or json."""
    stream = Tolerant(sys.stderr)
    console = log_format == "console" or (log_format == "auto" and stream.isatty())
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if console:
        processors.append(structlog.dev.ConsoleRenderer(colors=stream.isatty()))
    else:
        processors += [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    log: FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(cast("TextIO", stream)),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
    )
    return log
