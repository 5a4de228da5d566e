"""What surrounds every RPC of the grpcio transport: clock, metrics, request id, and the error table."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from service.errors import Unauthenticated, Unimplemented, malformed_message
from service.observability.metrics import Metrics, Rpc, RpcMetrics
from service.transports.call_log import CallLogger
from service.transports.grpcio.unfinished_calls import UnfinishedMessages
from service.transports.grpcio.unsent_replies import CALL
from service.transports.status import code_name, to_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable

    from google.rpc.status_pb2 import Status
    from structlog.typing import FilteringBoundLogger

    from service.errors import ServiceError
    from service.security.tokens import Tokens
    from service.transports.grpcio.streams import OpenStreams
    from service.transports.grpcio.unsent_replies import UnsentReplies

    Decode = Callable[[bytes], Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
    Behaviour = Callable[[Any, Any], Awaitable[Any]]
    Metadata = Iterable[tuple[str, Any]]  # of a call; grpcio makes it anew each time that it is asked for

REQUEST_ID = "x-request-id"
LONGEST_REQUEST_ID = 128

_HANG_UP_IS_HEARD_WITHIN = 0.002
"""Seconds: the messages of a caller that hung up seem to end well until grpcio has heard of it and cancels the task."""

_STANDARD = "grpc."
"""Services whose messages are a name or so; anybody may call health."""

_SMALL_WITHIN, _MOST_SMALL = 10.0, 16
"""Seconds for a message of these, and how many may take more than a second of them at a time.

