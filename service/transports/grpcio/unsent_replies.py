"""Replies that grpcio was given and has not sent, so that what clients do not read is bounded."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

CALL: ContextVar[asyncio.Task[None]] = ContextVar("call")
"""The task that holds a call of grpcio's: the call ends with it, its reply sent or not."""

MAX_LARGE, MAX_ANY = 8 * 2**20, 24 * 2**20
"""Bytes that a connection may hold before its next call with a large reply waits, and before any call does."""

MAX_PROCESS = 64 * 2**20
"""Bytes that all connections may hold, each of which grpcio keeps twice; the calls of one that holds most end then."""

RESERVED = 2**20
"""Bytes that a call with a large reply counts for until its reply is there."""

_SMALL, _MAX_SMALL = 4096, 16384
"""Bytes up to which a reply is not counted for its connection; how many may take more than a second to be sent.

To ask grpcio for the connection takes a hundredth of a small call.
"""

_TICK = 1.0
"""Seconds between two sweeps."""


@dataclass(slots=True, eq=False)
class _Reply:
    task: asyncio.Task[Any] | None
    since: float
    size: int
    peer: str


class UnsentReplies:
    """Ends calls whose reply is not sent for `seconds`, and those of the connection that holds most beyond MAX_PROCESS.

    `ended` is called with the reason, `unread` or `memory`, for each. All calls have one timer.
    """

    def __init__(self, seconds: float, ended: Callable[[str], object]) -> None:
        self._seconds = seconds or float("inf")
        self._ended = ended
        self._replies: dict[asyncio.Task[None], _Reply] = {}  # the oldest first
        self._reserved: dict[asyncio.Task[None], str] = {}
        self.held = Counter[str]()
        """Bytes by connection; empty while no connection holds a reply of more than 4 KB."""
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def wait_for_room(self, peer: str, *, large: bool) -> None:
        """Return when this connection may have another reply; reserve room for one that may be `large`."""
        most = MAX_LARGE if large else MAX_ANY
        while self.held[peer] >= most:
            room = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(peer, deque()).append(room)
            try:
                await room
            except asyncio.CancelledError:
                self._wake(peer)
                raise
        if large and (call := CALL.get(None)) is not None:
            self._reserved[call] = peer
            self.held[peer] += RESERVED
        self._wake(peer)

    def hold(self, size: int, peer: Callable[[], str]) -> None:
        """Count so many bytes for the call of the current task until `release`; `peer` gives its connection."""
        call, loop = CALL.get(None), asyncio.get_running_loop()
        if call is None:  # of a grpcio whose calls cannot be ended
            return
        self._release_reserved(call)
        name = peer() if size > _SMALL else ""
        self._replies[call] = _Reply(asyncio.current_task(), loop.time(), size, name)
        if name:
            self.held[name] += size
            if self.held.total() > MAX_PROCESS:
                self._end_largest()
        if self._timer is None:
            self._timer = loop.call_later(min(_TICK, self._seconds), self._sweep)

    def release(self, call: asyncio.Task[None]) -> None:
        """Count what this call held no longer."""
        if self._reserved:
            self._release_reserved(call)
        reply = self._replies.pop(call, None)
        if reply is not None and reply.peer:
            self._free(reply.peer, reply.size)

    def _release_reserved(self, call: asyncio.Task[None]) -> None:
        if (peer := self._reserved.pop(call, None)) is not None:
            self._free(peer, RESERVED)

    def _free(self, peer: str, size: int) -> None:
        self.held[peer] -= size
        if not self.held[peer]:
            del self.held[peer]
        self._wake(peer)

    def _wake(self, peer: str) -> None:
        """Let the next call of this connection look whether there is room."""
        waiting = self._waiting.get(peer, ())
        while waiting:
            room = waiting.popleft()
            if not room.done():
                room.set_result(None)
                break
        if not waiting:
            self._waiting.pop(peer, None)

    def _end_largest(self) -> None:
        [(largest, _)] = self.held.most_common(1)
        for call, reply in [*self._replies.items()]:
            if reply.peer == largest:
                self._end(call, reply, "memory")

    def _end(self, call: asyncio.Task[None], reply: _Reply, reason: str) -> None:
        # Without these two grpcio lets go of the call, and the core cancels it and frees the reply.
        if reply.task is not None:
            reply.task.cancel()
        call.cancel()
        self.release(call)
        self._ended(reason)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        excess = len(self._replies) - _MAX_SMALL
        for number, (call, reply) in enumerate([*self._replies.items()]):
            if loop.time() - reply.since < (_TICK if number < excess else self._seconds):
                break  # those behind it are younger
            self._end(call, reply, "unread")
        self._timer = loop.call_later(min(_TICK, self._seconds), self._sweep) if self._replies else None
