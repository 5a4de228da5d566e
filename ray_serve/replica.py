"""One replica on Ray Serve: the model and the same pipeline as in the server."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from prometheus_client import generate_latest
from ray import serve
from starlette.responses import PlainTextResponse

from ray_serve.adapter import RpcAdapter
from ray_serve.exposition import merge
from service.batching.batcher import Batcher
from service.errors import ModelNotFound, malformed_message
from service.handlers.predictor import echo
from service.inference.model import Model
from service.network import PIXELS
from service.observability.logs import make_logger
from service.observability.metrics import Metrics, create_registry
from service.observability.telemetry import Telemetry
from service.runtime.pipeline import PipelineConfig, ServerInfo, compose_pipeline

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from starlette.requests import Request

    from ray_serve.config import ClusterSettings
    from service.handlers import Service

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
SCRAPE_TIMEOUT = 5.0  # seconds for the metrics of every replica


class Replica:
    """The deployment class of the application: its methods are the RPCs by name, and `__call__` serves /metrics.

    `content` is the model file: the application carries it, so that nodes need no file and all replicas have the same.
    """

    def __init__(self, settings: ClusterSettings, content: bytes) -> None:
        self._log = make_logger(settings.log_format, settings.log_level)
        self._model = _load(content, settings.model_sha256)
        self._registry = create_registry()
        self._metrics = Metrics(self._registry)
        self._metrics.serving.set(1)
        queue = PipelineConfig(
            max_batch_size=settings.max_batch_size,
            max_queued_images=settings.max_queued_images,
            inline_images=settings.inline_images,
        )
        telemetry = Telemetry(self._metrics, self._log)
        services = compose_pipeline(Batcher, self._model, telemetry, queue, ServerInfo()).services
        self._names = ["", *(service.name for service in services)]
        self._add_methods(services)
        self._metrics.set_model_info(
            self._model.info, provider=self._model.provider, runtime=self._model.runtime, transport="ray"
        )

    def _add_methods(self, services: list[Service]) -> None:
        """Add a method for each RPC, which Ray Serve calls by its name."""
        adapter = RpcAdapter(self._metrics, self._log)
        for service in services:
            for name, answer in service.unary.items():
                setattr(self, name, adapter.unary(service.name, name, answer))
            for name, answer in service.streams.items():
                setattr(self, name, adapter.stream(service.name, name, answer, service.alternatives.get(name)))
        self.Check = adapter.unary(HEALTH, "Check", self._check)
        self.List = adapter.unary(HEALTH, "List", self._list)

    def check_health(self) -> None:
        """Run the model; Ray Serve ends a replica that raises here."""
        self._model.predict(np.zeros((1, PIXELS), np.uint8))

    async def __call__(self, request: Request) -> PlainTextResponse:
        """Answer HTTP requests of Ray's proxy: /metrics of all replicas."""
        if request.url.path != "/metrics":
            return PlainTextResponse("expected /metrics\n", status_code=404)
        context = serve.get_replica_context()
        replicas = serve.get_deployment_handle(context.deployment, context.app_name)
        results = await replicas.broadcast("exposition").results_async(timeout_s=SCRAPE_TIMEOUT, return_exceptions=True)
        metrics = dict(one for one in results if not isinstance(one, BaseException))  # a stopping replica has none
        return PlainTextResponse(merge(metrics), media_type="text/plain; version=0.0.4")

    async def exposition(self) -> tuple[str, str]:
        """Return the id and the metrics of this replica."""
        return serve.get_replica_context().replica_tag, generate_latest(self._registry).decode()

    async def _check(self, request: bytes, _: float) -> bytes:
        try:
            name = health_pb2.HealthCheckRequest.FromString(request).service
        except DecodeError:
            raise malformed_message() from None
        if name not in self._names:
            raise ModelNotFound(f"service: there is no service {echo(name)}")
        return _SERVING.SerializeToString()

    async def _list(self, _: bytes, __: float) -> bytes:
        reply: Message = health_pb2.HealthListResponse(  # type: ignore[attr-defined] # the stubs are of an older version
            statuses=dict.fromkeys(self._names, _SERVING)
        )
        return reply.SerializeToString()


_SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


def _load(content: bytes, sha256: str) -> Model:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        return Model(path, sha256=sha256)


def application(settings: ClusterSettings, content: bytes) -> Any:
    """Make the Ray Serve application."""
    deployment: Any = serve.deployment(
        name="digits",
        max_ongoing_requests=settings.max_ongoing,
        max_queued_requests=settings.max_queued,
        graceful_shutdown_timeout_s=settings.shutdown_grace,
        health_check_period_s=5,
        ray_actor_options={"num_cpus": settings.replica_cpus},
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_ongoing,
            "upscale_delay_s": settings.scale_up_after,
            "downscale_delay_s": settings.scale_down_after,
            "look_back_period_s": max(10.5, min(30.0, settings.scale_up_after)),  # a future Ray rejects 10 and less
        },
    )(Replica)
    return deployment.bind(settings, content)
