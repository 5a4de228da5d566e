"""What a server is made of, each part from the options that it goes by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service import __version__
from service.config import parsed_options
from service.errors import StartError
from service.inference.providers import SessionFactory
from service.security.tls import Tls
from service.security.tokens import Tokens
from service.transports.limits import Limits
from service.transports.native import transport as native

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from service.config import Settings
    from service.observability.metrics import Metrics
    from service.observability.tracing import Tracing

_GRPCIO_ALONE = ("otlp_endpoint",)


def needs_grpcio(settings: Settings) -> list[str]:
    """The options in use that only the grpcio transport knows: another one must not start in spite of them."""
    return [f"--{name.replace('_', '-')}" for name in _GRPCIO_ALONE if getattr(settings, name)]


def chosen_transport(settings: Settings) -> tuple[str, str]:
    """The transport that runs, and why where `auto` would have taken another; StartError where it cannot be had."""
    needs, installed = ", ".join(needs_grpcio(settings)), native.is_installed()
    if settings.transport == "native" and not installed:
        raise StartError(
            "--transport (or DIGITS_TRANSPORT) is 'native', but its wheel digitserve-native is not installed: "
            "run `make native`, or choose grpcio"
        )
    if settings.transport == "native" and needs:
        raise StartError(f"--transport (or DIGITS_TRANSPORT) is 'native', which does not offer {needs}: choose grpcio")
    if settings.transport == "auto" and installed:
        return ("grpcio", f"native does not offer {needs}") if needs else ("native", "")
    return ("native" if settings.transport == "native" else "grpcio"), ""


def session_factory(settings: Settings, log: FilteringBoundLogger) -> SessionFactory:
    """What makes the model's sessions; StartError for a provider that nobody knows."""
    return SessionFactory(
        settings.provider,
        log,
        options=parsed_options(settings.provider_options),
        device_id=settings.device_id,
        memory_limit=settings.gpu_memory_bytes,
        max_batch_size=settings.max_batch_size,
    )


def limits(settings: Settings) -> Limits:
    """What a peer may take."""
    return Limits(
        max_batch_size=settings.max_batch_size,
        connections=settings.max_connections,
        streams=settings.max_concurrent_streams,
        connection_age=settings.max_connection_age,
        connection_idle=settings.max_connection_idle,
    )


def tls(settings: Settings, metrics: Metrics, log: FilteringBoundLogger) -> Tls | None:
    """The gRPC port's certificate, where it has one; CredentialsError where it cannot be used."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return Tls(settings.tls_cert, settings.tls_key, settings.tls_client_ca, metrics, log)


def tokens(settings: Settings, metrics: Metrics, log: FilteringBoundLogger) -> Tokens | None:
    """The tokens that let callers in, where they need one; CredentialsError where there are none."""
    return None if settings.tokens_file is None else Tokens(settings.tokens_file, metrics, log)


def tracing(settings: Settings, metrics: Metrics, log: FilteringBoundLogger) -> Tracing | None:
    """Where traces go, where they are asked for; StartError without the packages that they need."""
    if not settings.otlp_endpoint:
        return None
    try:
        from service.observability.tracing import Tracing  # noqa: PLC0415 (an extra, and nothing that a server without traces loads)
    except ImportError as e:
        raise StartError(
            f"--otlp-endpoint (or DIGITS_OTLP_ENDPOINT) needs the extra `tracing` ({e}): "
            "pip install -c constraints.txt -e '.[tracing]'"
        ) from None
    return Tracing(settings.otlp_endpoint, settings.trace_sample_ratio, version=__version__, metrics=metrics, log=log)
