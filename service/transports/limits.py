"""The limits on connections and messages, the same for every transport."""

from __future__ import annotations

from dataclasses import dataclass

from service.network import PIXELS

_IMAGE_BYTES = PIXELS * 4
"""Largest size of an image in a message, as floats; as bytes it is a quarter. The handler therefore rejects a batch
that is slightly too large with its own message, and the library rejects only far larger ones."""
_OVERHEAD_BYTES = 16384
"""Size of a message without its images."""
HEALTH_MESSAGE = 4096
"""Bytes of the largest health request, which any client can send."""
SMALL_MESSAGE = 16384
"""Bytes of the largest request without images: metadata, statistics, reflection and others."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a gRPC port; times are in seconds, and 0 disables one."""

    max_batch_size: int
    """Images in one message."""
    connections: int = 4096
    streams: int = 1024
    """Concurrent calls on one connection; further calls wait at the client."""
    connection_age: float = 3600.0
    """Age at which a connection receives GOAWAY: the client reconnects, and a balancer may choose another replica."""
    connection_idle: float = 900.0
    """Time without a call after which a connection is closed."""
    max_metadata_bytes: int = 16 * 1024
    """Bytes of the metadata of one call."""
    message_timeout: float = 60.0
    """For a whole message on grpcio; between two bytes of a message on native."""
    keepalive: float = 60.0
    """Interval of the server's pings to a silent peer."""
    keepalive_timeout: float = 20.0
    """Time in which the peer's kernel (grpcio) or the peer (native) acknowledges the ping."""
    ping_interval: float = 5.0
    """Shortest interval of a client's pings, with or without calls; the third strike closes the connection.

    gRPC clients ping every 10 seconds at most. Half of that leaves room for jitter.
    """

    @property
    def max_message_bytes(self) -> int:
        """Bytes of the largest message."""
        return self.max_batch_size * _IMAGE_BYTES + _OVERHEAD_BYTES
