"""How a connection sends responses: the head and body of each in one system call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from service.transports.http.errors import Response

_CONTINUE = STATUS_LINE[100]


class ResponseTransport:
    """The transport of a connection for responses: the head of each waits for its body."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], object]) -> None:
        self._transport = transport
        self._close = close
        self._head: bytes | None = None  # None: not written yet; empty: sent
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Keep the head of a response, or send the body with it."""
        if self._transport.is_closing():  # the client disconnected
            return
        if self._head is not None:
            self._transport.write(self._head + data)
            self._head = b""
        elif data.startswith(_CONTINUE):
            self._transport.write(data)
        else:
            self._head = data

    def finish(self) -> None:
        """Send a head that has no body, as in the response to HEAD."""
        if self._head and not self._transport.is_closing():
            self._transport.write(self._head)
        self._head = None

    def close(self) -> None:
        """Finish the response and close the connection."""
        self.finish()
        self._close()


def encode_last(response: Response) -> bytes:
    """Encode the last response on a connection, which no request of the application has."""
    head = f"content-type: {response.content_type}\r\ncontent-length: {len(response.body)}\r\nconnection: close\r\n"
    return STATUS_LINE[response.status] + head.encode() + b"\r\n" + response.body
