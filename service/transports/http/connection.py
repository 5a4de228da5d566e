"""One HTTP/1.1 connection: uvicorn's protocol over llhttp, with bounds on the time and memory that a client takes."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NoReturn

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.transports.http.errors import HttpError, to_response

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from service.transports.limits import Limits

HEADER_TIMEOUT = 10.0
"""Seconds for the headers of a request, and between two requests of a client that has not authenticated."""

LINGER_TIMEOUT = 5.0
"""Seconds in which a client may finish sending a body that the response did not wait for.

A connection closed before that is reset, and the client may lose the response.
"""

MAX_PIPELINED = 16
"""Requests that a client may send ahead of the response to the first of them."""

_CONTINUE = STATUS_LINE[100]

_NEVER = 365 * 86400.0  # seconds

_uvicorn = logging.getLogger("uvicorn")
_uvicorn.addHandler(logging.NullHandler())  # any client can cause its warnings; the application logs errors
_uvicorn.propagate = False


class _ResponseTransport:
    """The transport of responses: the head of each waits for its body, and both leave in one system call."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None  # None: not written yet; empty: sent
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Keep the head of a response, or send the body with it."""
        if self._head is not None:
            self._transport.write(self._head + data)
            self._head = b""
        elif data.startswith(_CONTINUE):
            self._transport.write(data)
        else:
            self._head = data

    def finish(self) -> None:
        """Send a head that has no body, as in the response to HEAD."""
        if self._head:
            self._transport.write(self._head)
        self._head = None

    def close(self) -> None:
        """Finish the response and close the connection."""
        self.finish()
        self._transport.close()


class Connection(HttpToolsProtocol):
    """A connection of a server with these limits.

    It calls `on_rejection` with the status of each request that it rejects without the application, and `on_lost` at
    its end. The `state` of a request's scope has the connection and the request's `cycle`.
    """

    def __init__(
        self,
        config: Config,
        state: ServerState,
        limits: Limits,
        on_rejection: Callable[[int], object],
        on_lost: Callable[[], object],
    ) -> None:
        super().__init__(config, state, {"connection": self}, asyncio.get_running_loop())
        self._limits = limits
        self._on_rejection = on_rejection
        self._on_lost = on_lost
        self._in_message = False
        self._reads_body = False
        self._header_bytes = 0
        self._unparsed_bytes = 0
        self._rejection: HttpError | None = None
        self._phase = ""
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._request: asyncio.Task[Any] | None = None
        self._responses: _ResponseTransport
        self.timeout_keep_alive = HEADER_TIMEOUT  # type: ignore[assignment] # uvicorn's option is a whole number

    def begin_request(self) -> None:
        """Remember the running task as that of the request, to cancel it if the client disconnects."""
        self._request = asyncio.current_task()

    def set_authenticated(self) -> None:
        """Let the connection be idle for as long as the gRPC port does."""
        self.timeout_keep_alive = self._limits.connection_idle or _NEVER  # type: ignore[assignment] # as above

    def close_after_response(self, scope: Any) -> None:
        """Close the connection of a client that failed to authenticate, once its request is complete."""
        cycle = scope["state"]["cycle"]
        if cycle is not self.cycle or not self._reads_body:  # else a reset could overtake the response
            cycle.keep_alive = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of the first request, or close one connection too many."""
        super().connection_made(transport)
        # `pause_writing` is then called for all unsent bytes; at 0, TLS of uvloop pauses without any.
        transport.set_write_buffer_limits(high=1, low=0)
        self._responses = _ResponseTransport(transport)
        if len(self.connections) > self._limits.connections:
            transport.abort()
            return
        self._set_phase("headers")

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the request of a client that disconnected."""
        super().connection_lost(exc)
        self._set_phase("")
        self._cancel_write_timer()
        self._unset_keepalive_if_required()
        if self._request is not None:
            self._request.cancel()
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        """Parse the next bytes, and time each part of a request: its headers, its body."""
        if self._rejection is not None:
            return
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._rejection is None and self._unparsed_bytes > self._limits.max_metadata_bytes:
            self._rejection = self._headers_too_large()
            self.send_400_response("")
        if self._rejection is not None or self.transport.is_closing():
            return
        has_response = self._has_response()
        if self._reads_body:
            self._set_phase("rest" if has_response else "body")
        else:
            self._set_phase("headers" if has_response and self._in_message else "")
        if has_response and not self._in_message:
            self._wait_for_request()

    def on_message_begin(self) -> None:
        """Begin a request, or reject one that is too far ahead of the responses."""
        if len(self.pipeline) >= MAX_PIPELINED:
            self._reject(HttpError(400, f"request: is pipelined; expected at most {MAX_PIPELINED} without a response"))
        super().on_message_begin()
        self._in_message = True
        self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Add to the target of the request."""
        self._unparsed_bytes = 0
        super().on_url(url)
        if len(self.url) > (limit := self._limits.max_metadata_bytes):
            self._reject(HttpError(414, f"path: has more than {limit} bytes; expected at most {limit}"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; a trailer, after the body, is ignored."""
        self._unparsed_bytes = 0
        if self._reads_body:
            return
        super().on_header(name, value)
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > self._limits.max_metadata_bytes:
            self._reject(self._headers_too_large())

    def on_headers_complete(self) -> None:
        """Start the request, or reject one that HTTP/1.1 forbids or whose body llhttp would not read."""
        self._unparsed_bytes = 0
        names, version = [name for name, _ in self.headers], self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            self._reject(HttpError(505, f"version: is HTTP/{version}; expected HTTP/1.1 or HTTP/1.0"))
        if version == "1.1" and (hosts := names.count(b"host")) != 1:
            self._reject(HttpError(400, f"host: is in {hosts} headers; expected 1"))
        upgrades = self.parser.should_upgrade()
        if upgrades and (b"content-length" in names or b"transfer-encoding" in names):
            self._reject(HttpError(400, "upgrade: unsupported; expected a request without it"))
        super().on_headers_complete()
        self.cycle.transport = self._responses  # type: ignore[assignment] # it has all that a cycle calls
        self.scope["state"]["cycle"] = self.cycle
        self._reads_body = True
        if upgrades:  # the bytes after it could be of another protocol
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Add to the body."""
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Complete the request."""
        self._unparsed_bytes = 0
        super().on_message_complete()
        self._in_message = self._reads_body = False

    def on_response_complete(self) -> None:
        """Wait for the rest of the request for a short time only."""
        self._request = None
        self._responses.finish()
        super().on_response_complete()
        if not self.transport.is_closing():
            self._set_phase("rest" if self._reads_body and self.cycle.response_complete else "")

    def pause_writing(self) -> None:
        """Give the client limited time to read."""
        super().pause_writing()
        if self._write_timer is None and self._limits.message_timeout:
            self._write_timer = self.loop.call_later(self._limits.message_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the timer: the client has read everything."""
        super().resume_writing()
        self._cancel_write_timer()

    def send_400_response(self, msg: str) -> None:
        """Answer a rejected request, or bytes that are not HTTP, with an error as JSON, and disconnect the client."""
        self._rejection = self._rejection or HttpError(400, f"request: {msg}")
        response = to_response(self._rejection)
        self._on_rejection(response.status)
        if not self._has_response():  # a second response would be taken for the first one
            self.transport.close()
            return
        head = f"content-type: {response.content_type}\r\ncontent-length: {len(response.body)}\r\nconnection: close\r\n"
        self.transport.write(STATUS_LINE[response.status] + head.encode() + b"\r\n" + response.body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._set_phase("rest")
        else:  # TLS
            self.transport.close()

    def _has_response(self) -> bool:
        """Return whether every request so far has its response."""
        return self.cycle is None or (self.cycle.response_complete and not self.pipeline)

    def _reject(self, error: HttpError) -> NoReturn:
        """Make the parser stop, and uvicorn call `send_400_response`."""
        self._rejection = error
        raise error

    def _headers_too_large(self) -> HttpError:
        limit = self._limits.max_metadata_bytes
        return HttpError(431, f"headers: have more than {limit} bytes; expected at most {limit}")

    def _wait_for_request(self) -> None:
        """Close the connection if no request comes."""
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _set_phase(self, phase: str) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        timeouts = {"headers": HEADER_TIMEOUT, "body": self._limits.message_timeout, "rest": LINGER_TIMEOUT}
        if seconds := timeouts.get(phase):
            self._read_timer = self.loop.call_later(seconds, self.transport.abort)

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
