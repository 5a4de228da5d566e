"""Replies that grpcio has accepted and not sent: a bound on the memory of replies that clients do not read."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

CALL: ContextVar[asyncio.Task[None]] = ContextVar("call")
"""The task that holds a call of grpcio: the call ends with it, its reply sent or not."""

MAX_LARGE_BYTES, MAX_CONNECTION_BYTES = 8 * 2**20, 24 * 2**20
"""Bytes of a connection's unsent replies beyond which its next call with a large reply waits, and any call."""

MAX_PROCESS_BYTES = 64 * 2**20
"""Bytes of all unsent replies, each of which grpcio keeps twice; beyond it the calls of the largest connection end."""

RESERVED_BYTES = 2**20
"""Bytes that a call with a large reply reserves until its reply exists."""

_SMALL_BYTES, _MAX_SMALL_REPLIES = 4096, 16384
"""Largest reply that is not counted for its connection; number of replies that may take more than a second to send.

Reading the address of the connection from grpcio takes 1% of a small call.
"""

_TICK = 1.0
"""Seconds between two sweeps."""


@dataclass(slots=True, eq=False)
class _Reply:
    task: asyncio.Task[Any] | None
    started: float
    size: int
    peer: str


class UnsentReplies:
    """Ends calls whose reply is not sent within `timeout` seconds, and those of the largest connection beyond a total.

    `on_abort` is called with the reason of each, `unread` or `memory`. All calls share one timer.
    """

    def __init__(self, timeout: float, on_abort: Callable[[str], object]) -> None:
        self._timeout = timeout or float("inf")
        self._on_abort = on_abort
        self._replies: dict[asyncio.Task[None], _Reply] = {}  # the oldest first
        self._reserved: dict[asyncio.Task[None], str] = {}
        self.bytes_by_peer = Counter[str]()
        """Bytes by connection; empty while no connection has a reply of more than 4 KB."""
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def wait_for_room(self, peer: str, *, large: bool) -> None:
        """Wait until this connection may have another reply, and reserve memory for a large one."""
        limit = MAX_LARGE_BYTES if large else MAX_CONNECTION_BYTES
        while self.bytes_by_peer[peer] >= limit:
            room = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(peer, deque()).append(room)
            try:
                await room
            except asyncio.CancelledError:
                self._wake(peer)
                raise
        if large and (call := CALL.get(None)) is not None:
            self._reserved[call] = peer
            self.bytes_by_peer[peer] += RESERVED_BYTES
        self._wake(peer)

    def hold(self, size: int, peer: Callable[[], str]) -> None:
        """Count a reply of `size` bytes for the current call until `release`; `peer` returns its connection."""
        call, loop = CALL.get(None), asyncio.get_running_loop()
        if call is None:  # this grpcio has no task that ends a call
            return
        self._release_reserved(call)
        name = peer() if size > _SMALL_BYTES else ""
        self._replies[call] = _Reply(asyncio.current_task(), loop.time(), size, name)
        if name:
            self.bytes_by_peer[name] += size
            if self.bytes_by_peer.total() > MAX_PROCESS_BYTES:
                self._abort_largest()
        if self._timer is None:
            self._timer = loop.call_later(min(_TICK, self._timeout), self._sweep)

    def release(self, call: asyncio.Task[None]) -> None:
        """Stop counting the reply of this call."""
        if self._reserved:
            self._release_reserved(call)
        reply = self._replies.pop(call, None)
        if reply is not None and reply.peer:
            self._free(reply.peer, reply.size)

    def _release_reserved(self, call: asyncio.Task[None]) -> None:
        if (peer := self._reserved.pop(call, None)) is not None:
            self._free(peer, RESERVED_BYTES)

    def _free(self, peer: str, size: int) -> None:
        self.bytes_by_peer[peer] -= size
        if not self.bytes_by_peer[peer]:
            del self.bytes_by_peer[peer]
        self._wake(peer)

    def _wake(self, peer: str) -> None:
        """Let the next waiting call of this connection check for room."""
        waiting = self._waiting.get(peer, ())
        while waiting:
            room = waiting.popleft()
            if not room.done():
                room.set_result(None)
                break
        if not waiting:
            self._waiting.pop(peer, None)

    def _abort_largest(self) -> None:
        [(largest, _)] = self.bytes_by_peer.most_common(1)
        for call, reply in [*self._replies.items()]:
            if reply.peer == largest:
                self._abort(call, reply, "memory")

    def _abort(self, call: asyncio.Task[None], reply: _Reply, reason: str) -> None:
        # Without these two tasks grpcio drops the call, and the core cancels it and frees the reply.
        if reply.task is not None:
            reply.task.cancel()
        call.cancel()
        self.release(call)
        self._on_abort(reason)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        excess = len(self._replies) - _MAX_SMALL_REPLIES
        for number, (call, reply) in enumerate([*self._replies.items()]):
            if loop.time() - reply.started < (_TICK if number < excess else self._timeout):
                break  # the rest is younger
            self._abort(call, reply, "unread")
        self._timer = loop.call_later(min(_TICK, self._timeout), self._sweep) if self._replies else None
