"""The routes of the HTTP transport, each over the handler of an RPC."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import parse_qs

from google.protobuf.message import Message

from service.errors import InvalidInput
from service.pb.digits.v1.digits_pb2 import (
    ExplainResponse,
    GetNetworkRequest,
    GetNetworkResponse,
    PredictResponse,
)
from service.pb.inference import open_inference_pb2 as pb
from service.transports.http.body import MAX_JSON_BYTES, read_body
from service.transports.http.errors import Response, json_response
from service.transports.http.explain import encode_explanations, encode_network, to_explain_request
from service.transports.http.images import MAX_PICTURE_BYTES, ImageReader
from service.transports.http.inference import decode_infer, to_json
from service.transports.http.predict import encode_predictions, to_predict_request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from service.handlers import MessageHandler, Service
    from service.transports.http.body import BodyLease
    from service.transports.http.images import Images
    from service.transports.limits import Limits

M = TypeVar("M", bound=Message)

NO_DEADLINE = float("inf")
_SMALL_BODY = 16384  # bytes, of requests without images
_DIGITS, _INFERENCE = "digits.v1.DigitService", "inference.GRPCInferenceService"
_MODEL = "/v2/models/{model}[/versions/{version}]"


class Request(NamedTuple):
    """A request after authentication, its body unread: path parameters, headers, query string."""

    parameters: Mapping[str, str]
    headers: Mapping[str, str]
    query: str
    receive: Callable[[], Awaitable[Any]]
    lease: BodyLease

    async def read(self, limit: int) -> bytes:
        """Read the body; HttpError if it has more than `limit` bytes."""
        return await read_body(self.receive, self.headers, limit, self.lease)


class Route(NamedTuple):
    """A method and a path template with its endpoint; brackets in the template enclose an optional part."""

    method: str
    template: str
    endpoint: Callable[[Request], Awaitable[Response]]
    is_prediction: bool = False
    is_health: bool = False


def make_routes(services: Sequence[Service], limits: Limits) -> list[Route]:
    """Make all routes over the services' handlers."""
    return Endpoints({service.name: service.unary for service in services}, limits).routes()


