"""inference.GRPCInferenceService, the Open Inference Protocol: what Triton's and KServe's clients ask."""

from __future__ import annotations

import time
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from service.errors import InvalidInput, ModelNotFound, ServiceError, Unimplemented
from service.handlers import Alternative, tensors
from service.handlers.predictor import echo
from service.network import PIXELS
from service.pb.inference import open_inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from service.handlers import Answer, Together
    from service.handlers.predictor import Predictor
    from service.network import ModelInfo, Pixels, Predictions
    from service.observability.statistics import Duration

M = TypeVar("M", bound=Message)

ERROR_STATUS = ("triton_grpc_error", "true")
"""Metadata of a stream whose first error is to end it, with a gRPC status; as in Triton."""

PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"
EXTENSIONS = ("model_configuration", "statistics")
_ONE_MODEL = "this server serves the one model that it was started with; start it again with another --model"
_NO_CONTROL = "models are not controlled through this server unless it is started with --model-control"
_NO_SHARED_MEMORY = "shared memory is not offered: a digit is 784 bytes, send them in the request"
_NOT_OFFERED = {
    "RepositoryModelUnload": _ONE_MODEL,
    **{
        f"{kind}SharedMemory{verb}": _NO_SHARED_MEMORY
        for kind in ("System", "Cuda")
        for verb in ("Status", "Register", "Unregister")
    },
    "TraceSetting": "traces are not offered through this protocol",
    "LogSettings": "log settings are options of the server: --log-level and --log-format",
}


