"""The RPCs of the grpcio transport with a span each; see `service.tracing`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.transports.observed import Observer
from service.transports.status import spelled

if TYPE_CHECKING:
    from collections.abc import Collection

    from structlog.typing import FilteringBoundLogger

    from service.metrics import Metrics, RpcMetrics
    from service.tracing import Part, Tracing
    from service.transports.credentials import Tokens
    from service.transports.observed import Behaviour
    from service.transports.streams import OpenStreams

_STANDARD = "/grpc."
"""Health and reflection: probes come every few seconds and would bury the requests."""


class TracedObserver(Observer):
    """An observer that begins a span with each call of our own services, and ends it with the call's status."""

    def __init__(
        self,
        metrics: Metrics,
        streams: OpenStreams,
        log: FilteringBoundLogger,
        *,
        tracing: Tracing,
        tokens: Tokens | None = None,
        open_services: Collection[str] = (),
    ) -> None:
        super().__init__(metrics, streams, log, tokens=tokens, open_services=open_services)
        self._tracing = tracing

    async def _observe(self, rpc: RpcMetrics, context: Any, behaviour: Behaviour, request: Any, call: Any) -> Any:
        if rpc.method.startswith(_STANDARD):
            return await super()._observe(rpc, context, behaviour, request, call)
        streaming = rpc.rpc.grpc_type != "unary"
        with self._tracing.call(rpc.method, context.invocation_metadata(), streaming=streaming) as part:
            return await super()._observe(_Traced(rpc, part), context, behaviour, request, call)

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
        self._part.end(spelled(code))
        self._rpc.finish(started, code, request_id, self._part.recorded_trace_id)
