"""The handlers of a service in the form of grpcio: deadlines, streams and batches of their messages."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import grpc

from service.handlers.local_client import PEER
from service.transports.grpcio.read_ahead import ReadAhead

if TYPE_CHECKING:
    from service.handlers import Alternative, BatchHandler, MessageHandler, Service


def method_handlers(service: Service) -> dict[str, Any]:
    """Return grpcio's handler of each RPC, by name."""
    return {
        **{name: grpc.unary_unary_rpc_method_handler(_unary(handler)) for name, handler in service.unary.items()},
        **{
            name: grpc.stream_stream_rpc_method_handler(
                _bidi_stream(handler, service.batches[name], service.alternatives.get(name))
            )
            for name, handler in service.streams.items()
        },
    }


def _unary(handler: MessageHandler) -> Any:
    async def call(request: bytes, context: Any) -> bytes:
        PEER.set(context.peer)
        return await handler(request, _deadline(context))

    return call


def _bidi_stream(default: MessageHandler, batch_handler: BatchHandler, alternative: Alternative | None) -> Any:
    """Make a behaviour that sends one reply per message, in order."""

    async def call(_: Any, stream: Any) -> None:
        PEER.set(stream.context.peer)
        deadline = _deadline(stream)
        handler = default
        if alternative and alternative.matches(stream.invocation_metadata()):
            handler = alternative.handler
        with ReadAhead(stream.read) as ahead:
            while requests := await ahead.next_batch():
                if len(requests) > 1 and (replies := batch_handler(requests, deadline)):
                    for reply in replies:
                        await stream.write(reply)
                else:
                    for request in requests:
                        await stream.write(await handler(request, deadline))

    return call


def _deadline(context: Any) -> float:
    """Return the deadline of the call on the clock of `time.monotonic`."""
    remaining = context.time_remaining()
    return float("inf") if remaining is None else time.monotonic() + remaining
