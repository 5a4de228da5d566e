"""The implementation of each RPC, one class a proto service: request bytes in, reply bytes out, or a ServiceError."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

MessageHandler = Callable[[bytes, float], Awaitable[bytes]]
"""Answers one message: the request's bytes and its deadline (on the clock of `time.monotonic`) to the reply's bytes."""

BatchHandler = Callable[[Sequence[bytes], float], "list[bytes] | None"]
"""Answers several messages of a stream with one run of the model, without waiting: a reply each, in order.

None if a single run cannot answer them. The transport then sends each through the MessageHandler, which raises the
error of any invalid message.
"""


class Alternative(NamedTuple):
    """Another handler of a stream's messages, for calls with this metadata entry."""

    key: str
    value: str
    handler: MessageHandler

    def matches(self, metadata: Iterable[tuple[str, object]]) -> bool:
        """Check whether the metadata of a call has the entry."""
        return any(key == self.key and value == self.value for key, value in metadata)


class Service(Protocol):
    """A proto service as a transport sees it: its full name, and its handlers by RPC name.

    `unary` RPCs receive one message. `streams` are bidirectional, with one reply a message, in order. Each stream has a
    handler in `batches` too, and some streams have one in `alternatives`.
    """

    name: str
    unary: Mapping[str, MessageHandler]
    streams: Mapping[str, MessageHandler]
    batches: Mapping[str, BatchHandler]
    alternatives: Mapping[str, Alternative]
