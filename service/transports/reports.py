"""What the log says of calls and connections that came to nothing, the same whatever the transport."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from service.errors import DeadlinePassed, ModelUnavailable, Overloaded, ServiceError, Unauthenticated

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

INTERVAL = 1.0
"""Seconds between two lines of a kind that anybody could make come by the thousand; a line has the number of others."""


class Reports:
    """Writes a line for each, or for one a second: who has too much to do, or is attacked, has no time for more."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        # Where the request itself is at fault each has its line; these say how the server is, or who knocks.
        of_a_kind = (Overloaded, DeadlinePassed, ModelUnavailable, Unauthenticated)
        self._seldom: dict[type[Exception], _Seldom] = {kind: _Seldom() for kind in of_a_kind}
        self._handshakes = _Seldom()

    def call(self, error: Exception, **about: str) -> None:
        """A call was refused, or failed by a fault of ours."""
        if not isinstance(error, ServiceError):
            self._log.error("failed", **about, exc_info=error)
        elif (seldom := self._seldom.get(type(error))) is None:
            self._log.warning("refused", **about, reason=str(error))
        elif (others := seldom.others()) is not None:
            self._log.warning("refused", **about, reason=str(error), others=others)

    def handshake(self, peer: str, reason: str) -> None:
        """A connection has come to no TLS."""
        if (others := self._handshakes.others()) is not None:
            self._log.warning("handshake failed", peer=peer, reason=reason, others=others)


class _Seldom:
    """Threads may ask at once: at worst that is a line too many, or another wrong by one."""

    def __init__(self) -> None:
        self._silent_until = 0.0
        self._untold = 0

    def others(self) -> int | None:
        """How many have not been told of since the last line; None where it is too early for another."""
        now = time.monotonic()
        if now < self._silent_until:
            self._untold += 1
            return None
        others, self._untold, self._silent_until = self._untold, 0, now + INTERVAL
        return others
