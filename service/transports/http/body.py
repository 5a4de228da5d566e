"""Request bodies: read up to a limit, within a budget that all requests share, and decompressed."""

from __future__ import annotations

import asyncio
import json
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from service.errors import InvalidInput, Overloaded
from service.transports.http.errors import HttpError, content_too_large, invalid_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

MAX_JSON_BYTES = 2 * 2**20
"""Parsing takes about 15 ms of the event loop per MiB, and holds up every other request."""

BUDGET = 256 * 2**20
"""Maximum bytes of all request bodies together."""

_RETRY_AFTER = 1.0  # seconds
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_ENCODINGS = ("", "identity", "gzip", "deflate")


class BodyBudget:
    """Bounds the bytes that the bodies of all requests hold."""

    def __init__(self, limit: int = BUDGET) -> None:
        self._limit = limit
        self._used = 0

    @contextmanager
    def lease(self) -> Iterator[BodyLease]:
        """Give a request a share of the budget until the end of the `with` block."""
        lease = BodyLease(self)
        try:
            yield lease
        finally:
            self._used -= lease.used

    def take(self, size: int) -> None:
        """Take bytes from the budget; Overloaded if it has too few."""
        if self._used + size > self._limit:
            raise Overloaded(f"request bodies: {self._used + size} bytes in memory, limit {self._limit}", _RETRY_AFTER)
        self._used += size


class BodyLease:
    """The share of one request; `used` is in bytes."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.used = 0

    def take(self, size: int) -> None:
        """Enlarge the share; Overloaded if the budget is used up."""
        self._budget.take(size)
        self.used += size


async def read_body(
    receive: Callable[[], Awaitable[Any]], headers: Mapping[str, str], limit: int, lease: BodyLease
) -> bytes:
    """Read and decompress the body of at most `limit` bytes, both before and after; HttpError if it is larger.

    Raises CancelledError if the client disconnects.
    """
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        raise HttpError(415, f"content-encoding: {encoding[:32]!r} is unsupported; expected gzip or deflate")
    length = headers.get("content-length", "0")
    if len(length) > 18 or int(length) > limit:
        raise content_too_large(length[:32], limit)
    body = bytearray()
    more = True
    while more:
        event = await receive()
        if event["type"] != "http.request":  # the client disconnected
            raise asyncio.CancelledError
        chunk = event.get("body", b"")
        lease.take(len(chunk))
        body += chunk
        more = event.get("more_body", False)
        if len(body) > limit:
            raise content_too_large(f"more than {limit}", limit)
    return bytes(body) if encoding in ("", "identity") else _decompress(body, limit, lease)


def _decompress(body: bytearray, limit: int, lease: BodyLease) -> bytes:
    decompressor = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        content = decompressor.decompress(body, limit + 1)
    except zlib.error as e:
        raise InvalidInput("body", f"is not valid gzip or deflate data: {e}") from None
    if len(content) > limit:
        raise content_too_large(f"more than {limit} decompressed", limit)
    if not decompressor.eof or decompressor.unused_data:
        raise InvalidInput("body", "is not valid gzip or deflate data: it is incomplete, or more data follows it")
    lease.take(len(content))
    return content


def parse_json(data: bytes) -> Any:
    """Parse JSON of at most MAX_JSON_BYTES; raises InvalidInput or HttpError."""
    if len(data) > MAX_JSON_BYTES:
        raise content_too_large(f"{len(data)} JSON", MAX_JSON_BYTES, "; send larger batches as binary tensors")
    try:
        return json.loads(data.decode(), parse_constant=_reject_constant)
    except RecursionError:
        raise invalid_json("it is nested too deeply") from None
    except ValueError as e:  # JSON, UTF-8, or a number of thousands of digits
        raise invalid_json(str(e)[:200]) from None


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
