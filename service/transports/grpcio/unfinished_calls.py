"""Calls whose message is not whole yet, so that those that stay so end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from service.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")

_TICK = 1.0
"""Seconds between two sweeps; a message that comes faster is never refused."""


class UnfinishedMessages:
    """Ends calls whose message takes longer than `seconds`, or, of more than `most` calls, the oldest after a tick.

    grpcio tells of a message when it is whole; until then it holds what has come. All calls have one timer: a timer for
    each would cost more than the rest of this.
    """

    def __init__(self, seconds: float, most: int | None = None) -> None:
        self._seconds = seconds or float("inf")
        self._most = most
        self._since: dict[asyncio.Task[object], float] = {}  # the oldest first
        self._late: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, message: Awaitable[T]) -> T:
        """Return what `message` gives; DeadlineExceeded if that takes too long."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self._since[task] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(min(_TICK, self._seconds), self._sweep)
        try:
            return await message
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            raise DeadlineExceeded("the message was not whole in time") from None
        finally:
            del self._since[task]
            self._late.discard(task)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        excess = 0 if self._most is None else len(self._since) - self._most
        for number, (task, since) in enumerate(self._since.items()):
            if loop.time() - since < (_TICK if number < excess else self._seconds):
                break  # those behind it are younger
            self._late.add(task)
            task.cancel()
        waits = min(_TICK, self._seconds)
        self._timer = loop.call_later(waits, self._sweep) if self._since else None
