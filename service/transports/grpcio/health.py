"""grpc.health.v1 of the grpcio transport: a client that does not read delays only its own replies."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

if TYPE_CHECKING:
    from collections.abc import Iterable

# Enum values as the stubs have them; those leave List out.
_pb: Any = health_pb2


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Check, List and Watch of `names`; all share one status, NOT_SERVING at first.

    The servicer of grpc_health writes to a watcher while it holds the lock of every other Watch and of `set`. Here each
    Watch has its own event, and sends the latest status when its client reads one.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        self._status = HealthCheckResponse.NOT_SERVING
        self._watch_events: set[asyncio.Event] = set()
        self._is_stopping = False

    def set_serving(self, serving: bool) -> None:
        """Set the status of every name; no effect after `stop`."""
        if not self._is_stopping:
            self._set(HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING)

    def stop(self) -> None:
        """Set NOT_SERVING permanently."""
        self._is_stopping = True
        self._set(HealthCheckResponse.NOT_SERVING)

    def _set(self, status: Any) -> None:
        self._status = status
        for event in self._watch_events:
            event.set()

    async def Check(self, request: Any, context: Any) -> HealthCheckResponse:  # noqa: N802 (the contract's name)
        """Return the status of a name, or NOT_FOUND."""
        if request.service not in self._names:
            await context.abort(StatusCode.NOT_FOUND)
        return HealthCheckResponse(status=self._status)

    async def List(self, _: Any, __: Any) -> Any:  # noqa: N802 (the contract's name)
        """Return the status of each name."""
        statuses = {name: HealthCheckResponse(status=self._status) for name in self._names}
        return _pb.HealthListResponse(statuses=statuses)

    async def Watch(self, request: Any, stream: Any) -> None:  # noqa: N802 (the contract's name)
        """Send the status now and after each change; SERVICE_UNKNOWN for an unknown name."""
        is_known, sent, changed = request.service in self._names, None, asyncio.Event()
        self._watch_events.add(changed)
        try:
            while True:
                changed.clear()
                status = self._status if is_known else HealthCheckResponse.SERVICE_UNKNOWN
                if status != sent:
                    await stream.write(HealthCheckResponse(status=status))
                    sent = status
                await changed.wait()
        finally:
            self._watch_events.discard(changed)
