"""The calls in progress by state, so that limits and a drain can end them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from service.transports.grpcio.streams import OpenStreams
from service.transports.grpcio.unfinished_calls import UnfinishedMessages
from service.transports.grpcio.unsent_replies import UnsentReplies

if TYPE_CHECKING:
    from service.observability.metrics import Metrics
    from service.transports.limits import Limits

_UNFINISHED_BYTES, _MIN_UNFINISHED = 256 * 2**20, 4
"""Memory for messages of unary calls that take more than a second; at least so many calls of any size.

grpcio does not report the received part of a message, so each call counts as the largest message.
"""

_SMALL_TIMEOUT, _MAX_UNFINISHED_SMALL = 10.0, 16
"""Seconds for a message of a standard service, and the number of its calls that may take more than a second.

grpcio has one limit on messages for all RPCs, so each of these calls can hold as much memory as a batch of images.
"""


@dataclass(frozen=True)
class OpenCalls:
    """The streams, the calls whose request is incomplete and those whose reply is not sent."""

    streams: OpenStreams
    unsent: UnsentReplies
    unfinished: UnfinishedMessages
    unfinished_small: UnfinishedMessages
    """Those of the standard services, whose messages are small."""

    @classmethod
    def within(cls, limits: Limits, metrics: Metrics) -> Self:
        """Create empty ones with these limits."""
        timeout = limits.message_timeout
        return cls(
            OpenStreams(),
            UnsentReplies(timeout, lambda reason: metrics.calls_ended.labels(reason).inc()),
            UnfinishedMessages(timeout, max(_MIN_UNFINISHED, _UNFINISHED_BYTES // limits.max_message_bytes)),
            UnfinishedMessages(min(timeout or _SMALL_TIMEOUT, _SMALL_TIMEOUT), _MAX_UNFINISHED_SMALL),
        )
