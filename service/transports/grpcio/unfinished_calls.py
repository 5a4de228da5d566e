"""Calls whose message is incomplete, so that a timeout can end them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from service.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")

_TICK = 1.0
"""Seconds between two sweeps; a message that arrives faster is never rejected."""


class UnfinishedMessages:
    """Ends calls whose message takes longer than `timeout` seconds; beyond `limit` calls the oldest, after a tick.

    grpcio reports a message when it is complete, and until then holds its bytes. All calls share one timer: a timer per
    call would cost more than the rest of this class.
    """

    def __init__(self, timeout: float, limit: int | None = None) -> None:
        self._timeout = timeout or float("inf")
        self._limit = limit
        self._arrivals: dict[asyncio.Task[object], float] = {}  # the oldest first
        self._expired: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, message: Awaitable[T]) -> T:
        """Return the message; DeadlineExceeded if it takes too long."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self._arrivals[task] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(min(_TICK, self._timeout), self._sweep)
        try:
            return await message
        except asyncio.CancelledError:
            if task not in self._expired:
                raise
            raise DeadlineExceeded("the message was not complete in time") from None
        finally:
            del self._arrivals[task]
            self._expired.discard(task)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        excess = 0 if self._limit is None else len(self._arrivals) - self._limit
        for number, (task, arrival) in enumerate(self._arrivals.items()):
            if loop.time() - arrival < (_TICK if number < excess else self._timeout):
                break  # the rest is younger
            self._expired.add(task)
            task.cancel()
        self._timer = loop.call_later(min(_TICK, self._timeout), self._sweep) if self._arrivals else None
