"""Structured logs: one line per event, readable on a terminal and JSON elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, TextIO, cast

import structlog

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


class LossyStderr:
    """Standard error of the log: drops and counts a line that cannot be written, and raises no error.

    A full disk or a closed pipe must not end the server or a call.
    """

    dropped = 0
    """Lines of the whole process."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write the text, or drop it."""
        if self._stream is None:  # the process was started without one
            LossyStderr.dropped += 1
            return
        try:
            self._stream.write(text)
        except (OSError, ValueError):  # ValueError: it is closed
            LossyStderr.dropped += 1

    def flush(self) -> None:
        """Flush, if possible."""
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()

    def isatty(self) -> bool:
        """Check whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()


LOG_INTERVAL = 1.0
"""Seconds between two lines of a limited kind; a line has the count of those suppressed before it."""


class RateLimiter:
    """A token bucket for log lines. Concurrent threads may cause one line too many, or a count that is off by one."""

    def __init__(self, burst: int = 1, rate: float = 1 / LOG_INTERVAL) -> None:
        self._burst, self._rate = burst, rate
        self._tokens = float(burst)
        self._refilled_at = time.monotonic()
        self._suppressed = 0

    def suppressed(self) -> int | None:
        """Return the number of lines suppressed since the last one; None if this one is suppressed too."""
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._refilled_at) * self._rate)
        self._refilled_at = now
        if self._tokens < 0.999:
            self._suppressed += 1
            return None
        self._tokens -= 1
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed


class LibraryHandler(logging.Handler):
    """Writes the records of libraries to this log, one line per second for each of their loggers."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._limiters: dict[str, RateLimiter] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, its traceback as a field."""
        suppressed = self._limiters.setdefault(record.name, RateLimiter()).suppressed()
        if suppressed is None:
            return
        with contextlib.suppress(Exception):  # a log call never raises
            self._log.log(
                record.levelno,
                "library log",
                logger=record.name,
                message=record.getMessage(),
                exc_info=record.exc_info or False,
                suppressed=suppressed,
            )


def capture_libraries(log: FilteringBoundLogger) -> None:
    """Send the standard library's logging, warnings and crashes of threads to `log`, for the whole process.

    A collector of JSON lines discards a traceback in plain text.
    """
    logging.basicConfig(handlers=[LibraryHandler(log)], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    threading.excepthook = lambda crash: log.error(
        "thread crashed", thread=crash.thread.name if crash.thread else "", exc_info=crash.exc_value
    )
    sys.unraisablehook = lambda failed: log.error(
        "unraisable exception", where=repr(failed.object), exc_info=failed.exc_value
    )


def make_logger(log_format: str, level: str) -> FilteringBoundLogger:
    """Make a logger that writes to standard error; `log_format` is auto, console or json."""
    stream = LossyStderr(sys.stderr)
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
