"""The messages of a call: read, decoded, counted and written."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError
from grpc import aio

from service.errors import Unimplemented, malformed_message
from service.transports.grpcio.unsent_replies import CALL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from service.observability.rpc_metrics import RpcMetrics
    from service.transports.grpcio.open_calls import OpenCalls

    Decode = Callable[[bytes], Any]

CANCELLATION_DELAY = 0.002
"""Seconds between the apparent end of the messages of a cancelled call and the cancellation of its task by grpcio."""


async def read_only_message(context: Any) -> bytes:
    """Return the message of a call with one request; Unimplemented, as gRPC specifies, if it has none."""
    message: Any = await context.read()
    if message is aio.EOF:
        await asyncio.sleep(CANCELLATION_DELAY)
        raise Unimplemented("the call holds no message; expected one")
    return bytes(message)


def decoder(handler: Any) -> Decode:
    """Return the function that decodes a message, InvalidInput if it is malformed; our own handlers take the bytes."""
    deserialize = handler.request_deserializer
    if deserialize is None:
        return bytes

    def decode(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            raise malformed_message() from None

    return decode


class MessageStream:
    """A streaming call as its handler sees it: messages are counted, and a drain may end it while it waits.

    Handlers call `read` and `write`, or iterate, or both, so it takes the place of grpcio's request iterator too.
    """

    def __init__(self, context: Any, rpc: RpcMetrics, open_calls: OpenCalls, decode: Decode = bytes) -> None:
        self._call = CALL.get(None)
        self._decode = decode
        self._rpc = rpc
        self._streams = open_calls.streams
        self._unsent = open_calls.unsent
        self.context = context
        self.time_remaining = context.time_remaining
        self.invocation_metadata = context.invocation_metadata

    async def read(self) -> Any:
        """Return the next message, or `grpc.aio.EOF`."""
        message = await self._streams.wait(self.context.read())
        if message is aio.EOF:
            await asyncio.sleep(CANCELLATION_DELAY)
            return message
        self._rpc.received()
        return self._decode(message)

    async def write(self, message: Any) -> None:
        """Send one message."""
        self._unsent.hold(len(message) if isinstance(message, bytes) else 0, self.context.peer)
        await self._streams.complete(self.context.write(message))
        if self._call is not None:
            self._unsent.release(self._call)
        self._rpc.sent()

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not aio.EOF:
            yield message
