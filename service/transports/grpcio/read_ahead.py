"""Reads the messages of a stream ahead, so that messages in quick succession are answered as one batch."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from grpc import aio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

READ_AHEAD_BYTES = 64 * 1024
"""Reading continues while fewer bytes wait for an answer: about 80 messages of one image."""

MESSAGE_OVERHEAD_BYTES = 64
"""Bytes that each message counts in addition, so that empty messages are limited too."""

MAX_DELAY = 0.002
"""Seconds that a message waits for the expected batch; timers have a resolution of 1 ms."""

MIN_PAUSE, MAX_PAUSE = 8, 1024
"""Batches until a larger one is expected again, after an expected batch did not fill."""


class ReadAhead:
    """Reads one stream in a task that lives as long as the `with` block; `read` returns bytes, or EOF of grpcio.

    A client that sends a message after the reply to the last one never waits. If several messages arrived while
    replies were written, twice as many are expected next, and so on until they do not arrive.
    """

    def __init__(self, read: Callable[[], Awaitable[Any]]) -> None:
        self._read = read
        self._messages: list[bytes] = []
        self._bytes = 0
        self._expected = 1
        self._pause, self._runs_until_probe = MIN_PAUSE, 0
        self._batch_ready, self._has_room = asyncio.Event(), asyncio.Event()
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
        """Return the messages that have arrived, none at the end; raises an error of reading after the last message."""
        await self._batch_ready.wait()
        self._stop_timer()
        messages, self._messages, self._bytes = self._messages, [], 0
        self._has_room.set()
        if not self._ended:
            self._batch_ready.clear()
            self._adapt(len(messages))
        elif not messages and self._error is not None:
            raise self._error
        return messages

    def _adapt(self, size: int) -> None:
        if size < self._expected:
            self._runs_until_probe, self._pause = self._pause, min(2 * self._pause, MAX_PAUSE)
        elif self._runs_until_probe:
            self._runs_until_probe -= 1
        self._expected = size if size == 1 or self._runs_until_probe else 2 * size

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _fill(self) -> None:
        try:
            while (message := await self._read()) is not aio.EOF:
                await self._add(message)
        except BaseException as e:  # noqa: BLE001 (`next_batch` raises it)
            self._error = e
        finally:
            self._ended = True
            self._batch_ready.set()

    async def _add(self, message: bytes) -> None:
        self._messages.append(message)
        self._bytes += MESSAGE_OVERHEAD_BYTES + len(message)
        is_full = self._bytes >= READ_AHEAD_BYTES
        if is_full or len(self._messages) >= self._expected:
            self._batch_ready.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(MAX_DELAY, self._batch_ready.set)
        if is_full:
            self._has_room.clear()
            await self._has_room.wait()