class InferenceHandler:
    """A `service.handlers.Service`, over one predictor.

    `serving` is asked for readiness; `server_version` and what runs the model, `provider` and whether that is `on_gpu`,
    are told to callers; `reload`, where model control is on, looks for another version and raises ReloadRejected.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        serving: Callable[[], bool],
        server_version: str,
        provider: str = "CPUExecutionProvider",
        on_gpu: bool = False,
        reload: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._predictor = predictor
        self._reload = reload
        self._serving = serving
        self._server_version = server_version
        self._provider = provider
        self._kind = pb.ModelInstanceGroup.KIND_GPU if on_gpu else pb.ModelInstanceGroup.KIND_CPU
        self.name: str = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
        self.unary: Mapping[str, Answer] = {
            "ModelInfer": self.infer,
            "ServerLive": _asking(pb.ServerLiveRequest, lambda _: pb.ServerLiveResponse(live=True)),
            "ServerReady": _asking(pb.ServerReadyRequest, lambda _: pb.ServerReadyResponse(ready=serving())),
            "ServerMetadata": _asking(pb.ServerMetadataRequest, self._server_metadata),
            "ModelReady": _asking(pb.ModelReadyRequest, self._model_ready),
            "ModelMetadata": _asking(pb.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": _asking(pb.ModelConfigRequest, self._model_config),
            "ModelStatistics": _asking(pb.ModelStatisticsRequest, self._model_statistics),
            "RepositoryIndex": _asking(pb.RepositoryIndexRequest, self._repository_index),
            "RepositoryModelLoad": self._load if reload else _not_offered(_NO_CONTROL),
            **{rpc: _not_offered(sentence) for rpc, sentence in _NOT_OFFERED.items()},
        }
        self.streams: Mapping[str, Answer] = {"ModelStreamInfer": self.infer_in_stream}
        self.together: Mapping[str, Together] = {"ModelStreamInfer": self.infer_together}
        error_status = Alternative(*ERROR_STATUS, self.infer_in_stream_or_raise)
        self.alternatives: Mapping[str, Alternative] = {"ModelStreamInfer": error_status}

    async def infer(self, request: bytes, deadline: float = float("inf")) -> bytes:
        """A serialised ModelInferRequest -> a serialised ModelInferResponse; ServiceError for anything else."""
        return await self._infer(request, deadline, lambda reply: reply.SerializeToString())

    async def infer_in_stream(self, request: bytes, deadline: float = float("inf")) -> bytes:
        """As `infer`, but a refusal is a reply too, and the stream goes on."""
        try:
            return await self._infer(request, deadline, _in_stream)
        except ServiceError as error:
            reply = _final(pb.ModelInferResponse(id=_id(request)))
            return pb.ModelStreamInferResponse(error_message=str(error), infer_response=reply).SerializeToString()

    async def infer_in_stream_or_raise(self, request: bytes, deadline: float = float("inf")) -> bytes:
        """As `infer_in_stream`, but a ServiceError ends the stream, with its status."""
        return await self._infer(request, deadline, _in_stream)

    def infer_together(self, requests: Sequence[bytes], deadline: float = float("inf")) -> list[bytes] | None:
        """As `infer_in_stream` for several, at once; None unless all can be answered and the model is idle."""
        asked: list[_Asked] = []

        def decode() -> tuple[list[Pixels], float] | None:
            try:
                asked.extend(map(self._asked, requests))
            except ServiceError:
                return None
            return [one.pixels for one in asked], min(deadline, *(one.deadline for one in asked))

        def encode(predictions: Predictions, sizes: Sequence[int], info: ModelInfo) -> list[bytes]:
            return [
                _in_stream(one.reply(predictions.rows(stop - size, stop), info))
                for one, size, stop in zip(asked, sizes, accumulate(sizes), strict=True)
            ]

        return self._predictor.answer_together(decode, encode)

    async def _infer(self, request: bytes, deadline: float, wrap: Callable[[pb.ModelInferResponse], bytes]) -> bytes:
        asked: _Asked

        def decode() -> tuple[Pixels, float]:
            nonlocal asked
            asked = self._asked(request)
            return asked.pixels, min(deadline, asked.deadline)

        return await self._predictor.answer(decode, lambda found, info: wrap(asked.reply(found, info)))

    def _asked(self, request: bytes) -> _Asked:
        message = _parse(pb.ModelInferRequest(), request)
        self._check_model(message.model_name, message.model_version)
        _check_empty_final(message)
        outputs = tensors.wanted(message)
        pixels = tensors.to_pixels(message, self._predictor)
        return _Asked(message.id, pixels, outputs, tensors.is_typed(message), _own_deadline(message))

    @property
    def _info(self) -> ModelInfo:
        return self._predictor.info

    async def _load(self, request: bytes, _: float) -> bytes:
        """Take up what the server's own policy chooses; a caller cannot bring a model or choose another."""
        assert self._reload is not None
        message = _parse(pb.RepositoryModelLoadRequest(), request)
        self._check_model(message.model_name, "")
        if len(UnknownFieldSet(message)):
            raise InvalidInput("parameters", "are not offered: the server looks at its own folder of versions")
        await self._reload()
        return pb.RepositoryModelLoadResponse().SerializeToString()

    def _check_model(self, name: str, version: str) -> None:
        if name != self._info.name:
            raise ModelNotFound(f"model_name: there is no model {echo(name)}; {self._info.name!r} serves")
        self._predictor.check_version(version)

    def _server_metadata(self, _: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="digitserve", version=self._server_version, extensions=EXTENSIONS)

    def _model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """As in Triton a model that nobody knows is one that is not ready."""
        try:
            self._check_model(request.name, request.version)
        except ModelNotFound:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._serving())

    def _model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        self._check_model(request.name, request.version)
        info = self._info
        reply = pb.ModelMetadataResponse(name=info.name, versions=[info.version], platform=PLATFORM)
        reply.inputs.add(name=tensors.INPUT, datatype="UINT8", shape=[-1, PIXELS])
        for name, output in tensors.OUTPUTS.items():
            width = [] if output.width is None else [output.width]
            reply.outputs.add(name=name, datatype=output.datatype, shape=[-1, *width])
        reply.properties.update(
            {
                "pixels": "UINT8 0 (background) to 255 (ink); FP32 0 to 1 too, rounded to the nearest 1/255",
                "execution_provider": self._provider,
                "activation": info.activation,
                "layer_sizes": info.layer_sizes,
                "accuracy": info.accuracy,
                "accuracy_data": info.accuracy_data,
                "weights_sha256": info.weights_sha256,
            }
        )
        return reply

    def _model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        self._check_model(request.name, request.version)
        config = pb.ModelConfig(
            name=self._info.name,
            platform=PLATFORM,
            backend=BACKEND,
            max_batch_size=self._predictor.max_batch_size,
            dynamic_batching=pb.ModelDynamicBatching(max_queue_delay_microseconds=0),
            instance_group=[pb.ModelInstanceGroup(name=f"{self._info.name}_0", count=1, kind=self._kind)],
            default_model_filename="model.onnx",
            model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
        )
        config.input.add(name=tensors.INPUT, data_type=pb.DataType.TYPE_UINT8, dims=[PIXELS])
        for name, output in tensors.OUTPUTS.items():
            width = [] if output.width is None else [output.width]
            config.output.add(name=name, data_type=pb.DataType.Value(f"TYPE_{output.datatype}"), dims=width)
        config.parameters["activation"].string_value = self._info.activation
        return pb.ModelConfigResponse(config=config)

    def _model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        if request.name:
            self._check_model(request.name, request.version)
        seen = self._predictor.statistics
        durations = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        found = pb.ModelStatistics(
            name=self._info.name,
            version=self._info.version,
            last_inference=seen.last_inference_ms,
            inference_count=seen.images,
            execution_count=seen.runs,
            inference_stats=pb.InferStatistics(**{name: _duration(getattr(seen, name)) for name in durations}),
            batch_stats=[
                pb.InferBatchStatistics(batch_size=images, compute_infer=_duration(runs))
                for images, runs in sorted(seen.batches.items())
            ],
        )
        return pb.ModelStatisticsResponse(model_stats=[found])

    def _repository_index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        reply, ready = pb.RepositoryIndexResponse(), self._serving()
        if ready or not request.ready:
            reply.models.add(
                name=self._info.name,
                version=self._info.version,
                state="READY" if ready else "UNAVAILABLE",
                reason="" if ready else "the server is loading or stopping",
            )
        return reply


