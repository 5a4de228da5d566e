"""What the log says of calls and connections that came to nothing, the same whatever the transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.errors import DeadlinePassed, ModelUnavailable, Overloaded, ServiceError, Unauthenticated
from service.logs import RateLimiter

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


class Reports:
    """Writes a line for each, or for one a second: who has too much to do, or is attacked, has no time for more."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        # Where the request itself is at fault each has its line; these say how the server is, or who knocks.
        of_a_kind = (Overloaded, DeadlinePassed, ModelUnavailable, Unauthenticated)
        self._seldom: dict[type[Exception], RateLimiter] = {kind: RateLimiter() for kind in of_a_kind}
        self._handshakes = RateLimiter()
        self._crashes = RateLimiter()

    def call(self, error: Exception, **about: str) -> None:
        """A call was refused, or failed by a fault of ours."""
        if not isinstance(error, ServiceError):
            self._log.error("failed", **about, exc_info=error)
        elif (seldom := self._seldom.get(type(error))) is None:
            self._log.warning("refused", **about, reason=str(error))
        elif (others := seldom.suppressed()) is not None:
            self._log.warning("refused", **about, reason=str(error), others=others)

    def handshake(self, peer: str, reason: str) -> None:
        """A connection has come to no TLS."""
        if (others := self._handshakes.suppressed()) is not None:
            self._log.warning("handshake failed", peer=peer, reason=reason, others=others)

    def crash(self, error: BaseException) -> None:
        """Log that the server of the port ended and is replaced."""
        if (others := self._crashes.suppressed()) is not None:
            self._log.error("server restarted", reason=f"{type(error).__name__}: {error}", others=others)
