"""The open streams of a server, so that a drain can end each between two messages."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from service.errors import ServerStopping

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")


class OpenStreams:
    """Registers streams while they wait for their client; a drain ends those at once, the others after their reply.

    Without it a stream that a client keeps open, such as a health Watch, delays every stop by the whole grace.
    """

    def __init__(self) -> None:
        self._idle: set[asyncio.Task[object]] = set()
        self._draining = False

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Await; ServerStopping if the server drains first."""
        task = asyncio.current_task()
        assert task is not None
        self._idle.add(task)
        try:
            if self._draining:
                task.cancel()
            return await awaitable
        except asyncio.CancelledError:
            if not self._draining:
                raise
            raise ServerStopping from None
        finally:
            self._idle.discard(task)

    async def complete(self, awaitable: Awaitable[T]) -> T:
        """Await the sending of a reply of an idle stream, which a drain does not interrupt.

        grpcio sends no status while a reply is partly sent, so a stream that is ended then would stay open.
        """
        task = asyncio.current_task()
        assert task is not None
        is_idle = task in self._idle
        self._idle.discard(task)
        result = await awaitable
        if is_idle:
            self._idle.add(task)
            if self._draining:
                task.cancel()
        return result

    def drain(self) -> None:
        """End the idle streams, and each busy stream when it becomes idle."""
        self._draining = True
        for task in self._idle:
            task.cancel()
