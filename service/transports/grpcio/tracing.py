"""Spans of the calls of the grpcio transport; see `service.observability.tracing`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.observability.rpc_metrics import RpcMetrics
from service.transports.grpcio.instrumentation import RpcInstrumentation
from service.transports.status import proto_code_name

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from service.observability.metrics import Metrics
    from service.observability.tracing import SpanScope, Tracing
    from service.transports.call_log import CallLogger
    from service.transports.grpcio.authenticator import Authenticator
    from service.transports.grpcio.instrumentation import Behaviour, CallRecorder, Metadata
    from service.transports.grpcio.open_calls import OpenCalls

_STANDARD = "grpc."
"""Health and reflection, which are not traced: probes every few seconds would hide the requests."""


class TracedRpcInstrumentation(RpcInstrumentation):
    """Instrumentation that also records a span for each call of our own services."""

    def __init__(
        self,
        metrics: Metrics,
        call_log: CallLogger,
        authenticator: Authenticator,
        open_calls: OpenCalls,
        tracing: Tracing,
    ) -> None:
        super().__init__(metrics, call_log, authenticator, open_calls)
        self._tracing = tracing

    # Not `async`, here and in `traced_components`: a call that is not traced costs no further coroutine.
    def _run_call(
        self, rpc: CallRecorder, context: Any, metadata: Metadata, behaviour: Behaviour, request: Any, call: Any
    ) -> Coroutine[Any, Any, Any]:
        assert isinstance(rpc, RpcMetrics)  # only this class makes another recorder
        if not rpc.rpc.grpc_service.startswith(_STANDARD):
            streaming = rpc.rpc.grpc_type != "unary"
            scope = self._tracing.start_call(rpc.method, metadata, streaming=streaming)
            if scope is not None:
                return self._run_traced_call(scope, rpc, context, metadata, behaviour, request, call)
        return super()._run_call(rpc, context, metadata, behaviour, request, call)

    async def _run_traced_call(
        self,
        scope: SpanScope,
        rpc: RpcMetrics,
        context: Any,
        metadata: Metadata,
        behaviour: Behaviour,
        request: Any,
        call: Any,
    ) -> Any:
        with self._tracing.use(scope):
            return await super()._run_call(_TracedCall(rpc, scope), context, metadata, behaviour, request, call)

    def _log_ids(self, request_id: str) -> dict[str, str]:
        trace_id = self._tracing.current().trace_id
        return {**super()._log_ids(request_id), **({"trace_id": trace_id} if trace_id else {})}


class _TracedCall:
    """A `CallRecorder` that ends the span of one call and adds the trace to exemplars."""

    def __init__(self, rpc: RpcMetrics, scope: SpanScope) -> None:
        self._rpc = rpc
        self._scope = scope
        self.method = rpc.method
        self.start = rpc.start

    def finish(self, started: float, code: str, request_id: str) -> None:
        """As `RpcMetrics.finish`."""
        self._scope.end(proto_code_name(code))
        self._rpc.finish(started, code, request_id, self._scope.recorded_trace_id)
