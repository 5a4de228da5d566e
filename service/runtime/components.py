"""Constructs parts of the server from the options."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from service import __version__
from service.batching.batcher import Batcher
from service.errors import StartError
from service.handlers.shared_memory import SharedMemoryRegions
from service.inference.providers import CPU, SessionFactory
from service.inference.repository import ModelRepository
from service.observability import gpu_metrics
from service.provider_options import parsed_options
from service.runtime.pipeline import PipelineConfig, ServerInfo
from service.runtime.traced_components import TracedBatcher
from service.security.config import SecurityConfig
from service.security.tls import Tls
from service.security.tokens import Tokens
from service.transports.config import TransportConfig
from service.transports.grpcio.transport import GrpcioTransport
from service.transports.limits import Limits
from service.transports.native.transport import NativeBatcher, NativeTransport, default_io_threads
from service.unix_socket import UnixSocketFile, parse_address

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from structlog.typing import FilteringBoundLogger

    from service.config import Settings
    from service.observability.metrics import Metrics
    from service.observability.telemetry import Telemetry
    from service.observability.tracing import Tracing
    from service.runtime.health import Health
    from service.runtime.model_swapper import ModelSwapper
    from service.runtime.pipeline import BatcherFactory, Pipeline
    from service.transports.http.server import HttpServer


def session_factory(settings: Settings, log: FilteringBoundLogger) -> SessionFactory:
    """Construct the factory of the model's sessions; StartError for an unknown provider."""
    return SessionFactory(
        settings.provider,
        log,
        options=parsed_options(settings.provider_options),
        library=str(settings.provider_library or ""),
        device_id=settings.device_id,
        memory_limit=settings.gpu_memory_bytes,
        max_batch_size=settings.max_batch_size,
    )


def provider_table(settings: Settings, log: FilteringBoundLogger) -> str:
    """List the execution providers and their devices, each tried with the model, for a terminal."""
    from service.inference import provider_list  # noqa: PLC0415 (no server needs it)

    library = str(settings.provider_library or "")
    return provider_list.render(provider_list.rows(settings.model, log, name=settings.provider, library=library))


def register_gpu_metrics(
    registry: CollectorRegistry, settings: Settings, sessions: SessionFactory, log: FilteringBoundLogger
) -> None:
    """Add the metrics of the GPU, if NVIDIA's runs the model."""
    if sessions.is_on_nvidia:
        gpu_metrics.register(registry, settings.device_id, log)


def model_repository(settings: Settings, sessions: SessionFactory) -> ModelRepository:
    """Construct the repository of the model's versions."""
    return ModelRepository(
        settings.model, version=settings.model_version, sha256=settings.model_sha256, sessions=sessions
    )


def pipeline_config(settings: Settings, sessions: SessionFactory) -> PipelineConfig:
    """Return the limits of the queue. A run on a device would block the thread of the transport for too long."""
    inline = settings.inline_images
    return PipelineConfig(
        max_batch_size=settings.max_batch_size,
        max_queued_images=settings.max_queued_images,
        inline_images=0 if inline is None and sessions.name != CPU else inline,
    )


def server_info(settings: Settings, sessions: SessionFactory, models: ModelSwapper, health: Health) -> ServerInfo:
    """Return the facts that the handlers report."""
    return ServerInfo(
        provider=models.model.provider,
        on_gpu=sessions.is_on_gpu,
        is_serving=health.is_serving,
        reload=models.reload if settings.model_control else None,
        regions=SharedMemoryRegions() if settings.shared_memory else None,
    )


def batcher_factory(transport: str, tracing: Tracing | None) -> BatcherFactory[Batcher | NativeBatcher]:
    """Return the batcher of a transport."""
    if transport == "native":
        return NativeBatcher
    return Batcher if tracing is None else partial(TracedBatcher, tracing=tracing)


