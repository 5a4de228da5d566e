"""The transport on the grpcio package: the RPCs of the handlers, health and reflection on one port."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from service.handlers.reflection import reflection_handlers
from service.transports.call_log import CallLogger
from service.transports.grpcio.authenticator import Authenticator
from service.transports.grpcio.certificates import ServerCertificates
from service.transports.grpcio.channel_options import channel_options
from service.transports.grpcio.health import HealthServicer
from service.transports.grpcio.instrumentation import RpcInstrumentation
from service.transports.grpcio.method_handlers import method_handlers
from service.transports.grpcio.open_calls import OpenCalls
from service.transports.grpcio.server import RestartingServer
from service.transports.grpcio.tracing import TracedRpcInstrumentation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from threading import Thread

    from service.handlers import Service
    from service.observability.telemetry import Telemetry
    from service.security.config import SecurityConfig
    from service.transports.admission import AdmissionQueue
    from service.transports.config import TransportConfig
    from service.unix_socket import UnixSocketFile

_PREDICTIONS = {"Predict", "ModelInfer"}
"""The unary RPCs whose messages are large and enter the queue."""


class GrpcioTransport:
    """Serves on the running event loop: `start` listens, `set_serving` sets health, `stop` drains.

    While `queue` is full, it rejects requests for predictions before it reads their message. `on_health_change` is
    called when `unhealthy_reason` changes. Raises AddressInUse from `start`.
    """

    threads: tuple[Thread, ...] = ()
    """None of its own: the library has them."""

    active_runs: Callable[[], tuple[int, ...]] = staticmethod(tuple)
    """None that Python does not see."""

    def __init__(
        self,
        services: Sequence[Service],
        queue: AdmissionQueue,
        telemetry: Telemetry,
        config: TransportConfig,
        security: SecurityConfig,
        on_health_change: Callable[[], object] = bool,
    ) -> None:
        self._queue = queue
        metrics, call_log = telemetry.metrics, CallLogger(telemetry.log)
        authenticator = Authenticator(security.tokens, metrics, config.services_without_token)
        open_calls = OpenCalls.within(config.limits, metrics)
        self._streams = open_calls.streams
        self._instrumentation = (
            RpcInstrumentation(metrics, call_log, authenticator, open_calls)
            if telemetry.tracing is None
            else TracedRpcInstrumentation(metrics, call_log, authenticator, open_calls, telemetry.tracing)
        )
        self._server = RestartingServer(
            channel_options(config.limits),
            None if security.tls is None else ServerCertificates(security.tls).credentials,
            metrics,
            call_log,
            on_health_change,
            open_calls.unsent,
        )
        self._health = HealthServicer(["", *(service.name for service in services)])
        self._register(services, reflection=config.reflection)

    def _register(self, services: Sequence[Service], *, reflection: bool) -> None:
        for service in services:
            self.add_registered_method_handlers(service.name, method_handlers(service))
        # The generated code of health registers with this object as if it were the server.
        registrar: Any = self
        health_pb2_grpc.add_HealthServicer_to_server(self._health, registrar)
        if reflection:
            names = [*(service.name for service in services), health.SERVICE_NAME]
            for standard in reflection_handlers(names):
                self.add_registered_method_handlers(standard.name, method_handlers(standard))

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Serve these RPCs, instrumented."""
        wrapped = {name: self._instrumentation.wrap(service, name, handler) for name, handler in handlers.items()}
        rejecting = {
            f"/{service}/{name}": self._instrumentation.rejecting_handler(
                f"/{service}/{name}", self._queue.overloaded_error
            )
            for name in _PREDICTIONS & wrapped.keys()
        }
        handler = grpc.method_handlers_generic_handler(service, wrapped)
        methods = [f"/{service}/{name}" for name in wrapped]
        self._server.add_handler(_LoadSheddingHandler(self._queue, handler, rejecting), methods)

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Ignore them: generated code registers the same RPCs by the method above too."""

    async def start(self, host: str, port: int, socket_file: UnixSocketFile | None = None) -> int:
        """Listen, with health NOT_SERVING; return the port."""
        await self.set_serving(False)
        return await self._server.start(host, port, socket_file)

    @property
    def unhealthy_reason(self) -> str:
        """Why the port accepts no calls, in a line for the operator; empty while it does."""
        return self._server.unhealthy_reason

    async def set_serving(self, serving: bool) -> None:
        """Set health to SERVING or NOT_SERVING, under the empty name and each service's; no effect after `stop`."""
        self._health.set_serving(serving)

    async def stop(self, grace: float) -> None:
        """Set health to NOT_SERVING, accept no new calls, and cancel the calls that still run after `grace` seconds."""
        self._health.stop()
        stopped = asyncio.ensure_future(self._server.stop(grace))
        await asyncio.sleep(0)  # so that GOAWAY is sent first and clients do not reopen an ended stream here
        self._streams.drain()
        await stopped


class _LoadSheddingHandler(grpc.GenericRpcHandler):
    """Rejects calls while the queue is full, by their headers: their message, most of their cost, is never read."""

    def __init__(self, queue: AdmissionQueue, handler: Any, rejecting_handlers: Mapping[str, Any]) -> None:
        self._queue = queue
        self._handler = handler
        self._rejecting_handlers = rejecting_handlers

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a call; None if its RPC belongs to another service."""
        if handler_call_details.method in self._rejecting_handlers and self._queue.is_full:
            return self._rejecting_handlers[handler_call_details.method]
        return self._handler.service(handler_call_details)
