"""What a peer may take of the server: the same bounds for every transport."""

from __future__ import annotations

from dataclasses import dataclass

from service.network import PIXELS

_IMAGE_BYTES = PIXELS * 4
"""The most that an image takes on the wire: as floats. As bytes it takes a quarter, so a batch a little too large
is refused in our words, and only a flood by the library that reads it."""
_ROOM_BESIDE_IMAGES = 16384
HEALTH_MESSAGE = 4096
"""Bytes of the largest request for health, which may come from anybody."""
SMALL_MESSAGE = 16384
"""Bytes of the largest request that holds no images: for metadata, statistics, reflection and the like."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on connections and what comes over them; seconds, of which 0 is no bound."""

    max_batch_size: int
    """Images in one message, which sets the largest message."""
    connections: int = 4096
    streams: int = 1024
    """Calls open at a time on one connection; more wait at the caller."""
    connection_age: float = 3600.0
    """After which a connection is asked to end: callers come back on a new one, which a balancer may send elsewhere."""
    connection_idle: float = 900.0
    """Without an open call."""
    max_metadata_bytes: int = 16 * 1024
    """Bytes of one call's metadata."""
    message_timeout: float = 60.0
    """Without another byte of a message that is due, on native; for a whole message of a call, on grpcio."""
    keepalive: float = 60.0
    """Between two pings that ask whether a silent peer is still there."""
    keepalive_timeout: float = 20.0
    """In which its kernel has to acknowledge the ping, on grpcio, or itself to answer, on native."""
    ping_interval: float = 5.0
    """Shortest interval between two pings of a client, calls or none; the third ping in excess ends the connection.

    gRPC clients send one every 10 seconds at most. Half of that leaves room for jitter.
    """

    @property
    def max_message_bytes(self) -> int:
        """Bytes of the largest message."""
        return self.max_batch_size * _IMAGE_BYTES + _ROOM_BESIDE_IMAGES