grpcio takes messages of the same size for every RPC, so each can hold as much as a batch of images.
"""

_LARGE_REPLIES = {"Explain"}
"""RPCs whose replies have megabytes."""

_TYPES = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}
_STATUS_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class CallRecorder(Protocol):
    """What counts one call, as `RpcMetrics` does."""

    method: str

    def start(self) -> float:
        """Count its beginning; give what this returns to `finish`."""
        ...

    def finish(self, started: float, code: str, request_id: str) -> None:
        """Count its end."""
        ...


class RpcInstrumentation:
    """Wraps the handlers of RPCs, standard services' and our own alike.

    With `tokens` only those calls are answered that bring one, or that are of `open_services`.

    At registration, once for each: an interceptor would cost every call some 20 us more.
    """

    def __init__(
        self,
        metrics: Metrics,
        streams: OpenStreams,
        log: FilteringBoundLogger,
        unsent: UnsentReplies,
        *,
        tokens: Tokens | None = None,
        open_services: Collection[str] = (),
        message_timeout: float = 0.0,
        most_unfinished: int | None = None,
    ) -> None:
        self._metrics = metrics
        self._tokens = tokens
        self._open = open_services
        self._closed: set[str] = set()
        self._rpcs: dict[str, RpcMetrics] = {}
        self._streams = streams
        self._call_log = CallLogger(log)
        self._unsent = unsent
        self._unfinished = UnfinishedMessages(message_timeout, most_unfinished)
        self._unfinished_small = UnfinishedMessages(min(message_timeout or _SMALL_WITHIN, _SMALL_WITHIN), _MOST_SMALL)

    def wrap(self, service: str, name: str, handler: Any) -> Handler:
        """The handler of RPC `name` of `service`, observed; its series exist from now on."""
        kind = (handler.request_streaming, handler.response_streaming)
        rpc = RpcMetrics(self._metrics, Rpc(_TYPES[kind], service, name))
        self._rpcs[rpc.method] = rpc
        if self._tokens and service not in self._open:
            self._closed.add(rpc.method)
        # Messages are decoded here and not by grpcio, which would tell the caller of its own exception.
        decode, coders = _decoder(handler), (None, handler.response_serializer)
        # Messages are read here too: a call is judged by its headers, and ends where its message never comes.
        if kind == (False, False):
            return grpc.stream_unary_rpc_method_handler(self._unary(handler.unary_unary, rpc, decode), *coders)
        if kind == (False, True):
            return grpc.stream_stream_rpc_method_handler(self._watch(handler.unary_stream, rpc, decode), *coders)
        return grpc.stream_stream_rpc_method_handler(self._stream(handler.stream_stream, rpc, decode), *coders)

    def refusing(self, method: str, error: Callable[[], ServiceError]) -> Handler:
        """What can stand in for the wrapped handler of `method`: each call ends with the error, its message unread."""

        async def refuse(_: Any, __: Any) -> None:
            raise error()

        async def call(_: Any, context: Any) -> None:
            await self._observe(self._rpcs[method], context, context.invocation_metadata(), refuse, None, context)

        return grpc.stream_stream_rpc_method_handler(call)  # a stream, so that grpcio does not wait for the message

    def _unary(self, behaviour: Behaviour, rpc: RpcMetrics, decode: Decode) -> Behaviour:
        unfinished, unsent = self._unfinished_of(rpc), self._unsent
        large, standard = rpc.rpc.grpc_method in _LARGE_REPLIES, rpc.rpc.grpc_service.startswith(_STANDARD)

        async def answer(_: Any, context: Any) -> Any:
            if large or (unsent.held and not standard):
                await unsent.wait_for_room(context.peer(), large=large)  # its message unread, so that it holds little
            message = await unfinished.wait(_only_message(context))
            rpc.received()
            return await behaviour(decode(message), context)

        async def call(_: Any, context: Any) -> Any:
            reply = await self._observe(rpc, context, context.invocation_metadata(), answer, None, context)
            rpc.sent()
            unsent.hold(0 if standard else len(reply), context.peer)
            return reply

        return call

    def _watch(self, behaviour: Behaviour, rpc: RpcMetrics, decode: Decode) -> Behaviour:
        """A stream of replies to one request that may never end, as health Watch: a drain ends it between two."""
        unfinished = self._unfinished_of(rpc)

        async def answer(_: Any, stream: _Stream) -> None:
            message = await self._streams.wait(unfinished.wait(_only_message(stream.context)))
            rpc.received()
            await self._streams.wait(behaviour(decode(message), stream))

        async def call(_: Any, context: Any) -> None:
            stream = _Stream(context, rpc, self._streams, self._unsent)
            await self._observe(rpc, context, context.invocation_metadata(), answer, None, stream)

        return call

    def _unfinished_of(self, rpc: RpcMetrics) -> UnfinishedMessages:
        return self._unfinished_small if rpc.rpc.grpc_service.startswith(_STANDARD) else self._unfinished

    def _stream(self, behaviour: Any, rpc: RpcMetrics, decode: Decode) -> Behaviour:
        async def from_generator(stream: _Stream, _: Any) -> None:
            async for reply in behaviour(stream, stream):
                await stream.write(reply)

        answer = from_generator if inspect.isasyncgenfunction(behaviour) else behaviour

        async def call(_: Any, context: Any) -> None:
            stream = _Stream(context, rpc, self._streams, self._unsent, decode)
            await self._observe(rpc, context, context.invocation_metadata(), answer, stream, stream)

        return call

    async def _observe(
        self, rpc: CallRecorder, context: Any, metadata: Metadata, behaviour: Behaviour, request: Any, call: Any
    ) -> Any:
        """Call the behaviour; its end is counted before its status goes out, so that metrics never lag behind it."""
        started = rpc.start()
        request_id = request_id_from(metadata)
        try:
            if request_id:
                context.set_trailing_metadata(((REQUEST_ID, request_id),))
            if rpc.method in self._closed:
                self._check_token(metadata)
            reply = await behaviour(request, call)
        except aio.AbortError:  # a standard servicer has ended the call itself
            rpc.finish(started, code_name(context.code().value[0]), request_id)
            raise
        except asyncio.CancelledError:  # the caller has gone
            rpc.finish(started, "Canceled", request_id)
            raise
        except Exception as error:  # noqa: BLE001 (the last place that can keep an internal text from the caller)
            status = to_status(error)
            request_id = request_id or uuid.uuid4().hex
            rpc.finish(started, code_name(status.code), request_id)
            await self._refuse(error, status, rpc.method, context, request_id)
        else:
            rpc.finish(started, "OK", request_id)
            return reply

    def _check_token(self, metadata: Metadata) -> None:
        assert self._tokens is not None
        try:
            self._tokens.check(metadata)
        except Unauthenticated:
            self._metrics.requests_dropped.labels("unauthenticated").inc()
            raise

    async def _refuse(self, error: Exception, status: Status, method: str, context: Any, request_id: str) -> None:
        self._call_log.log_error(error, method=method, code=code_name(status.code), **self._names(request_id))
        trailing = ((REQUEST_ID, request_id), ("grpc-status-details-bin", status.SerializeToString()))
        await context.abort(_STATUS_CODES[status.code], status.message, trailing)

    def _names(self, request_id: str) -> dict[str, str]:
        """What the log calls a call, so that it is found from elsewhere."""
        return {"request_id": request_id}


class _Stream:
    """A streaming call as its handler sees it: messages are counted, and a drain may end it while it waits.

    Its handlers use `read` and `write`, or iterate, or both, so it stands for grpcio's request iterator too.
    """

    def __init__(
        self, context: Any, rpc: RpcMetrics, streams: OpenStreams, unsent: UnsentReplies, decode: Decode = bytes
    ) -> None:
        self._unsent = unsent
        self._call = CALL.get(None)
        self._decode = decode
        self.context = context
        self._rpc = rpc
        self._streams = streams
        self.time_remaining = context.time_remaining
        self.invocation_metadata = context.invocation_metadata

    async def read(self) -> Any:
        """The next message, or `grpc.aio.EOF`."""
        message = await self._streams.wait(self.context.read())
        if message is aio.EOF:
            await asyncio.sleep(_HANG_UP_IS_HEARD_WITHIN)
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


def _decoder(handler: Any) -> Decode:
    """What makes a message of its bytes, InvalidInput where they are none; our own handlers take the bytes."""
    from_bytes = handler.request_deserializer
    if from_bytes is None:
        return bytes

    def decode(data: bytes) -> Any:
        try:
            return from_bytes(data)
        except DecodeError:
            raise malformed_message() from None

    return decode


async def _only_message(context: Any) -> bytes:
    message: Any = await context.read()
    if message is aio.EOF:
        await asyncio.sleep(_HANG_UP_IS_HEARD_WITHIN)
        raise Unimplemented("the call holds no message; expected one")
    return bytes(message)


def request_id_from(metadata: Metadata) -> str:
    """The caller's own id for this call, or nothing."""
    for key, value in metadata:
        if key == REQUEST_ID:
            return str(value)[:LONGEST_REQUEST_ID]
    return ""
