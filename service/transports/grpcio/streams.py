"""The open streams of a server, so that a drain can end each one where nothing is lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from service.errors import ServerStopping

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")


class OpenStreams:
    """Streams tell when they only wait for their caller; a drain ends those at once, the others after their reply.

    Without it a stream that a client holds open, a health Watch above all, would hold up every stop until its grace
    has run out.
    """

    def __init__(self) -> None:
        self._idle: set[asyncio.Task[object]] = set()
        self._draining = False

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """What `awaitable` gives; ServerStopping where the server drains before that."""
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
        """What `awaitable` gives, which a drain lets end: the reply that a stream is sending while it else waits.

        grpcio sends no status while a reply is half sent, so a stream that is ended then would stay open.
        """
        task = asyncio.current_task()
        assert task is not None
        is_idle = task in self._idle
        self._idle.discard(task)
        given = await awaitable
        if is_idle:
            self._idle.add(task)
            if self._draining:
                task.cancel()
        return given

    def drain(self) -> None:
        """End the idle streams, and each busy one as soon as it waits."""
        self._draining = True
        for task in self._idle:
            task.cancel()
