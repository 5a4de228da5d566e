"""What surrounds every RPC of a replica: metrics, request id, and the error table, on Ray's context of a call."""

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
"""Ray's proxy keeps the caller's deadline to itself: it ends the call, and the replica hears of it as a cancelling."""

_STATUS_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class Reply:
    """Bytes, in the form in which Ray takes a reply."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def SerializeToString(self) -> bytes:  # noqa: N802 (protobuf's name)
        """The bytes."""
        return self._content


class Answering:
    """Makes of an MessageHandler what Ray Serve calls: a method of a message, or of a stream, and `grpc_context`."""

    def __init__(self, metrics: Metrics, log: FilteringBoundLogger) -> None:
        self._metrics = metrics
        self._log = log

    def unary(self, service: str, name: str, answer: MessageHandler) -> Callable[..., Awaitable[Reply]]:
        """One message, one reply. A refusal is told on the context, and the reply is empty."""
        rpc = RpcMetrics(self._metrics, Rpc("unary", service, name))

        async def call(request: bytes, grpc_context: Any) -> Reply:
            rpc.received()
            started, id_ = rpc.start(), request_id_from(grpc_context.invocation_metadata())
            try:
                reply = await answer(request, NO_DEADLINE)
            except asyncio.CancelledError:  # the caller has gone
                rpc.finish(started, "Canceled", id_)
                raise
            except Exception as error:  # noqa: BLE001 (the last place that can keep an internal text from the caller)
                self._reject(error, rpc, started, id_, grpc_context)
                return Reply(b"")
            if id_:
                grpc_context.set_trailing_metadata([(REQUEST_ID, id_)])
            rpc.sent()
            rpc.finish(started, "OK", id_)
            return Reply(reply)

        return call

    def stream(
        self, service: str, name: str, usual: MessageHandler, alternative: Alternative | None = None
    ) -> Callable[..., AsyncIterator[Reply]]:
        """One reply a message, in order. Ray tells a stream's refusal by its status and sentence alone."""
        rpc = RpcMetrics(self._metrics, Rpc("bidi_stream", service, name))

        async def call(request: AsyncIterator[bytes], grpc_context: Any) -> AsyncIterator[Reply]:
            metadata = grpc_context.invocation_metadata()
            started, id_ = rpc.start(), request_id_from(metadata)
            answer = alternative.handler if alternative and alternative.matches(metadata) else usual
            try:
                async for message in request:
                    rpc.received()
                    yield Reply(await answer(message, NO_DEADLINE))
                    rpc.sent()
            except (asyncio.CancelledError, GeneratorExit):
                rpc.finish(started, "Canceled", id_)
                raise
            except Exception as error:  # noqa: BLE001 (as above)
                status = self._reject(error, rpc, started, id_, grpc_context)
                raise _RefusedError(status.message) from None
            rpc.finish(started, "OK", id_)

        return call

    def _reject(self, error: Exception, rpc: RpcMetrics, started: float, id_: str, context: Any) -> Status:
        status = to_status(error)
        id_ = id_ or uuid.uuid4().hex
        code = code_name(status.code)
        rpc.finish(started, code, id_)
        if isinstance(error, ServiceError):
            self._log.warning("call rejected", method=rpc.method, code=code, reason=str(error), request_id=id_)
        else:
            self._log.error("call failed", method=rpc.method, code=code, request_id=id_, exc_info=error)
        context.set_code(_STATUS_CODES[status.code])
        context.set_details(status.message)
        context.set_trailing_metadata([(REQUEST_ID, id_), ("grpc-status-details-bin", status.SerializeToString())])
        return status


class _RefusedError(Exception):
    """Ends a stream; what its caller is told stands on the context."""
