"""What Ray Serve's gRPC proxy is told to serve: our services, with messages left as the bytes that they are.

Each function here is named in `gRPCOptions.grpc_servicer_functions`, and Ray calls it in every proxy.
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

RETRY_AFTER = 0.1  # seconds, told to a caller whom the proxy refuses

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
LOOK_EVERY = 5.0  # seconds between two looks of a watch at a replica

_HEALTH: dict[int, int] = {code_pb2.OK: SERVING, code_pb2.NOT_FOUND: HealthCheckResponse.SERVICE_UNKNOWN}

_GONE = "the replica that had this call is gone, or none is there yet; send it again"
_FULL = "too many calls wait for a replica already"
_STATUS_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def digits(servicer: Any, server: Any) -> None:
    """Serve digits.v1.DigitService."""
    digits_pb2_grpc.add_DigitServiceServicer_to_server(servicer, _AsBytes(server))


def inference(servicer: Any, server: Any) -> None:
    """Serve inference.GRPCInferenceService, the Open Inference Protocol."""
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, _AsBytes(server))


def health(servicer: Any, server: Any) -> None:
    """Serve grpc.health.v1.Health; a replica answers, so that SERVING says that one does."""
    standard: Any = _AsBytes(server)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, standard)


class _AsBytes:
    """Stands between generated code and Ray's server.

    A message is neither parsed nor built in the proxy: our handlers take bytes, and what is no message is refused by
    them in a sentence, where the proxy's parser would end the call with INTERNAL.
    """

    def __init__(self, server: Any) -> None:
        self._server = server
        if not isinstance(server.service_handler_factory, _Plain):
            server.service_handler_factory = _Plain(server.service_handler_factory)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Serve these RPCs; Ray puts its own way to a replica in the place of their behaviour."""
        raw = {name: handler._replace(request_deserializer=None) for name, handler in handlers.items()}
        # Ray's reflection lists the services that came by the first of these.
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, raw),))
        self._server.add_registered_method_handlers(service, raw)

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Nothing: generated code hands over the same RPCs by the method above too."""


class _Plain:
    """Makes the ways to a replica as Ray does, and says what Ray says of its failures in our words.

    Ray ends a call whose replica died with INTERNAL and its own traceback. That tells callers what is internal, and
    keeps their clients from sending the call again, which would do no harm.
    """

    def __init__(self, factory: Callable[..., Any]) -> None:
        self._factory = factory

    def __call__(self, **of_method: Any) -> Any:
        if of_method["service_method"] == WATCH:
            return self._watch
        handler = self._factory(**of_method)
        if inspect.isasyncgenfunction(handler):

            async def stream(request: Any, context: Any) -> Any:
                async for reply in handler(request, context):
                    yield reply
                tell_plainly(context)

            return stream

        async def call(request: Any, context: Any) -> Any:
            reply = await handler(request, context)
            tell_plainly(context)
            if code := _number(context.code()):
                # A status that follows an empty reply is an answer begun, and no client would send the call again.
                await context.abort(_STATUS_CODES[code], _text(context.details()), tuple(context.trailing_metadata()))
            return reply

        return call

    async def _watch(self, request: Any, context: Any) -> Any:
        """The health of a service, and each change of it: asked of a replica now and then.

        It stays in the proxy: in a replica a call without an end would count as load, and scaling down wait for it.
        """
        check = self._factory(service_method=CHECK, streaming_type=gRPCStreamingType.UNARY_UNARY)
        reported = None
        while True:
            reply = await check(request, context)
            result = _HEALTH.get(_number(context.code()), NOT_SERVING)
            context.set_code(grpc.StatusCode.OK)
            context.set_details("")
            if result != reported:
                reported = result
                yield reply if result == SERVING else HealthCheckResponse(status=result).SerializeToString()
            await asyncio.sleep(LOOK_EVERY)


def tell_plainly(context: Any) -> None:
    """Put what Ray told the caller of its own failure into our words and statuses; what a replica said stays."""
    error = _failure(_number(context.code()), context.details())
    if error is not None:
        status = to_status(error)
        context.set_code(_STATUS_CODES[status.code])
        context.set_details(status.message)
        metadata = [item for item in context.trailing_metadata() or () if item[0] != "grpc-status-details-bin"]
        context.set_trailing_metadata((*metadata, ("grpc-status-details-bin", status.SerializeToString())))


def _failure(code: int, details: Any) -> ServiceError | None:
    text = _text(details)
    if code == code_pb2.INTERNAL and text != to_status(RuntimeError()).message:
        return ModelUnavailable(_GONE)
    if code == code_pb2.NOT_FOUND and text.startswith("Application"):
        return ModelUnavailable(_GONE)
    if code == code_pb2.UNAVAILABLE:
        return ModelUnavailable(_GONE)
    if code == code_pb2.RESOURCE_EXHAUSTED and text.startswith("Request dropped due to backpressure"):
        return Overloaded(_FULL, RETRY_AFTER)
    return None


def _text(details: Any) -> str:
    return details.decode(errors="replace") if isinstance(details, bytes) else str(details or "")


def _number(code: Any) -> int:
    """A status code as a number, however the context holds it."""
    if isinstance(code, grpc.StatusCode):
        return int(code.value[0])
    return int(code or 0)
