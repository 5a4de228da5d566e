"""The limits as channel arguments, described in https://grpc.github.io/grpc/core/group__grpc__arg__keys.html ."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.transports.limits import Limits

_NEVER_MS = 2**31 - 1

_PENDING = 4096
"""Calls that the library queues for the event loop. It resets a growing share of further calls, and all calls beyond 3
times as many. Rejecting a small call costs as much as answering it."""


def channel_options(limits: Limits) -> list[tuple[str, int]]:
    """Return the arguments of the server's channel."""
    return [
        # Two servers started by mistake must not share a port in silence.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_metadata_size", limits.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_metadata_bytes),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.max_concurrent_streams", limits.streams),
        # It counts calls that are answered and not yet cleaned up, and rejects calls within the limit.
        ("grpc.http.overload_protection", 0),
        ("grpc.server.max_pending_requests", _PENDING),
        ("grpc.server.max_pending_requests_hard_limit", 3 * _PENDING),
        # grpcio adds 10% jitter itself, so that clients do not all reconnect at once.
        ("grpc.max_connection_age_ms", _milliseconds(limits.connection_age)),
        ("grpc.max_connection_idle_ms", _milliseconds(limits.connection_idle)),
        # Clients and balancers ping idle connections; the default answers the third ping in 5 minutes with GOAWAY.
        ("grpc.http2.min_ping_interval_without_data_ms", round(limits.ping_interval * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", _milliseconds(limits.keepalive)),
        # Becomes TCP_USER_TIMEOUT; a client whose kernel acknowledges has a minute to answer the ping itself.
        ("grpc.keepalive_timeout_ms", _milliseconds(limits.keepalive_timeout)),
    ]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000) if seconds else _NEVER_MS
