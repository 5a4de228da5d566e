"""The RPCs of the native transport: how Rust serves each, and the handlers of those that Python answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from grpc_health.v1 import health

from service.observability.rpc_metrics import Rpc, RpcMetrics
from service.transports.limits import HEALTH_MESSAGE, SMALL_MESSAGE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from service.handlers import MessageHandler, Service
    from service.observability.metrics import Metrics
    from service.security.config import SecurityConfig
    from service.transports.config import TransportConfig
    from service.transports.limits import Limits

_FAST_PATH_RPCS = {
    "/digits.v1.DigitService/Predict": "predict",
    "/digits.v1.DigitService/PredictStream": "predict-stream",
    "/inference.GRPCInferenceService/ModelInfer": "infer",
    "/inference.GRPCInferenceService/ModelStreamInfer": "infer-stream",
}
_REPLY_BYTES_PER_REQUEST_BYTE = {"/digits.v1.DigitService/Explain": 400}
"""Bytes of reply for each byte of request, if more than one: all 42 neurons of an image take 6.4 kB each."""
_HEALTH = {"Check": "unary", "List": "unary", "Watch": "server_stream"}


class Endpoint(NamedTuple):
    """An RPC with its series, how it is served, and its handler if Python answers it."""

    rpc: RpcMetrics
    kind: str
    handler: MessageHandler | None = None


class Route(NamedTuple):
    """The properties of an RPC for Rust; the field names are those of its `RouteSpec`."""

    path: str
    kind: str
    needs_token: bool
    max_message_bytes: int
    reply_bytes_per_request_byte: int


def endpoints(services: Sequence[Service], metrics: Metrics) -> Iterator[Endpoint]:
    """Yield the RPCs of the services and of health, and create their series."""
    for service in services:
        for name, handler in service.unary.items():
            yield Endpoint(RpcMetrics(metrics, Rpc("unary", service.name, name)), "unary", handler)
        for name, handler in service.streams.items():
            yield Endpoint(RpcMetrics(metrics, Rpc("bidi_stream", service.name, name)), "stream", handler)
    for name, kind in _HEALTH.items():
        yield Endpoint(RpcMetrics(metrics, Rpc(kind, health.SERVICE_NAME, name)), f"health-{name.lower()}")


def route(endpoint: Endpoint, config: TransportConfig, security: SecurityConfig) -> Route:
    """Return the route of an endpoint."""
    path, service = endpoint.rpc.method, endpoint.rpc.rpc.grpc_service
    return Route(
        path,
        _FAST_PATH_RPCS.get(path, endpoint.kind),
        security.tokens is not None and service not in config.services_without_token,
        _max_message_bytes(service, path, config.limits),
        _REPLY_BYTES_PER_REQUEST_BYTE.get(path, 1),
    )


def _max_message_bytes(service: str, path: str, limits: Limits) -> int:
    if service == health.SERVICE_NAME:
        return HEALTH_MESSAGE
    has_images = path in _FAST_PATH_RPCS or path in _REPLY_BYTES_PER_REQUEST_BYTE
    return limits.max_message_bytes if has_images else SMALL_MESSAGE
