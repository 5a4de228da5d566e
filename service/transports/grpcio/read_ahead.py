"""The messages of a stream read ahead, so that those that come one upon the other can be answered together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from grpc import aio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

AHEAD = 64 * 1024
"""Bytes: reading goes on while less than this waits to be answered, some eighty messages of one image."""

MESSAGE_COST = 64
"""Bytes that a message takes beside its own, so that empty ones are bounded too."""

PATIENCE = 0.002
"""Seconds that a message waits for as many as are expected; a timer is no finer than a millisecond."""

FIRST_PAUSE, LONGEST_PAUSE = 8, 1024
"""So often only as many are expected as came, after more were in vain."""


class ReadAhead:
    """Reads one stream in a task of its own, from `with` to the end of it; `read` gives bytes, or EOF of grpcio.

    A caller that sends a message when it has the reply to the last never waits. Where several messages came while
    replies were written, twice as many are expected next, and so on until that is in vain.
    """

    def __init__(self, read: Callable[[], Awaitable[Any]]) -> None:
        self._read = read
        self._messages: list[bytes] = []
        self._bytes = 0
        self._expected = 1
        self._pause, self._until_more = FIRST_PAUSE, 0
        self._enough, self._room = asyncio.Event(), asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.create_task(self._fill())
        return self

    def __exit__(self, *_: object) -> None:
        self._task.cancel()
        self._stop_timer()

    async def next_batch(self) -> list[bytes]:
        """The messages that have come; none at the end of the stream. What ended the reading is raised after all."""
        await self._enough.wait()
        self._stop_timer()
        messages, self._messages, self._bytes = self._messages, [], 0
        self._room.set()
        if not self._ended:
            self._enough.clear()
            self._learn(len(messages))
        elif not messages and self._error is not None:
            raise self._error
        return messages

    def _learn(self, came: int) -> None:
        if came < self._expected:
            self._until_more, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        elif self._until_more:
            self._until_more -= 1
        self._expected = came if came == 1 or self._until_more else 2 * came

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _fill(self) -> None:
        try:
            while (message := await self._read()) is not aio.EOF:
                await self._add(message)
        except BaseException as e:  # noqa: BLE001 (whoever takes the messages has it after them)
            self._error = e
        finally:
            self._ended = True
            self._enough.set()

    async def _add(self, message: bytes) -> None:
        self._messages.append(message)
        self._bytes += MESSAGE_COST + len(message)
        is_full = self._bytes >= AHEAD
        if is_full or len(self._messages) >= self._expected:
            self._enough.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._enough.set)
        if is_full:
            self._room.clear()
            await self._room.wait()
