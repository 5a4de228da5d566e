"""A timer that runs once at most."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Timer:
    """Calls `callback` on the running event loop after a time, unless it is cancelled before."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        """Start, unless it is running or `seconds` is 0."""
        if self._handle is None and seconds:
            self._handle = self._loop.call_later(seconds, self._callback)

    def cancel(self) -> None:
        """Cancel."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
