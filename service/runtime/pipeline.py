"""The way of a request behind every transport: handlers, predictor, batcher, model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from service import __version__
from service.handlers.digits import DigitsHandler
from service.handlers.inference import InferenceHandler
from service.handlers.metadata import MetadataHandler
from service.handlers.predictor import Predictor
from service.observability.statistics import Statistics
from service.runtime.traced_components import TracedPredictor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from service.batching.batcher import InferenceModel
    from service.handlers import Service
    from service.handlers.predictor import BatcherProtocol
    from service.handlers.shared_memory import SharedMemoryRegions
    from service.observability.metrics import Metrics
    from service.observability.telemetry import Telemetry

BatcherT = TypeVar("BatcherT", bound="BatcherProtocol")
BatcherT_co = TypeVar("BatcherT_co", bound="BatcherProtocol", covariant=True)


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """The limits of the queue."""

    max_batch_size: int
    """Images in one message and in one run of the model."""
    max_queued_images: int
    inline_images: int | None = None
    """Images of the largest run on the thread of the transport; None is the default of the batcher."""


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """The facts that the handlers report about the server, and the reload that a client may request."""

    provider: str = "CPUExecutionProvider"
    on_gpu: bool = False
    is_serving: Callable[[], bool] = lambda: True
    reload: Callable[[], Awaitable[None]] | None = None
    regions: SharedMemoryRegions | None = None
    """Those of shared memory, if it is on."""


class BatcherFactory(Protocol[BatcherT_co]):
    """A batcher's class, or a function with its parameters."""

    def __call__(
        self,
        model: InferenceModel,
        metrics: Metrics,
        statistics: Statistics,
        *,
        max_batch_size: int,
        max_queued_images: int,
        inline: int | None,
    ) -> BatcherT_co:
        """Make a batcher in front of the model."""
        ...


@dataclass(frozen=True)
class Pipeline(Generic[BatcherT]):
    """A batcher in front of a model, and the services that answer from it."""

    batcher: BatcherT
    services: list[Service]
    regions: SharedMemoryRegions | None = None
    """Those of shared memory, if it is on."""


def compose_pipeline(
    make_batcher: BatcherFactory[BatcherT],
    model: InferenceModel,
    telemetry: Telemetry,
    config: PipelineConfig,
    info: ServerInfo,
) -> Pipeline[BatcherT]:
    """Construct the pipeline of a server, of a replica on Ray or of a test."""
    batcher = make_batcher(
        model,
        telemetry.metrics,
        Statistics(),
        max_batch_size=config.max_batch_size,
        max_queued_images=config.max_queued_images,
        inline=config.inline_images,
    )
    tracing = telemetry.tracing
    make_predictor = Predictor if tracing is None else partial(TracedPredictor, tracing=tracing)
    predictor = make_predictor(batcher, max_batch_size=config.max_batch_size)
    metadata = MetadataHandler(
        predictor,
        is_serving=info.is_serving,
        server_version=__version__,
        provider=info.provider,
        on_gpu=info.on_gpu,
        reload=info.reload,
        regions=info.regions,
    )
    digits = DigitsHandler(predictor, telemetry.metrics.requests_dropped.labels("overloaded").inc)
    return Pipeline(batcher, [digits, InferenceHandler(predictor, metadata, info.regions)], info.regions)
