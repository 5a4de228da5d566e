"""The RPCs of the grpcio transport with a span each; see `service.observability.tracing`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.observability.metrics import RpcMetrics
from service.transports.grpcio.instrumentation import RpcInstrumentation
from service.transports.status import proto_code_name

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from structlog.typing import FilteringBoundLogger

    from service.observability.metrics import Metrics
    from service.observability.tracing import Part, Tracing
    from service.transports.grpcio.instrumentation import Behaviour, CallRecorder, Metadata
    from service.transports.grpcio.streams import OpenStreams
    from service.transports.grpcio.unsent_replies import UnsentReplies

_STANDARD = "grpc."
"""Health and reflection: probes come every few seconds and would bury the requests."""


class TracedRpcInstrumentation(RpcInstrumentation):
    """An observer that begins a span with each call of our own services, and ends it with the call's status."""

    def __init__(
        self,
        metrics: Metrics,
        streams: OpenStreams,
        log: FilteringBoundLogger,
        unsent: UnsentReplies,
        *,
        tracing: Tracing,
        **options: Any,
    ) -> None:
        super().__init__(metrics, streams, log, unsent, **options)
        self._tracing = tracing

    # Without `async`, here and in `traced_components`: a call that is not traced is to cost no coroutine more.
    def _observe(
        self, rpc: CallRecorder, context: Any, metadata: Metadata, behaviour: Behaviour, request: Any, call: Any
    ) -> Coroutine[Any, Any, Any]:
        assert isinstance(rpc, RpcMetrics)  # it is wrapped here and nowhere before
        if not rpc.rpc.grpc_service.startswith(_STANDARD):
            streaming = rpc.rpc.grpc_type != "unary"
            part = self._tracing.begin(rpc.method, metadata, streaming=streaming)
            if part is not None:
                return self._observe_within(part, rpc, context, metadata, behaviour, request, call)
        return super()._observe(rpc, context, metadata, behaviour, request, call)

    async def _observe_within(
        self,
        part: Part,
        rpc: RpcMetrics,
        context: Any,
        metadata: Metadata,
        behaviour: Behaviour,
        request: Any,
        call: Any,
    ) -> Any:
        with self._tracing.within(part):
            return await super()._observe(_Traced(rpc, part), context, metadata, behaviour, request, call)

    def _names(self, request_id: str) -> dict[str, str]:
        trace_id = self._tracing.current().trace_id
        return {**super()._names(request_id), **({"trace_id": trace_id} if trace_id else {})}


class _Traced:
    """The series of an RPC as one traced call writes to them: its exemplars name the trace."""

    def __init__(self, rpc: RpcMetrics, part: Part) -> None:
        self._rpc = rpc
        self._part = part
        self.method = rpc.method
        self.start = rpc.start

    def finish(self, started: float, code: str, request_id: str) -> None:
        """As `RpcMetrics.finish`."""
        self._part.end(proto_code_name(code))
        self._rpc.finish(started, code, request_id, self._part.recorded_trace_id)