class _Asked(NamedTuple):
    """A request that can be answered: its images, the outputs that it wants, and by when."""

    id: str
    pixels: Pixels
    outputs: list[str]
    typed: bool
    deadline: float

    def reply(self, predictions: Predictions, info: ModelInfo) -> pb.ModelInferResponse:
        """The answer, by the model that has that info."""
        reply = pb.ModelInferResponse(model_name=info.name, model_version=info.version, id=self.id)
        tensors.add_outputs(reply, predictions, self.outputs, typed=self.typed)
        return reply


def _in_stream(reply: pb.ModelInferResponse) -> bytes:
    return pb.ModelStreamInferResponse(infer_response=_final(reply)).SerializeToString()


def _final(reply: pb.ModelInferResponse) -> pb.ModelInferResponse:
    """Mark the only response to a message of a stream as its last, which clients of decoupled models wait for."""
    reply.parameters["triton_final_response"].bool_param = True
    return reply


def _id(request: bytes) -> str:
    """Return the id of a request that is refused; nothing where its bytes are no message."""
    try:
        return pb.ModelInferRequest.FromString(request).id
    except DecodeError:
        return ""


def _check_empty_final(request: pb.ModelInferRequest) -> None:
    """Refuse what Triton refuses; the parameter itself asks for nothing of a model with one response a request."""
    name = "triton_enable_empty_final_response"
    if name in request.parameters and request.parameters[name].WhichOneof("parameter_choice") != "bool_param":
        raise InvalidInput(name, "is no bool_param; expected true or false")


def _own_deadline(request: pb.ModelInferRequest) -> float:
    """When the `timeout` parameter, in microseconds, runs out; on the clock of `time.monotonic`."""
    if "timeout" not in request.parameters:
        return float("inf")
    timeout = request.parameters["timeout"]
    kind = timeout.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param") or getattr(timeout, kind) < 0:
        value = getattr(timeout, kind) if kind else "nothing"
        raise InvalidInput("timeout", f"is {echo(str(value))}; expected microseconds, an int64 of at least 0")
    microseconds = getattr(timeout, kind)
    return time.monotonic() + microseconds / 1e6 if microseconds else float("inf")


def _asking(request_type: type[M], reply: Callable[[M], Message]) -> Answer:
    """An RPC that needs no model run: message in, message out."""

    async def answer(request: bytes, _: float) -> bytes:
        return reply(_parse(request_type(), request)).SerializeToString()

    return answer


def _not_offered(sentence: str) -> Answer:
    async def answer(_: bytes, __: float) -> bytes:
        raise Unimplemented(sentence)

    return answer


def _parse(message: M, data: bytes) -> M:
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise InvalidInput("message", f"is not an {message.DESCRIPTOR.full_name}") from None
    return message


def _duration(duration: Duration) -> Any:
    return pb.StatisticDuration(count=duration.count, ns=duration.ns)
