"""One HTTP/1.1 connection: uvicorn's protocol with bounds on the time that a client takes."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.transports.http.errors import json_response

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

_NEVER = 365 * 86400.0  # seconds

_uvicorn = logging.getLogger("uvicorn")
_uvicorn.addHandler(logging.NullHandler())  # any client can cause its warnings; the application logs errors
_uvicorn.propagate = False


class Connection(H11Protocol):
    """A connection of a server with these limits; `on_lost` is called at its end."""

    def __init__(self, config: Config, state: ServerState, limits: Limits, on_lost: Callable[[], object]) -> None:
        super().__init__(config, state, {"connection": self}, asyncio.get_running_loop())
        self._limits = limits
        self._on_lost = on_lost
        self._reading = ""
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._request: asyncio.Task[Any] | None = None
        self.timeout_keep_alive = HEADER_TIMEOUT  # type: ignore[assignment] # uvicorn's option is a whole number

    def begin_request(self) -> None:
        """Remember the running task as that of the request, to cancel it if the client disconnects."""
        self._request = asyncio.current_task()

    def set_authenticated(self) -> None:
        """Let the connection be idle for as long as the gRPC port does."""
        self.timeout_keep_alive = self._limits.connection_idle or _NEVER  # type: ignore[assignment] # as above

    def close_after_response(self) -> None:
        """Close the connection of a client that failed to authenticate, once its request is complete."""
        if self.conn.their_state is not h11.SEND_BODY:  # a reset could overtake the response
            self.cycle.keep_alive = False

    @property
    def closes_after_response(self) -> bool:
        """Whether the connection closes after the response in progress, in a drain too."""
        return not self.cycle.keep_alive

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of the first request, or close one connection too many."""
        super().connection_made(transport)
        # `pause_writing` is then called for all unsent bytes; at 0, TLS of uvloop pauses without any.
        transport.set_write_buffer_limits(high=1, low=0)
        if len(self.connections) > self._limits.connections:
            transport.abort()
            return
        self._set_read_phase("headers")

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the request of a client that disconnected."""
        super().connection_lost(exc)
        self._set_read_phase("")
        self._cancel_write_timer()
        self._unset_keepalive_if_required()
        if self._request is not None and self.cycle is not None and not self.cycle.response_complete:
            self._request.cancel()
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        """Restart the timer with each part of a request that begins: its headers, its body."""
        super().data_received(data)
        state = self.conn.their_state
        self._set_read_phase("headers" if state is h11.IDLE else "body" if state is h11.SEND_BODY else "")

    def on_response_complete(self) -> None:
        """Wait for the rest of the request for a short time only."""
        self._request = None
        super().on_response_complete()
        if not self.transport.is_closing():
            self._set_read_phase("rest" if self.conn.their_state is h11.SEND_BODY else "")

    def shutdown(self) -> None:
        """Close the connection after its response, or at once if it has no request."""
        try:
            super().shutdown()
        except h11.LocalProtocolError:  # the client has broken the protocol
            self.transport.abort()

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
        """Answer bytes that are not HTTP with an error as JSON."""
        response = json_response({"error": f"request: {msg}"}, status=400)
        headers = [("content-type", response.content_type), ("content-length", str(len(response.body)))]
        self.transport.write(
            self.conn.send(h11.Response(status_code=400, headers=[*headers, ("connection", "close")])) or b""
        )
        self.transport.write(self.conn.send(h11.Data(data=response.body)) or b"")
        self.transport.write(self.conn.send(h11.EndOfMessage()) or b"")
        self.transport.close()

    def _set_read_phase(self, phase: str) -> None:
        if phase == self._reading:
            return
        self._reading = phase
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
