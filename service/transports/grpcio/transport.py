"""The server of the grpcio package: the handlers' RPCs, health and reflection on one port."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from service.address import ensure_bindable
from service.handlers.reflection import reflection_handlers
from service.security.handshake import verify_by_handshake
from service.transports.call_log import CallLogger
from service.transports.grpcio.health import HealthServicer
from service.transports.grpcio.instrumentation import RpcInstrumentation
from service.transports.grpcio.read_ahead import ReadAhead
from service.transports.grpcio.server import RestartingServer
from service.transports.grpcio.streams import OpenStreams
from service.transports.grpcio.tracing import TracedRpcInstrumentation
from service.transports.grpcio.unsent_replies import UnsentReplies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from threading import Thread

    from structlog.typing import FilteringBoundLogger

    from service.errors import Overloaded
    from service.handlers import Alternative, BatchHandler, MessageHandler, Service
    from service.observability.metrics import Metrics
    from service.observability.tracing import Tracing
    from service.security.certificates import Pem
    from service.security.tls import Tls
    from service.security.tokens import Tokens
    from service.transports.limits import Limits

_NEVER_MS = 2**31 - 1
_PREDICTIONS = {"Predict", "ModelInfer"}
"""The unary RPCs whose messages are large and wait in line."""

_PENDING = 4096
"""Calls that the library holds for the event loop to take; beyond, a growing share is reset, beyond thrice as many all.

They are what there is of a flood of small calls, which costs as much to refuse as to answer.
"""


_UNFINISHED_BYTES, _LEAST_UNFINISHED = 256 * 2**20, 4
"""What messages of single calls may hold that take more than a second; at least so many of them, whatever their size.

grpcio does not tell how much of a message has come, so each counts for as much as the largest.
"""


class AdmissionQueue(Protocol):
    """The queue before the model, as `service.batching.batcher.Batcher` has it."""

    @property
    def is_full(self) -> bool:
        """Whether the queue rejects requests for predictions."""
        ...

    def overloaded_error(self) -> Overloaded:
        """Count a rejected request, and return its error."""
        ...


class GrpcioTransport:
    """Serves on the running event loop: `start` listens, `set_serving` sets health, `stop` drains.

    While `queue` is full, requests for predictions are refused before their message is read. With `tokens` a call must
    bring one, health checks too unless `health_without_token`; with `tracing` each call has a span. `changed` is called
    when `unhealthy_reason` has changed. Raises AddressInUse from `start`.
    """

    def __init__(
        self,
        services: Sequence[Service],
        queue: AdmissionQueue,
        metrics: Metrics,
        log: FilteringBoundLogger,
        *,
        limits: Limits,
        with_reflection: bool,
        tls: Tls | None = None,
        tokens: Tokens | None = None,
        health_without_token: bool = True,
        tracing: Tracing | None = None,
        changed: Callable[[], object] = bool,
    ) -> None:
        self.threads: tuple[Thread, ...] = ()
        """None of its own: the library has them."""
        self._queue = queue
        self._streams = OpenStreams()
        names = [service.name for service in services]
        self._health = HealthServicer(["", *names])
        open_services = [health.SERVICE_NAME] if health_without_token else []
        observer = RpcInstrumentation if tracing is None else partial(TracedRpcInstrumentation, tracing=tracing)
        unsent = UnsentReplies(limits.message_timeout, lambda reason: metrics.calls_ended.labels(reason).inc())
        self._observer = observer(
            metrics,
            self._streams,
            log,
            unsent,
            tokens=tokens,
            open_services=open_services,
            message_timeout=limits.message_timeout,
            most_unfinished=max(_LEAST_UNFINISHED, _UNFINISHED_BYTES // limits.max_message_bytes),
        )
        credentials = None if tls is None else _Certificates(tls).credentials
        self._server = RestartingServer(_options(limits), credentials, metrics, CallLogger(log), changed, unsent)
        for service in services:
            self.add_registered_method_handlers(service.name, _methods(service))
        # The standard services register with this object as if it were the server.
        standard: Any = self
        health_pb2_grpc.add_HealthServicer_to_server(self._health, standard)
        if with_reflection:
            for reflection in reflection_handlers((*names, health.SERVICE_NAME)):
                self.add_registered_method_handlers(reflection.name, _methods(reflection))

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Serve these RPCs, observed."""
        observed = {name: self._observer.wrap(service, name, handler) for name, handler in handlers.items()}
        at_the_door = {
            f"/{service}/{name}": self._observer.refusing(f"/{service}/{name}", self._queue.overloaded_error)
            for name in _PREDICTIONS & observed.keys()
        }
        inside = grpc.method_handlers_generic_handler(service, observed)
        methods = [f"/{service}/{name}" for name in observed]
        self._server.add_handler(_Door(self._queue, inside, at_the_door), methods)

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Nothing: generated code hands over the same RPCs by the method above too."""

    async def start(self, host: str, port: int) -> int:
        """Listen, with health saying NOT_SERVING; returns the port."""
        await self.set_serving(False)
        return await self._server.start(host, port)

    @property
    def unhealthy_reason(self) -> str:
        """What keeps calls from being taken, in a line for the operator; empty while the port is open."""
        return self._server.unhealthy_reason

    async def set_serving(self, serving: bool) -> None:
        """Say SERVING or NOT_SERVING, under the empty name and each service's; nothing once it stops."""
        self._health.set_serving(serving)

    async def stop(self, grace: float) -> None:
        """Say NOT_SERVING, take no new calls and let those in flight finish.

        After `grace` seconds what still runs is cancelled.
        """
        self._health.stop()
        stopped = asyncio.ensure_future(self._server.stop(grace))
        await asyncio.sleep(0)  # so that GOAWAY goes out first and no ended stream is opened here again
        self._streams.drain()
        await stopped


