"""What each RPC does, one file a proto service: request bytes in, reply bytes out, ServiceError if not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

Answer = Callable[[bytes, float], Awaitable[bytes]]
"""How one message is answered: its bytes and the caller's deadline (by `time.monotonic`), to the reply's bytes."""

Together = Callable[[Sequence[bytes], float], "list[bytes] | None"]
"""How messages that came one upon the other are answered at once: with a reply each, all of one run of the model.

None where that cannot be: then each is to be answered by itself, and whatever is wrong with one is told there.
"""


class Service(Protocol):
    """What a handler offers to a transport: its full name, and its RPCs by name.

    `unary` are asked once, `streams` for each message of a bidirectional stream, one reply a message and in order.
    Each of the streams can be asked for several messages `together` too.
    """

    name: str
    unary: Mapping[str, Answer]
    streams: Mapping[str, Answer]
    together: Mapping[str, Together]
