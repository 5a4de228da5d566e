"""What each RPC does, one file a proto service: request bytes in, reply bytes out, ServiceError if not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

Answer = Callable[[bytes, float], Awaitable[bytes]]
"""How one message is answered: its bytes and the caller's deadline (by `time.monotonic`), to the reply's bytes."""

Together = Callable[[Sequence[bytes], float], "list[bytes] | None"]
"""How messages that came one upon the other are answered at once: with a reply each, all of one run of the model.

None where that cannot be: then each is to be answered by itself, and whatever is wrong with one is told there.
"""


class Alternative(NamedTuple):
    """Another answer to the messages of a stream, for calls that bring this metadata."""

    key: str
    value: str
    answer: Answer

    def is_wanted(self, metadata: Iterable[tuple[str, object]]) -> bool:
        """Check whether a call with this metadata wants it."""
        return any(key == self.key and value == self.value for key, value in metadata)


class Service(Protocol):
    """What a handler offers to a transport: its full name, and its RPCs by name.

    `unary` are asked once, `streams` for each message of a bidirectional stream, one reply a message and in order.
    Each of the streams can be asked for several messages `together` too, and some have `alternatives`.
    """

    name: str
    unary: Mapping[str, Answer]
    streams: Mapping[str, Answer]
    together: Mapping[str, Together]
    alternatives: Mapping[str, Alternative]
