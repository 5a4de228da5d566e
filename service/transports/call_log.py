"""The log of failed calls and connections, the same for every transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.errors import (
    DeadlineExceeded,
    ModelUnavailable,
    Overloaded,
    ServerStopping,
    ServiceError,
    Unauthenticated,
)
from service.observability.logs import RateLimiter

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_BURST, _RATE = 100, 10
"""Lines in a burst, and lines per second after it, for errors of single calls, each of which its author should find."""

_ONE_LINE_PER_SECOND = (Overloaded, DeadlineExceeded, ModelUnavailable, ServerStopping, Unauthenticated)
"""Errors that describe the state of the server, or a guess at tokens: one line has the information of 100."""


class CallLogger:
    """Writes rate-limited lines, since a client can cause thousands of errors per second."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._by_error: dict[type[Exception], RateLimiter] = {error: RateLimiter() for error in _ONE_LINE_PER_SECOND}
        self._rejections, self._failures = RateLimiter(_BURST, _RATE), RateLimiter(_BURST, _RATE)
        self._handshakes = RateLimiter()
        self._crashes = RateLimiter()

    def log_error(self, error: Exception, **fields: str) -> None:
        """Log a call that was rejected, or that failed by a bug of the server."""
        is_rejection = isinstance(error, ServiceError)
        limiter = self._by_error.get(type(error), self._rejections) if is_rejection else self._failures
        if (suppressed := limiter.suppressed()) is None:
            return
        if is_rejection:
            # Every stop ends the health watches of clients, which an operator need not look into.
            write = self._log.info if isinstance(error, ServerStopping) else self._log.warning
            write("call rejected", **fields, reason=str(error), suppressed=suppressed)
        else:
            self._log.error("call failed", **fields, suppressed=suppressed, exc_info=error)

    def log_handshake_failure(self, peer: str, reason: str) -> None:
        """Log a connection whose TLS handshake failed."""
        if (suppressed := self._handshakes.suppressed()) is not None:
            self._log.warning("handshake failed", peer=peer, reason=reason, suppressed=suppressed)

    def log_server_crash(self, error: BaseException) -> None:
        """Log that the gRPC server of the port ended and is replaced."""
        if (suppressed := self._crashes.suppressed()) is not None:
            self._log.error("server restarted", reason=f"{type(error).__name__}: {error}", suppressed=suppressed)
