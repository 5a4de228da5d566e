"""The wrapper of every RPC of a replica: metrics, request id and error status, on Ray's context of a call."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import grpc

from service.errors import ServiceError
from service.observability.rpc_metrics import Rpc, RpcMetrics
from service.transports.request_id import REQUEST_ID, request_id_from
from service.transports.status import code_name, to_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from google.rpc.status_pb2 import Status
    from structlog.typing import FilteringBoundLogger

    from service.handlers import Alternative, MessageHandler
    from service.observability.metrics import Metrics

NO_DEADLINE = float("inf")
"""Ray's proxy does not pass the deadline on: it ends the call, and cancels it in the replica."""

_STATUS_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class Reply:
    """Bytes in the form that Ray expects of a reply."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def SerializeToString(self) -> bytes:  # noqa: N802 (protobuf's name)
        """The bytes."""
        return self._content


class RpcAdapter:
    """Turns message handlers into the methods that Ray Serve calls with a message or a stream, and `grpc_context`."""

    def __init__(self, metrics: Metrics, log: FilteringBoundLogger) -> None:
        self._metrics = metrics
        self._log = log

    def unary(self, service: str, name: str, answer: MessageHandler) -> Callable[..., Awaitable[Reply]]:
        """Adapt a unary handler. The context has the status of an error, and the reply is empty."""
        rpc = RpcMetrics(self._metrics, Rpc("unary", service, name))

        async def call(request: bytes, grpc_context: Any) -> Reply:
            rpc.received()
            started, request_id = rpc.start(), request_id_from(grpc_context.invocation_metadata())
            try:
                reply = await answer(request, NO_DEADLINE)
            except asyncio.CancelledError:  # the client has cancelled
                rpc.finish(started, "Canceled", request_id)
                raise
            except Exception as error:  # noqa: BLE001 (the last place that can keep an internal text from the client)
                self._fail(error, rpc, started, request_id, grpc_context)
                return Reply(b"")
            if request_id:
                grpc_context.set_trailing_metadata([(REQUEST_ID, request_id)])
            rpc.sent()
            rpc.finish(started, "OK", request_id)
            return Reply(reply)

        return call

    def stream(
        self, service: str, name: str, usual: MessageHandler, alternative: Alternative | None = None
    ) -> Callable[..., AsyncIterator[Reply]]:
        """Adapt a stream handler: one reply per message, in order. Ray sends the status of an error without details."""
        rpc = RpcMetrics(self._metrics, Rpc("bidi_stream", service, name))

        async def call(request: AsyncIterator[bytes], grpc_context: Any) -> AsyncIterator[Reply]:
            metadata = grpc_context.invocation_metadata()
            started, request_id = rpc.start(), request_id_from(metadata)
            answer = alternative.handler if alternative and alternative.matches(metadata) else usual
            try:
                async for message in request:
                    rpc.received()
                    yield Reply(await answer(message, NO_DEADLINE))
                    rpc.sent()
            except (asyncio.CancelledError, GeneratorExit):
                rpc.finish(started, "Canceled", request_id)
                raise
            except Exception as error:  # noqa: BLE001 (as above)
                status = self._fail(error, rpc, started, request_id, grpc_context)
                raise _StreamError(status.message) from None
            rpc.finish(started, "OK", request_id)

        return call

    def _fail(self, error: Exception, rpc: RpcMetrics, started: float, request_id: str, context: Any) -> Status:
        status = to_status(error)
        request_id = request_id or uuid.uuid4().hex
        code = code_name(status.code)
        rpc.finish(started, code, request_id)
        if isinstance(error, ServiceError):
            self._log.warning("call rejected", method=rpc.method, code=code, reason=str(error), request_id=request_id)
        else:
            self._log.error("call failed", method=rpc.method, code=code, request_id=request_id, exc_info=error)
        context.set_code(_STATUS_CODES[status.code])
        context.set_details(status.message)
        context.set_trailing_metadata(
            [(REQUEST_ID, request_id), ("grpc-status-details-bin", status.SerializeToString())]
        )
        return status


class _StreamError(Exception):
    """Ends a stream; the context has its status."""
