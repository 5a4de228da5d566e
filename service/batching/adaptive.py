"""Learns how many small requests to batch, so that a request without company runs at once."""

from __future__ import annotations

MAX_INTERARRIVAL = 0.00025
"""Seconds between requests, about the time that grpcio takes for a call. Requests that arrive faster keep grpcio busy,
so waiting for the others does not delay the first."""

MIN_DELAY, MAX_DELAY = 0.002, 0.005
"""Seconds that a batch waits for requests; a timer of the event loop has a resolution of 1 ms."""

MIN_PROBE_INTERVAL, INITIAL_PROBE_INTERVAL, MAX_PROBE_INTERVAL = 8, 64, 1024
"""Batches from one probe to the next. A probe waits for more requests than the last batch had."""

MIN_BATCH = 4
"""Requests in a successful probe that shorten the interval; fewer can arrive together by chance."""


class AdaptiveBatchSize:
    """The number of requests that the next batch waits for, `target`; 1 means no wait.

    The target is the size of the last batch: clients whose requests are answered together send their next ones
    together. A probe raises the target by half. Each failed probe doubles the interval to the next.
    """

    __slots__ = ("_batches_until_probe", "_probe_interval", "_probing", "target")

    def __init__(self) -> None:
        self.target = 1
        self._probing = False
        self._probe_interval = self._batches_until_probe = INITIAL_PROBE_INTERVAL

    @property
    def max_delay(self) -> float:
        """Seconds after which a batch runs, however many requests it has."""
        return min(max(MIN_DELAY, 2 * MAX_INTERARRIVAL * self.target), MAX_DELAY)

    def should_run_now(self) -> bool:
        """Check whether a request that finds the model idle runs at once."""
        return self.target == 1

    def record_batch(self, requests: int, seconds: float) -> None:
        """Learn from a batch that waited so long and has so many requests; 0 if every client cancelled."""
        is_full = requests >= self.target and seconds <= MAX_INTERARRIVAL * requests
        if self._probing and not is_full:
            self._probe_interval = min(2 * self._probe_interval, MAX_PROBE_INTERVAL)
        elif self._probing and requests >= MIN_BATCH:
            self._probe_interval = MIN_PROBE_INTERVAL
        if not is_full:
            self._batches_until_probe = self._probe_interval
            requests = min(requests, self.target * 3 // 4)
        elif self._probing:
            self._batches_until_probe = MIN_PROBE_INTERVAL
        self._batches_until_probe -= 1
        self._probing = self._batches_until_probe <= 0
        self.target = max(1, requests)
        if self._probing:
            self._batches_until_probe = self._probe_interval
            self.target += max(1, requests // 2)
