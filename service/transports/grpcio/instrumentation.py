"""The wrapper of every RPC of the grpcio transport: clock, metrics, request id, authentication and error status."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from grpc import aio

from service.observability.rpc_metrics import Rpc, RpcMetrics
from service.transports.grpcio.messages import MessageStream, decoder, read_only_message
from service.transports.request_id import REQUEST_ID, request_id_from
from service.transports.status import code_name, to_status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from google.rpc.status_pb2 import Status

    from service.errors import ServiceError
    from service.observability.metrics import Metrics
    from service.transports.call_log import CallLogger
    from service.transports.grpcio.authenticator import Authenticator
    from service.transports.grpcio.messages import Decode
    from service.transports.grpcio.open_calls import OpenCalls
    from service.transports.grpcio.unfinished_calls import UnfinishedMessages

    Handler = grpc.RpcMethodHandler[Any, Any]
    Behaviour = Callable[[Any, Any], Awaitable[Any]]
    Metadata = Iterable[tuple[str, Any]]  # of a call; each access makes grpcio convert it again

_STANDARD = "grpc."
"""The prefix of the standard services, whose messages are small."""

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
    """Counts one call, as `RpcMetrics` does."""

    method: str

    def start(self) -> float:
        """Count the start; pass the returned time to `finish`."""
        ...

    def finish(self, started: float, code: str, request_id: str) -> None:
        """Count the end."""
        ...


class RpcInstrumentation:
    """Wraps the handlers of RPCs, of our own and the standard services alike.

    It wraps once, at registration: an interceptor costs each call another 20 us.
    """

    def __init__(
        self, metrics: Metrics, call_log: CallLogger, authenticator: Authenticator, open_calls: OpenCalls
    ) -> None:
        self._metrics = metrics
        self._call_log = call_log
        self._authenticator = authenticator
        self._protected = authenticator.protected
        self._open_calls = open_calls
        self._rpcs: dict[str, RpcMetrics] = {}

    def wrap(self, service: str, name: str, handler: Any) -> Handler:
        """Wrap the handler of the RPC `name` of `service`, and create its series."""
        kind = (handler.request_streaming, handler.response_streaming)
        rpc = RpcMetrics(self._metrics, Rpc(_TYPES[kind], service, name))
        self._rpcs[rpc.method] = rpc
        self._authenticator.register(rpc)
        # The wrapper decodes messages: grpcio would send the client the text of its own exception.
        decode, coders = decoder(handler), (None, handler.response_serializer)
        # It reads them too: a call is checked by its headers, and ends if its message never arrives.
        if kind == (False, False):
            return grpc.stream_unary_rpc_method_handler(self._wrap_unary(handler.unary_unary, rpc, decode), *coders)
        if kind == (False, True):
            wrapped = self._wrap_server_stream(handler.unary_stream, rpc, decode)
        else:
            wrapped = self._wrap_bidi_stream(handler.stream_stream, rpc, decode)
        return grpc.stream_stream_rpc_method_handler(wrapped, *coders)

    def rejecting_handler(self, method: str, error: Callable[[], ServiceError]) -> Handler:
        """Make a handler of `method`, already wrapped, that ends each call with the error and reads no message."""

        async def reject(_: Any, __: Any) -> None:
            raise error()

        async def call(_: Any, context: Any) -> None:
            await self._run_call(self._rpcs[method], context, context.invocation_metadata(), reject, None, context)

        return grpc.stream_stream_rpc_method_handler(call)  # a stream, so that grpcio does not wait for the message

    def _wrap_unary(self, behaviour: Behaviour, rpc: RpcMetrics, decode: Decode) -> Behaviour:
        unfinished, unsent = self._unfinished(rpc), self._open_calls.unsent
        large, standard = rpc.rpc.grpc_method in _LARGE_REPLIES, rpc.rpc.grpc_service.startswith(_STANDARD)

        async def answer(_: Any, context: Any) -> Any:
            if large or (unsent.bytes_by_peer and not standard):
                await unsent.wait_for_room(context.peer(), large=large)  # before its message takes memory
            message = await unfinished.wait(read_only_message(context))
            rpc.received()
            return await behaviour(decode(message), context)

        async def call(_: Any, context: Any) -> Any:
            reply = await self._run_call(rpc, context, context.invocation_metadata(), answer, None, context)
            rpc.sent()
            unsent.hold(0 if standard else len(reply), context.peer)
            return reply

        return call

    def _wrap_server_stream(self, behaviour: Behaviour, rpc: RpcMetrics, decode: Decode) -> Behaviour:
        """Wrap a stream of replies that may never end, such as health Watch: a drain ends it between two replies."""
        unfinished, streams = self._unfinished(rpc), self._open_calls.streams

        async def answer(_: Any, stream: MessageStream) -> None:
            message = await streams.wait(unfinished.wait(read_only_message(stream.context)))
            rpc.received()
            await streams.wait(behaviour(decode(message), stream))

        async def call(_: Any, context: Any) -> None:
            stream = MessageStream(context, rpc, self._open_calls)
            await self._run_call(rpc, context, context.invocation_metadata(), answer, None, stream)

        return call

    def _wrap_bidi_stream(self, behaviour: Any, rpc: RpcMetrics, decode: Decode) -> Behaviour:
        async def write_replies(stream: MessageStream, _: Any) -> None:
            async for reply in behaviour(stream, stream):
                await stream.write(reply)

        answer = write_replies if inspect.isasyncgenfunction(behaviour) else behaviour

        async def call(_: Any, context: Any) -> None:
            stream = MessageStream(context, rpc, self._open_calls, decode)
            await self._run_call(rpc, context, context.invocation_metadata(), answer, stream, stream)

        return call

    def _unfinished(self, rpc: RpcMetrics) -> UnfinishedMessages:
        is_standard = rpc.rpc.grpc_service.startswith(_STANDARD)
        return self._open_calls.unfinished_small if is_standard else self._open_calls.unfinished

    async def _run_call(
        self, rpc: CallRecorder, context: Any, metadata: Metadata, behaviour: Behaviour, request: Any, call: Any
    ) -> Any:
        """Run the behaviour; count the end before the status is sent, so that metrics never lag behind it."""
        started = rpc.start()
        request_id = request_id_from(metadata)
        try:
            if request_id:
                context.set_trailing_metadata(((REQUEST_ID, request_id),))
            if rpc.method in self._protected:
                self._authenticator.check(metadata)
            reply = await behaviour(request, call)
        except aio.AbortError:  # a standard servicer has set the status itself
            rpc.finish(started, code_name(context.code().value[0]), request_id)
            raise
        except asyncio.CancelledError:  # the client has cancelled
            rpc.finish(started, "Canceled", request_id)
            raise
        except Exception as error:  # noqa: BLE001 (the last place that can keep an internal text from the client)
            status = to_status(error)
            request_id = request_id or uuid.uuid4().hex
            rpc.finish(started, code_name(status.code), request_id)
            await self._abort(error, status, rpc.method, context, request_id)
        else:
            rpc.finish(started, "OK", request_id)
            return reply

    async def _abort(self, error: Exception, status: Status, method: str, context: Any, request_id: str) -> None:
        self._call_log.log_error(error, method=method, code=code_name(status.code), **self._log_ids(request_id))
        trailing = ((REQUEST_ID, request_id), ("grpc-status-details-bin", status.SerializeToString()))
        await context.abort(_STATUS_CODES[status.code], status.message, trailing)

    def _log_ids(self, request_id: str) -> dict[str, str]:
        """Return the ids that the log has for a call."""
        return {"request_id": request_id}
