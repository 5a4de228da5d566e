"""One HTTP/1.1 connection: uvicorn's protocol over llhttp, with bounds on the time and memory that a client takes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NoReturn, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.transports.http.errors import HttpError, headers_too_large, to_response
from service.transports.http.responses import ResponseTransport, encode_last
from service.transports.http.timer import Timer

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvicorn.config import Config
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
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

_HEADER_OVERHEAD = 32
"""Bytes that each header counts in addition to its name and value, as in HTTP/2: empty ones take memory too."""

_NEVER = 365 * 86400.0  # seconds


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
        self._authenticated = False
        self._unanswered = 0
        self._in_message = False
        self._reads_body = False
        self._header_bytes = 0
        self._unparsed_bytes = 0
        self._rejection: HttpError | None = None
        self._ignores_data = False
        self._phase = ""
        self._request: asyncio.Task[Any] | None = None
        self.timeout_keep_alive = HEADER_TIMEOUT  # type: ignore[assignment] # uvicorn's option is a whole number

    def begin_request(self) -> None:
        """Remember the running task as that of the request, to cancel it if the client disconnects."""
        if self.transport.is_closing():
            raise asyncio.CancelledError
        self._request = asyncio.current_task()

    def set_authenticated(self) -> None:
        """Let the connection be idle for as long as the gRPC port does."""
        self._authenticated = True
        self.timeout_keep_alive = self._limits.connection_idle or _NEVER  # type: ignore[assignment] # as above

    def closes_after_response(self, cycle: RequestResponseCycle) -> bool:
        """Return whether the connection ends with this response.

        A client that waits for `100 Continue` may send its next request instead of the body, so the two would mix.
        The rest of the body of an unauthenticated client is not worth parsing.
        """
        if cycle.more_body and (not self._authenticated or (cycle.waiting_for_100_continue and not cycle.body)):
            cycle.keep_alive = False
        return not cycle.keep_alive

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of the first request, or close one connection too many."""
        super().connection_made(transport)
        # `pause_writing` is then called for all unsent bytes; at 0, TLS of uvloop pauses without any.
        transport.set_write_buffer_limits(high=1, low=0)
        self._responses = ResponseTransport(transport, self._close)
        self._read_timer, self._write_timer = Timer(transport.abort), Timer(transport.abort)
        if len(self.connections) > self._limits.connections:
            transport.abort()
            return
        self._set_phase("headers")

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the request of a client that disconnected."""
        super().connection_lost(exc)
        self._set_phase("")
        self._write_timer.cancel()
        self._unset_keepalive_if_required()
        if self._request is not None:
            self._request.cancel()
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        """Parse the next bytes, and time each part of a request: its headers, its body."""
        if self._ignores_data or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self._unparsed_bytes += len(data)
        try:
            self._parse(data)
            if self._unparsed_bytes > (limit := self._limits.max_metadata_bytes):
                self._reject(headers_too_large(limit))
        except (HttpParserError, HttpError):
            self._rejection = self._rejection or HttpError(400, "request: Invalid HTTP request received.")
            self._ignores_data = True
            self._end_rejected_request()
        else:
            self._time_request()

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
        self._header_bytes += len(name) + len(value) + _HEADER_OVERHEAD
        if self._header_bytes > (limit := self._limits.max_metadata_bytes):
            self._reject(headers_too_large(limit))
        if not self._reads_body:
            super().on_header(name, value)
        elif name.lower() == b"connection":  # llhttp would obey it
            self._reject(HttpError(400, "connection: is a trailer; expected a header"))

    def on_headers_complete(self) -> None:
        """Start the request, or reject one that HTTP/1.1 forbids."""
        self._unparsed_bytes = 0
        if self.parser.get_method() == b"CONNECT":
            self._reject(HttpError(501, "method: CONNECT is unsupported; expected GET or POST"))
        if self.parser.should_upgrade():  # `_parse` repeats the request without it
            return
        names, version = [name for name, _ in self.headers], self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            self._reject(HttpError(505, f"version: is HTTP/{version}; expected HTTP/1.1 or HTTP/1.0"))
        if version == "1.1" and (hosts := names.count(b"host")) != 1:
            self._reject(HttpError(400, f"host: is in {hosts} headers; expected 1"))
        if any(name == b"transfer-encoding" and value.lower() != b"chunked" for name, value in self.headers):
            self._reject(HttpError(501, "transfer-encoding: unsupported; expected chunked"))
        self.expect_100_continue = self.expect_100_continue and version == "1.1"
        super().on_headers_complete()
        self._unanswered += 1
        self.cycle.transport = self._responses  # type: ignore[assignment] # it has all that a cycle calls
        self.scope["state"]["cycle"] = self.cycle
        self._reads_body = True

    def on_body(self, body: bytes) -> None:
        """Add to the body."""
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Complete the request."""
        self._unparsed_bytes = 0
        if self._reads_body:
            super().on_message_complete()
        self._in_message = self._reads_body = False

    def on_response_complete(self) -> None:
        """Wait for the rest of the request for a short time only."""
        self._request = None
        self._unanswered -= 1
        self._responses.finish()
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._rejection is not None and not self._unanswered:
            self._send_rejection()
        elif not self._ignores_data:
            self._time_request()

    def pause_writing(self) -> None:
        """Give the client limited time to read."""
        super().pause_writing()
        self._write_timer.start(self._limits.message_timeout)

    def resume_writing(self) -> None:
        """Stop the timer: the client has read everything."""
        super().resume_writing()
        self._write_timer.cancel()

    def _parse(self, data: bytes) -> None:
        """Parse bytes; a request to upgrade as the same request without it, since llhttp would not read its body."""
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
            lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
            self.parser = HttpRequestParser(self)
            self._parse(b"\r\n".join([*lines, b"", data[upgrade.args[0] :]]))

    def _reject(self, error: HttpError) -> NoReturn:
        """Make the parser stop."""
        self._rejection = error
        raise error

    def _end_rejected_request(self) -> None:
        """Answer the request in which the parser stopped after those before it, and disconnect the client."""
        if self._reads_body:
            if self.pipeline:
                self.pipeline.popleft()
            elif self.cycle.response_started:
                self._rejection = None
                self.cycle.keep_alive = False
                if self.cycle.response_complete:
                    self.transport.close()
                return
            else:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            self._unanswered -= 1
        if not self._unanswered:
            self._send_rejection()

    def _send_rejection(self) -> None:
        response = to_response(cast("HttpError", self._rejection))
        self._on_rejection(response.status)
        self.transport.write(encode_last(response))
        self._linger()

    def _close(self) -> None:
        """Close the connection after a response."""
        if (self._reads_body or self.pipeline) and not self.transport.is_closing():
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """Close the connection, with time for the client to read the response if it still sends."""
        self._ignores_data, self._rejection = True, None
        self.pipeline.clear()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._set_phase("rest")
        else:  # TLS
            self.transport.close()

    def _time_request(self) -> None:
        """Limit the time for the rest of the body or of the headers, or until the next request."""
        if self._reads_body:
            self._set_phase("rest" if not self._unanswered else "" if self.pipeline else "body")
            if not self._unanswered:  # libuv would parse 32 reads of these bytes, which no request needs, in one turn
                self.flow.pause_reading()
                self.loop.call_soon(self._resume_reading)
            return
        begins = not self._unanswered and (self._in_message or self._unparsed_bytes)
        self._set_phase("headers" if begins else "")
        if not self._unanswered and not begins and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _resume_reading(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _set_phase(self, phase: str) -> None:
        if phase != self._phase:
            self._phase = phase
            self._read_timer.cancel()
            timeouts = {"headers": HEADER_TIMEOUT, "body": self._limits.message_timeout, "rest": LINGER_TIMEOUT}
            self._read_timer.start(timeouts.get(phase, 0))
