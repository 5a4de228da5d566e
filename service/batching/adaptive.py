"""How many small requests come together: learnt from those that did, so that one that comes alone waits for nobody."""

from __future__ import annotations

PACE = 0.00025
"""Seconds, about what a call costs grpcio: requests that come faster than this one after the other keep it busy
anyway, so that the first of them loses nothing by waiting for the others."""

SHORTEST_WAIT, LONGEST_WAIT = 0.002, 0.005
"""Seconds; a timer of the event loop is no finer than one millisecond."""

SHORTEST_INTERVAL, FIRST_INTERVAL, LONGEST_INTERVAL = 8, 64, 1024
"""Gatherings between two that look for more company than the last had."""

COMPANY = 4
"""So many in pace are no accident: less may be two callers that met once."""


class Company:
    """For how many requests the next gathering waits, `expected`; with 1 nobody waits.

    As many as came in pace last time: callers that are answered together ask again together. Now and then one looks
    for half as many more, the more seldom the more often that was in vain.
    """

    __slots__ = ("_interval", "_looking", "_until_look", "expected")

    def __init__(self) -> None:
        self.expected = 1
        self._looking = False
        self._interval = self._until_look = FIRST_INTERVAL

    @property
    def patience(self) -> float:
        """Seconds after which a gathering ends, however many have come."""
        return min(max(SHORTEST_WAIT, 2 * PACE * self.expected), LONGEST_WAIT)

    def none_expected(self) -> bool:
        """Whether the request that has just come should be run at once; counts it as a gathering of one if so."""
        if self.expected == 1:
            self.came(1, 0.0)
        return self.expected == 1

    def came(self, requests: int, seconds: float) -> None:
        """A gathering took so long and brought so many; none where every caller has left meanwhile."""
        in_pace = requests >= self.expected and seconds <= PACE * requests
        if self._looking and not in_pace:
            self._interval = min(2 * self._interval, LONGEST_INTERVAL)
        elif self._looking and requests >= COMPANY:
            self._interval = SHORTEST_INTERVAL
        if not in_pace:
            self._until_look = self._interval
            requests = min(requests, self.expected * 3 // 4)
        elif self._looking:
            self._until_look = SHORTEST_INTERVAL
        self._until_look -= 1
        self._looking = self._until_look <= 0
        self.expected = max(1, requests)
        if self._looking:
            self._until_look = self._interval
            self.expected += max(1, requests // 2)