class Endpoints:
    """Converts requests to the messages of RPCs, and their replies to responses."""

    def __init__(self, handlers: Mapping[str, Mapping[str, MessageHandler]], limits: Limits) -> None:
        self._handlers = handlers
        self._max_body = max(limits.max_message_bytes, MAX_JSON_BYTES)
        self._images = ImageReader()
        self._network: tuple[bytes, Response] | None = None

    def routes(self) -> list[Route]:
        """List the routes; of two that match a path the first is used."""
        return [
            Route("GET", "/v2", self._server_metadata),
            Route("GET", "/v2/health/live", self._live, is_health=True),
            Route("GET", "/v2/health/ready", self._ready, is_health=True),
            Route("GET", "/v2/models/stats", self._statistics),
            Route("POST", f"{_MODEL}/infer", self._infer, is_prediction=True),
            Route("GET", f"{_MODEL}/ready", self._model_ready),
            Route("GET", f"{_MODEL}/config", self._config),
            Route("GET", f"{_MODEL}/stats", self._statistics),
            Route("GET", _MODEL, self._model_metadata),
            Route("POST", "/v2/repository/index", self._repository_index),
            Route("POST", "/v2/repository/models/{model}/load", self._load),
            Route("POST", "/v2/repository/models/{model}/unload", self._unload),
            Route("POST", "/v1/predict", self._predict, is_prediction=True),
            Route("POST", "/v1/explain", self._explain, is_prediction=True),
            Route("GET", "/v1/network", self._get_network),
        ]

    async def _call(self, rpc: str, request: Message, reply: type[M], deadline: float = NO_DEADLINE) -> M:
        handler = self._handlers[_INFERENCE][rpc]
        return reply.FromString(await handler(request.SerializeToString(), deadline))

    async def _infer(self, request: Request) -> Response:
        body = await request.read(self._max_body)
        decoded = decode_infer(body, request.headers, *_model_and_version(request))
        response = await self._call("ModelInfer", decoded.message, pb.ModelInferResponse)
        return decoded.encode(response)

    async def _predict(self, request: Request) -> Response:
        deadline = _deadline(request)
        images = await self._read_images(request)
        message = to_predict_request(images)
        reply = await self._handlers[_DIGITS]["Predict"](message.SerializeToString(), deadline)
        return encode_predictions(PredictResponse.FromString(reply), images)

    async def _explain(self, request: Request) -> Response:
        deadline = _deadline(request)
        message = to_explain_request(await self._read_images(request))
        reply = await self._handlers[_DIGITS]["Explain"](message.SerializeToString(), deadline)
        return await encode_explanations(ExplainResponse.FromString(reply))

    async def _get_network(self, request: Request) -> Response:
        message = GetNetworkRequest(model_version=_query(request, "model_version", ""))
        reply = await self._handlers[_DIGITS]["GetNetwork"](message.SerializeToString(), NO_DEADLINE)
        if self._network is None or self._network[0] is not reply:  # encoding takes 6 ms
            self._network = reply, encode_network(GetNetworkResponse.FromString(reply))
        return self._network[1]

    async def _read_images(self, request: Request) -> Images:
        body = await request.read(max(MAX_PICTURE_BYTES, MAX_JSON_BYTES))
        return await self._images.read(body, request.headers.get("content-type", ""))

    async def _live(self, _: Request) -> Response:
        response = await self._call("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse)
        return json_response({"live": response.live}, status=200 if response.live else 503)

    async def _ready(self, _: Request) -> Response:
        response = await self._call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse)
        return json_response({"ready": response.ready}, status=200 if response.ready else 503)

    async def _server_metadata(self, _: Request) -> Response:
        response = await self._call("ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse)
        return json_response(to_json(response))

    async def _model_ready(self, request: Request) -> Response:
        model, version = _model_and_version(request)
        message = pb.ModelReadyRequest(name=model, version=version)
        response = await self._call("ModelReady", message, pb.ModelReadyResponse)
        if not response.ready:  # for an unknown model too, which is the error of its metadata
            await self._model_metadata(request)
        return json_response({"name": model, "ready": response.ready}, status=200 if response.ready else 503)

    async def _model_metadata(self, request: Request) -> Response:
        model, version = _model_and_version(request)
        message = pb.ModelMetadataRequest(name=model, version=version)
        return json_response(to_json(await self._call("ModelMetadata", message, pb.ModelMetadataResponse)))

    async def _config(self, request: Request) -> Response:
        model, version = _model_and_version(request)
        message = pb.ModelConfigRequest(name=model, version=version)
        response = await self._call("ModelConfig", message, pb.ModelConfigResponse)
        return json_response(to_json(response.config))

    async def _statistics(self, request: Request) -> Response:
        model, version = _model_and_version(request)
        message = pb.ModelStatisticsRequest(name=model, version=version)
        return json_response(to_json(await self._call("ModelStatistics", message, pb.ModelStatisticsResponse)))

    async def _repository_index(self, request: Request) -> Response:
        await request.read(_SMALL_BODY)
        response = await self._call("RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse)
        return json_response(to_json(response)["models"])

    async def _load(self, request: Request) -> Response:
        await request.read(_SMALL_BODY)
        message = pb.RepositoryModelLoadRequest(model_name=request.parameters["model"])
        await self._call("RepositoryModelLoad", message, pb.RepositoryModelLoadResponse)
        return json_response({})

    async def _unload(self, request: Request) -> Response:
        await request.read(_SMALL_BODY)
        message = pb.RepositoryModelUnloadRequest(model_name=request.parameters["model"])
        await self._call("RepositoryModelUnload", message, pb.RepositoryModelUnloadResponse)
        return json_response({})


def _model_and_version(request: Request) -> tuple[str, str]:
    return request.parameters.get("model", ""), request.parameters.get("version", "")


def _deadline(request: Request) -> float:
    """Return the deadline of the query parameter `timeout`, in microseconds as the protocol's parameter has it."""
    value = _query(request, "timeout", "0")
    if not (value.isascii() and value.isdecimal() and len(value) <= 18):
        raise InvalidInput("timeout", f"is {value[:32]!r}; expected microseconds, an integer of at least 0")
    return time.monotonic() + int(value) / 1e6 if int(value) else NO_DEADLINE


def _query(request: Request, name: str, default: str) -> str:
    """Return the last value of a query parameter."""
    return parse_qs(request.query).get(name, [default])[-1]
