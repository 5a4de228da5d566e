"""What the log says of calls and connections that came to nothing, the same whatever the transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.errors import DeadlineExceeded, ModelUnavailable, Overloaded, ServerStopping, ServiceError, Unauthenticated
from service.observability.logs import RateLimiter

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_BURST, _RATE = 100, 10
"""Lines at once, and then a second, for calls that are themselves at fault: their author should find each."""


class Reports:
    """Writes a line for each until there are too many: a client can cause them by the thousand."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        # These say how the server is, or that tokens are tried: one says as much as a hundred.
        of_a_kind = (Overloaded, DeadlineExceeded, ModelUnavailable, ServerStopping, Unauthenticated)
        self._seldom: dict[type[Exception], RateLimiter] = {kind: RateLimiter() for kind in of_a_kind}
        self._requests, self._faults = RateLimiter(_BURST, _RATE), RateLimiter(_BURST, _RATE)
        self._handshakes = RateLimiter()
        self._crashes = RateLimiter()

    def call(self, error: Exception, **about: str) -> None:
        """A call was refused, or failed by a fault of ours."""
        expected = isinstance(error, ServiceError)
        limit = self._seldom.get(type(error), self._requests) if expected else self._faults
        if (others := limit.suppressed()) is None:
            return
        if expected:
            # Every stop ends the health watches of its clients: nothing that an operator has to look into.
            write = self._log.info if isinstance(error, ServerStopping) else self._log.warning
            write("refused", **about, reason=str(error), others=others)
        else:
            self._log.error("failed", **about, others=others, exc_info=error)

    def handshake(self, peer: str, reason: str) -> None:
        """A connection has come to no TLS."""
        if (others := self._handshakes.suppressed()) is not None:
            self._log.warning("handshake failed", peer=peer, reason=reason, others=others)

    def crash(self, error: BaseException) -> None:
        """Log that the server of the port ended and is replaced."""
        if (others := self._crashes.suppressed()) is not None:
            self._log.error("server restarted", reason=f"{type(error).__name__}: {error}", others=others)
