"""The health of the server: SERVING between its start and its stop, while every part is healthy."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from service.runtime.background import BackgroundTasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from service.observability.metrics import Metrics


class HealthSource(Protocol):
    """A part of the server that can become unhealthy."""

    @property
    def unhealthy_reason(self) -> str:
        """The reason, in a line for the operator; empty while the part is healthy."""
        ...


class Health:
    """Combines the health of the parts, and publishes each change. Any thread may read it."""

    def __init__(self, metrics: Metrics) -> None:
        self._sources: tuple[HealthSource, ...] = ()
        self._set_serving: Callable[[bool], Awaitable[None]]
        self._is_started = False
        self._publishing = asyncio.Lock()
        self._tasks = BackgroundTasks()
        metrics.serving.set_function(self.is_serving)

    def connect(self, set_serving: Callable[[bool], Awaitable[None]], *sources: HealthSource) -> None:
        """Publish to the transport by `set_serving`; the parts are given in the order of their reasons."""
        self._set_serving = set_serving
        self._sources = sources

    @property
    def unhealthy_reason(self) -> str:
        """The reason of the first unhealthy part; empty while all are healthy."""
        return next(filter(None, (source.unhealthy_reason for source in self._sources)), "")

    def is_serving(self) -> bool:
        """Check whether health is SERVING, also while the event loop is blocked."""
        return self._is_started and not self.unhealthy_reason

    async def start(self) -> None:
        """Publish SERVING, unless a part is unhealthy."""
        self._is_started = True
        await self._publish()

    async def stop(self) -> None:
        """Publish NOT_SERVING."""
        self._is_started = False
        self._tasks.cancel()
        await self._publish()

    def refresh(self) -> None:
        """Publish the health of the parts in the background; call it on the event loop when it changes."""
        self._tasks.start(self._publish())

    async def _publish(self) -> None:
        async with self._publishing:  # the last of concurrent changes is published last
            await self._set_serving(self.is_serving())