class _Door(grpc.GenericRpcHandler):
    """Chooses who answers a call when its headers are here and its message is not: that is when refusing is cheap."""

    def __init__(self, queue: AdmissionQueue, inside: Any, at_the_door: Mapping[str, Any]) -> None:
        self._queue = queue
        self._inside = inside
        self._at_the_door = at_the_door

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call; None where its RPC is another's."""
        if handler_call_details.method in self._at_the_door and self._queue.is_full:
            return self._at_the_door[handler_call_details.method]
        return self._inside.service(handler_call_details)


def _methods(service: Service) -> dict[str, Any]:
    return {
        **{name: grpc.unary_unary_rpc_method_handler(_unary(handler)) for name, handler in service.unary.items()},
        **{
            name: grpc.stream_stream_rpc_method_handler(
                _stream(handler, service.batches[name], service.alternatives.get(name))
            )
            for name, handler in service.streams.items()
        },
    }


class _Certificates:
    """The latest certificate of `tls`, for each server that one port has had."""

    def __init__(self, tls: Tls) -> None:
        self._needs_client_certificates = tls.needs_client_certificates
        tls.subscribe(self._use)

    def _use(self, pem: Pem) -> None:
        verify_by_handshake(pem, _offered)
        self._latest = grpc.ssl_server_certificate_configuration([(pem.key, pem.chain)], pem.client_ca)

    def credentials(self) -> grpc.ServerCredentials:
        """Make credentials for one server."""
        used = self._latest

        def changed() -> Any:
            """Asked at each handshake, on threads of grpcio; its stubs leave out that None stands for no change."""
            nonlocal used
            if used is self._latest:
                return None
            used = self._latest
            return used

        return grpc.dynamic_ssl_server_credentials(
            used, changed, require_client_authentication=self._needs_client_certificates
        )


@contextmanager
def _offered(pem: Pem) -> Iterator[int]:
    """A port of loopback on which this library serves these files and no RPC; clients need no certificate there."""
    server = grpc.server(ThreadPoolExecutor(1))
    credentials = grpc.ssl_server_credentials([(pem.key, pem.chain)], pem.client_ca, require_client_auth=False)
    try:
        ensure_bindable("127.0.0.1", 0)  # what fails below is the files' fault, not the machine's
        try:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        except RuntimeError:
            raise ValueError("BoringSSL, the TLS library of grpcio, cannot load them") from None
        server.start()
        yield port
    finally:
        server.stop(None)


def _options(limits: Limits) -> list[tuple[str, int]]:
    """Channel arguments, described in https://grpc.github.io/grpc/core/group__grpc__arg__keys.html ."""
    return [
        # Two servers started by mistake must not share a port in silence.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_metadata_size", limits.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_metadata_bytes),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.max_concurrent_streams", limits.streams),
        # It counts calls that it has answered and not yet put away, and so refuses callers that keep to the limit.
        ("grpc.http.overload_protection", 0),
        ("grpc.server.max_pending_requests", _PENDING),
        ("grpc.server.max_pending_requests_hard_limit", 3 * _PENDING),
        # grpcio spreads the age by a tenth itself, so that callers of many servers do not all come back at once.
        ("grpc.max_connection_age_ms", _milliseconds(limits.connection_age)),
        ("grpc.max_connection_idle_ms", _milliseconds(limits.connection_idle)),
        # Clients and balancers ping idle connections; the default answers the third ping in 5 minutes with GOAWAY.
        ("grpc.http2.min_ping_interval_without_data_ms", round(limits.ping_interval * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", _milliseconds(limits.keepalive)),
        # Becomes TCP_USER_TIMEOUT; a client whose kernel acknowledges has a minute to answer the ping itself.
        ("grpc.keepalive_timeout_ms", _milliseconds(limits.keepalive_timeout)),
    ]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000) if seconds else _NEVER_MS


def _unary(handler: MessageHandler) -> Any:
    async def call(request: bytes, context: Any) -> bytes:
        return await handler(request, _deadline(context))

    return call


def _stream(usual: MessageHandler, batch_handler: BatchHandler, alternative: Alternative | None) -> Any:
    """One reply a message, in order."""

    async def call(_: Any, stream: Any) -> None:
        deadline = _deadline(stream)
        handler = alternative.handler if alternative and alternative.matches(stream.invocation_metadata()) else usual
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
    """When the caller stops waiting, on the clock of `time.monotonic`."""
    remaining = context.time_remaining()
    return float("inf") if remaining is None else time.monotonic() + remaining
