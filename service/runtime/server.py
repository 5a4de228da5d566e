"""The composition of the server: constructs every part, each line from the parts above it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from service.observability.metrics import Metrics, create_registry
from service.observability.metrics_server import MetricsServer
from service.observability.recent_events import RecentEvents
from service.observability.status_page import StatusPage
from service.observability.telemetry import Telemetry
from service.runtime import components
from service.runtime.device_recovery import DeviceRecovery
from service.runtime.health import Health
from service.runtime.lifecycle import Server
from service.runtime.model_swapper import ModelSwapper
from service.runtime.pipeline import compose_pipeline
from service.runtime.reloader import Reloader
from service.runtime.transport_choice import choose_transport
from service.runtime.watchdog import Watchdog

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from structlog.typing import FilteringBoundLogger

    from service.config import Settings


def compose(settings: Settings, log: FilteringBoundLogger) -> Server:
    """Construct a server and load its model; needs a running event loop. Raises StartError."""
    transport_name = _chosen_transport(settings, log)
    registry = create_registry()
    metrics = Metrics(registry)
    events = RecentEvents()
    log = events.record(log)
    telemetry = Telemetry(metrics, log, components.tracing(settings, metrics, log))
    sessions = components.session_factory(settings, log)
    reloader = Reloader(components.model_repository(settings, sessions), metrics, log)
    components.register_gpu_metrics(registry, settings, sessions, log)
    security = components.security_config(settings, metrics, log)
    health = Health(metrics)
    device_recovery = DeviceRecovery(metrics, log, health.refresh)
    watchdog = Watchdog(settings.watchdog_timeout, metrics, log, health.refresh)
    models = ModelSwapper(reloader, watchdog, device_recovery, metrics, transport_name)
    pipeline = compose_pipeline(
        components.batcher_factory(transport_name, telemetry.tracing),
        models.monitored,
        telemetry,
        components.pipeline_config(settings, sessions),
        components.server_info(settings, sessions, models, health),
    )
    config = components.transport_config(settings, metrics)
    transport = components.transport(settings, pipeline, telemetry, config, security, health)
    models.connect(pipeline.batcher)
    health.connect(transport.set_serving, watchdog, device_recovery, transport)
    return Server(
        settings=settings,
        telemetry=telemetry,
        transport_name=transport_name,
        metrics_server=_metrics_server(settings, registry, metrics, events, health, models),
        security=security,
        health=health,
        device_recovery=device_recovery,
        watchdog=watchdog,
        models=models,
        batcher=pipeline.batcher,
        transport=transport,
        socket_file=components.socket_file(settings),
        http_server=components.http_server(settings, pipeline, telemetry, registry, config, security),
    )


def _metrics_server(
    settings: Settings,
    registry: CollectorRegistry,
    metrics: Metrics,
    events: RecentEvents,
    health: Health,
    models: ModelSwapper,
) -> MetricsServer:
    health_text = partial(_health_text, health, models)
    status_page = StatusPage(registry, metrics, events, health.is_serving, health_text)
    return MetricsServer(registry, health.is_serving, health_text, status_page if settings.status_page else None)


def _health_text(health: Health, models: ModelSwapper) -> str:
    return f"on {models.model.provider}" if health.is_serving() else health.unhealthy_reason


def _chosen_transport(settings: Settings, log: FilteringBoundLogger) -> str:
    name, reason, remedy = choose_transport(settings)
    if remedy:
        log.info(
            "transport chosen", transport=name, reason=reason, faster=f"native, 10 times with small calls: {remedy}"
        )
    elif reason:
        log.info("transport chosen", transport=name, reason=reason)
    return name
