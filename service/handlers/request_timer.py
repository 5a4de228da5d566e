"""Times the steps of a request: decode, predict, encode."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    from service.observability.statistics import Statistics


class RequestTimer:
    """Counts requests in `statistics` at the end of its `with` block, with the time that each step took.

    The handler marks the end of a step with `decoded` and `predicted`; encoding lasts until the end of the block. An
    exception counts as a failure. A block that ends before `predicted` is not counted.
    """

    __slots__ = ("_decoded", "_predicted", "_requests", "_started", "_statistics")

    def __init__(self, statistics: Statistics, requests: int = 1) -> None:
        self._statistics = statistics
        self._requests = requests
        self._decoded = self._predicted = 0

    def __enter__(self) -> Self:
        self._started = time.perf_counter_ns()
        return self

    def decoded(self, images: int) -> None:  # noqa: ARG002 (for the timer that records spans)
        """Mark the end of decoding a request of so many images."""
        self._decoded = time.perf_counter_ns()

    def predicted(self) -> None:
        """Mark the end of the prediction."""
        self._predicted = time.perf_counter_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._statistics.fail.add(time.perf_counter_ns() - self._started, self._requests)
        elif self._predicted:
            self._statistics.record_success(self._started, self._decoded, self._predicted, self._requests)