def transport_config(settings: Settings, metrics: Metrics) -> TransportConfig:
    """Return the limits of the port, which are metrics too, and its standard services."""
    metrics.connections_limit.set(settings.max_connections)
    limits = Limits(
        max_batch_size=settings.max_batch_size,
        connections=settings.max_connections,
        streams=settings.max_concurrent_streams,
        connection_age=settings.max_connection_age,
        connection_idle=settings.max_connection_idle,
    )
    return TransportConfig(
        limits=limits, reflection=settings.reflection, health_without_token=settings.health_without_token
    )


def security_config(settings: Settings, metrics: Metrics, log: FilteringBoundLogger) -> SecurityConfig:
    """Load the certificate and the tokens, if configured; CredentialsError if one is invalid."""
    tls, tokens = None, None
    if settings.tls_cert is not None and settings.tls_key is not None:
        tls = Tls(settings.tls_cert, settings.tls_key, settings.tls_client_ca, metrics, log)
    if settings.tokens_file is not None:
        tokens = Tokens(settings.tokens_file, metrics, log)
    return SecurityConfig(tls=tls, tokens=tokens)


def socket_file(settings: Settings) -> UnixSocketFile | None:
    """Return the file of the Unix domain socket, if configured."""
    return UnixSocketFile(parse_address(settings.listen)) if settings.listen else None


def transport(
    settings: Settings,
    pipeline: Pipeline[Batcher | NativeBatcher],
    telemetry: Telemetry,
    config: TransportConfig,
    security: SecurityConfig,
    health: Health,
) -> GrpcioTransport | NativeTransport:
    """Construct the transport in front of a pipeline."""
    services, batcher = pipeline.services, pipeline.batcher
    if isinstance(batcher, NativeBatcher):
        io_threads = settings.io_threads or default_io_threads()
        regions = pipeline.regions
        return NativeTransport(services, batcher, telemetry, config, security, io_threads=io_threads, regions=regions)
    if settings.io_threads is not None:
        telemetry.log.info("option ignored", option="--io-threads", reason="grpcio has no I/O threads")
    return GrpcioTransport(services, batcher, telemetry, config, security, health.refresh)


def http_server(
    settings: Settings,
    pipeline: Pipeline[Batcher | NativeBatcher],
    telemetry: Telemetry,
    registry: CollectorRegistry,
    config: TransportConfig,
    security: SecurityConfig,
) -> HttpServer | None:
    """Construct the HTTP transport, if configured; StartError without the packages of its extra."""
    if settings.http_port is None:
        return None
    try:
        from service.transports.http.application import HttpApplication  # noqa: PLC0415 (an extra)
        from service.transports.http.routes import make_routes  # noqa: PLC0415 (as above)
        from service.transports.http.server import HttpServer  # noqa: PLC0415 (as above)
    except ImportError as e:
        raise StartError(
            f"--http-port (or DIGITS_HTTP_PORT) needs the extra `http` ({e}): "
            "pip install -c constraints.txt -e '.[http]'"
        ) from None
    queue = pipeline.batcher if isinstance(pipeline.batcher, Batcher) else None
    routes = make_routes(pipeline.services, config.limits)
    application = HttpApplication(routes, telemetry, registry, config, security, queue)
    return HttpServer(application, limits=config.limits, tls=security.tls)


def tracing(settings: Settings, metrics: Metrics, log: FilteringBoundLogger) -> Tracing | None:
    """Construct the tracing, if configured; StartError without the packages of its extra."""
    if not settings.otlp_endpoint:
        return None
    try:
        from service.observability.tracing import Tracing  # noqa: PLC0415 (an extra, which only traces need)
    except ImportError as e:
        raise StartError(
            f"--otlp-endpoint (or DIGITS_OTLP_ENDPOINT) needs the extra `tracing` ({e}): "
            "pip install 'digitserve[tracing]'"
        ) from None
    return Tracing(settings.otlp_endpoint, settings.trace_sample_ratio, version=__version__, metrics=metrics, log=log)
