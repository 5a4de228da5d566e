"""Registers our services with Ray Serve's gRPC proxy, which passes messages on as bytes.

Ray calls each function that `gRPCOptions.grpc_servicer_functions` names in every proxy.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc import code_pb2
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse
from ray.serve._private.proxy_request_response import gRPCStreamingType

from service.errors import ModelUnavailable, Overloaded, ServiceError
from service.pb.digits.v1 import digits_pb2_grpc
from service.pb.inference import open_inference_pb2_grpc
from service.transports.status import to_status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING

FUNCTIONS = [f"{__name__}.{name}" for name in ("digits", "inference", "health")]

RETRY_AFTER = 0.1  # seconds, for clients that the proxy rejects

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
WATCH_INTERVAL = 5.0  # seconds between two health checks of a Watch

_HEALTH: dict[int, int] = {code_pb2.OK: SERVING, code_pb2.NOT_FOUND: HealthCheckResponse.SERVICE_UNKNOWN}

_REPLICA_LOST = "the replica of this call is gone, or none is ready yet: send the call again"
_QUEUE_FULL = "queue full: too many calls wait for a replica"
_STATUS_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def digits(servicer: Any, server: Any) -> None:
    """Serve digits.v1.DigitService."""
    digits_pb2_grpc.add_DigitServiceServicer_to_server(servicer, _ByteRegistrar(server))


def inference(servicer: Any, server: Any) -> None:
    """Serve inference.GRPCInferenceService, the Open Inference Protocol."""
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, _ByteRegistrar(server))


def health(servicer: Any, server: Any) -> None:
    """Serve grpc.health.v1.Health; a replica answers, so that SERVING means that one can."""
    standard: Any = _ByteRegistrar(server)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, standard)


class _ByteRegistrar:
    """The server to generated code; registers with Ray's server without deserializers.

    The proxy does not parse messages: our handlers receive bytes and reject a malformed message as INVALID_ARGUMENT.
    The parser of the proxy would end the call with INTERNAL.
    """

    def __init__(self, server: Any) -> None:
        self._server = server
        if not isinstance(server.service_handler_factory, ErrorTranslator):
            server.service_handler_factory = ErrorTranslator(server.service_handler_factory)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Register these RPCs; Ray replaces their behaviour by a call of a replica."""
        raw = {name: handler._replace(request_deserializer=None) for name, handler in handlers.items()}
        # Ray's reflection lists the services of the first call.
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, raw),))
        self._server.add_registered_method_handlers(service, raw)

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Ignore them: generated code registers the same RPCs by the method above too."""


class ErrorTranslator:
    """Makes the handlers of Ray's factory, and translates Ray's errors to our statuses.

    Ray ends a call whose replica died with INTERNAL and its own traceback. That reveals internals, and a client does
    not retry the call, which would be safe.
    """

    def __init__(self, factory: Callable[..., Any]) -> None:
        self._factory = factory

    def __call__(self, **method: Any) -> Any:
        """Make the handler of one method."""
        if method["service_method"] == WATCH:
            return self._watch
        handler = self._factory(**method)
        if inspect.isasyncgenfunction(handler):

            async def stream(request: Any, context: Any) -> Any:
                async for reply in handler(request, context):
                    yield reply
                translate_status(context)

            return stream

        async def call(request: Any, context: Any) -> Any:
            reply = await handler(request, context)
            translate_status(context)
            if code := _number(context.code()):
                # Clients do not retry a call that has a reply, even an empty one, before its status.
                await context.abort(_STATUS_CODES[code], _text(context.details()), tuple(context.trailing_metadata()))
            return reply

        return call

    async def _watch(self, request: Any, context: Any) -> Any:
        """Send the health of a service, and each change of it, from periodic checks of a replica.

        It runs in the proxy: in a replica a call without an end would count as load, and delay scaling down.
        """
        check = self._factory(service_method=CHECK, streaming_type=gRPCStreamingType.UNARY_UNARY)
        sent = None
        while True:
            reply = await check(request, context)
            status = _HEALTH.get(_number(context.code()), NOT_SERVING)
            context.set_code(grpc.StatusCode.OK)
            context.set_details("")
            if status != sent:
                sent = status
                yield reply if status == SERVING else HealthCheckResponse(status=status).SerializeToString()
            await asyncio.sleep(WATCH_INTERVAL)


def translate_status(context: Any) -> None:
    """Replace the status of an error of Ray by ours; the status of a replica stays."""
    error = _error_of_ray(_number(context.code()), context.details())
    if error is not None:
        status = to_status(error)
        context.set_code(_STATUS_CODES[status.code])
        context.set_details(status.message)
        metadata_ = [item for item in context.trailing_metadata() or () if item[0] != "grpc-status-details-bin"]
        context.set_trailing_metadata((*metadata_, ("grpc-status-details-bin", status.SerializeToString())))


def _error_of_ray(code: int, details: Any) -> ServiceError | None:
    text = _text(details)
    if code == code_pb2.INTERNAL and text != to_status(RuntimeError()).message:
        return ModelUnavailable(_REPLICA_LOST)
    if code == code_pb2.NOT_FOUND and text.startswith("Application"):
        return ModelUnavailable(_REPLICA_LOST)
    if code == code_pb2.UNAVAILABLE:
        return ModelUnavailable(_REPLICA_LOST)
    if code == code_pb2.RESOURCE_EXHAUSTED and text.startswith("Request dropped due to backpressure"):
        return Overloaded(_QUEUE_FULL, RETRY_AFTER)
    return None


def _text(details: Any) -> str:
    return details.decode(errors="replace") if isinstance(details, bytes) else str(details or "")


def _number(code: Any) -> int:
    """Return a status code as a number, in any form that the context has."""
    if isinstance(code, grpc.StatusCode):
        return int(code.value[0])
    return int(code or 0)
