"""The RPCs of the Open Inference Protocol that run no model: liveness, metadata, configuration, statistics, loading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from service.errors import InvalidInput, ModelNotFound
from service.handlers import shared_memory_rpcs, tensors
from service.handlers.messages import parse, unary, unimplemented
from service.network import PIXELS
from service.pb.inference import open_inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from service.handlers import MessageHandler
    from service.handlers.predictor import Predictor
    from service.handlers.shared_memory import SharedMemoryRegions
    from service.network import ModelInfo
    from service.observability.statistics import Duration

M = TypeVar("M", bound=Message)

PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"
EXTENSIONS = ("model_configuration", "statistics")
_ONE_MODEL = "this server serves the one model that it was started with; start it again with another --model"
_NO_CONTROL = "models are not controlled through this server unless it is started with --model-control"
_NO_CUDA_SHARED_MEMORY = (
    "CUDA shared memory is not offered; expected system shared memory, or the values in the request"
)
_UNIMPLEMENTED = {
    "RepositoryModelUnload": _ONE_MODEL,
    **{f"CudaSharedMemory{verb}": _NO_CUDA_SHARED_MEMORY for verb in ("Status", "Register", "Unregister")},
    "TraceSetting": "traces are not offered through this protocol",
    "LogSettings": "log settings are options of the server: --log-level and --log-format",
}
_DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


class MetadataHandler:
    """Describes the server and its model.

    `is_serving` gives readiness. `server_version`, the execution `provider` and whether it runs `on_gpu` are part of
    the answers. `reload`, given if model control is on, reloads the model and raises ReloadRejected. `regions` is given
    if shared memory is on.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        is_serving: Callable[[], bool],
        server_version: str,
        provider: str = "CPUExecutionProvider",
        on_gpu: bool = False,
        reload: Callable[[], Awaitable[None]] | None = None,
        regions: SharedMemoryRegions | None = None,
    ) -> None:
        self._predictor = predictor
        self._reload = reload
        self._is_serving = is_serving
        self._server_version = server_version
        self._provider = provider
        self._kind = pb.ModelInstanceGroup.KIND_GPU if on_gpu else pb.ModelInstanceGroup.KIND_CPU
        self.unary: Mapping[str, MessageHandler] = {
            "ServerLive": unary(pb.ServerLiveRequest, lambda _: pb.ServerLiveResponse(live=True)),
            "ServerReady": unary(pb.ServerReadyRequest, lambda _: pb.ServerReadyResponse(ready=is_serving())),
            "ServerMetadata": unary(pb.ServerMetadataRequest, self._server_metadata),
            "ModelReady": unary(pb.ModelReadyRequest, self._model_ready),
            "ModelMetadata": unary(pb.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": unary(pb.ModelConfigRequest, self._model_config),
            "ModelStatistics": unary(pb.ModelStatisticsRequest, self._model_statistics),
            "RepositoryIndex": unary(pb.RepositoryIndexRequest, self._repository_index),
            "RepositoryModelLoad": self._load if reload else unimplemented(_NO_CONTROL),
            **{rpc: unimplemented(message) for rpc, message in _UNIMPLEMENTED.items()},
            **shared_memory_rpcs.handlers(regions),
        }
        self._extensions = (*EXTENSIONS, *(("system_shared_memory",) if regions is not None else ()))

    @property
    def _info(self) -> ModelInfo:
        return self._predictor.info

    async def _load(self, request: bytes, _: float) -> bytes:
        """Reload by the server's own policy; a client cannot send a model or choose another."""
        assert self._reload is not None
        message = parse(pb.RepositoryModelLoadRequest, request)
        self._predictor.check_model(message.model_name, "")
        if len(UnknownFieldSet(message)):
            raise InvalidInput("parameters", "are not offered: the server looks at its own folder of versions")
        await self._reload()
        return pb.RepositoryModelLoadResponse().SerializeToString()

    def _server_metadata(self, _: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="digitserve", version=self._server_version, extensions=self._extensions)

    def _model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """Answer false for an unknown model, as Triton does."""
        try:
            self._predictor.check_model(request.name, request.version)
        except ModelNotFound:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._is_serving())

    def _model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        self._predictor.check_model(request.name, request.version)
        info = self._info
        reply = pb.ModelMetadataResponse(name=info.name, versions=[info.version], platform=PLATFORM)
        reply.inputs.add(name=tensors.INPUT, datatype="UINT8", shape=[-1, PIXELS])
        for name, output in tensors.OUTPUTS.items():
            reply.outputs.add(name=name, datatype=output.datatype, shape=[-1, *output.dims])
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
        self._predictor.check_model(request.name, request.version)
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
            config.output.add(name=name, data_type=pb.DataType.Value(f"TYPE_{output.datatype}"), dims=output.dims)
        config.parameters["activation"].string_value = self._info.activation
        return pb.ModelConfigResponse(config=config)

    def _model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        if request.name:
            self._predictor.check_model(request.name, request.version)
        statistics = self._predictor.statistics
        model = pb.ModelStatistics(
            name=self._info.name,
            version=self._info.version,
            last_inference=statistics.last_inference_ms,
            inference_count=statistics.images,
            execution_count=statistics.runs,
            inference_stats=pb.InferStatistics(
                **{name: _to_proto_duration(getattr(statistics, name)) for name in _DURATIONS}
            ),
            batch_stats=[
                pb.InferBatchStatistics(batch_size=images, compute_infer=_to_proto_duration(runs))
                for images, runs in sorted(statistics.batches.items())
            ],
        )
        return pb.ModelStatisticsResponse(model_stats=[model])

    def _repository_index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        reply, ready = pb.RepositoryIndexResponse(), self._is_serving()
        if ready or not request.ready:
            reply.models.add(
                name=self._info.name,
                version=self._info.version,
                state="READY" if ready else "UNAVAILABLE",
                reason="" if ready else "the server is loading or stopping",
            )
        return reply


def _to_proto_duration(duration: Duration) -> Any:
    return pb.StatisticDuration(count=duration.count, ns=duration.ns)
