"""What each RPC does, one file a proto service: request bytes in, reply bytes out, ServiceError if not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

Answer = Callable[[bytes, float], Awaitable[bytes]]
"""How one message is answered: its bytes and the caller's deadline (by `time.monotonic`), to the reply's bytes."""


class Service(Protocol):
    """What a handler offers to a transport: its full name, and its RPCs by name.

    `unary` are asked once, `streams` for each message of a bidirectional stream, one reply a message and in order.
    """

    name: str
    unary: Mapping[str, Answer]
    streams: Mapping[str, Answer]
