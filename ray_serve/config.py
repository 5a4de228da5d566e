"""The options of `python -m ray_serve`: those of the service that apply to Ray, and its own."""

from __future__ import annotations

from copy import copy
from pathlib import Path  # noqa: TC003 (pydantic reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings

from service.config import Seconds, Settings, parsed
from service.config import flags as flags_of

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

Count = Annotated[int, Field(ge=1, le=100_000)]


def _service_option(name: str) -> Any:
    """Return an option of the service, with its default, bounds and help, which are defined only there."""
    field: FieldInfo = copy(Settings.model_fields[name])
    return field


class ClusterSettings(BaseSettings):
    """Serve model.onnx on a running Ray cluster, with Ray Serve's gRPC proxy on every node that has a replica.

    Run again with another model or other options, it makes Ray Serve replace the replicas one by one. `serve status`
    shows the progress, `serve shutdown` ends the application. Each option can also be set by an environment variable:
    --max-replicas is DIGITS_MAX_REPLICAS.

    Exit status: 0 the application serves; 1 it cannot; 2 wrong usage.
    """

    model_config = Settings.model_config

    headings: ClassVar[dict[str, str]] = {
        "Ray": "ray_address",
        "Model": "model",
        "gRPC": "port",
        "Replicas": "min_replicas",
        "Limits": "max_batch_size",
        "Observability": "metrics_host",
    }
    """The headings of `--help`, each with the first field below it."""

    ray_address: str = Field(
        "auto", min_length=1, description="address of the cluster, HOST:PORT; auto is the cluster of this machine"
    )
    model: Path = _service_option("model")
    model_version: str = _service_option("model_version")
    model_sha256: str = _service_option("model_sha256")
    port: int = Field(50051, ge=1, le=65535, description="gRPC port of every node; Ray Serve listens on all addresses")
    reflection: bool = _service_option("reflection")

    min_replicas: Count = Field(1, description="minimum number of replicas")
    max_replicas: Count = Field(4, description="maximum number of replicas")
    target_ongoing: float = Field(
        32.0, gt=0, le=100_000, description="target of the autoscaler: calls in flight per replica"
    )
    scale_up_after: Seconds = Field(10.0, description="seconds above the target before replicas are added")
    scale_down_after: Seconds = Field(120.0, description="seconds below the target before replicas are removed")
    replica_cpus: float = Field(
        1.0, ge=0, le=1024, description="logical CPUs that Ray reserves per replica; no limit on its use"
    )
    max_ongoing: Count = Field(256, description="concurrent calls per replica; further calls wait at the proxies")
    max_queued: Count = Field(4096, description="calls that wait at one proxy; further calls are rejected")

    max_batch_size: int = _service_option("max_batch_size")
    max_queued_images: int = _service_option("max_queued_images")
    inline_images: int | None = _service_option("inline_images")
    shutdown_grace: Seconds = _service_option("shutdown_grace")

    metrics_host: str = Field("127.0.0.1", min_length=1, description="address of /metrics on every node")
    metrics_port: int = Field(
        9464, ge=1, le=65535, description="HTTP port of /metrics on every node, with all replicas"
    )
    log_format: Literal["auto", "console", "json"] = _service_option("log_format")
    log_level: Literal["debug", "info", "warning", "error"] = _service_option("log_level")

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"--min-replicas is {self.min_replicas}, more than --max-replicas, {self.max_replicas}")
        return self


def load(arguments: list[str]) -> ClusterSettings:
    """Return the settings of a command line and the environment. Raises SettingsError for an invalid value."""
    return parsed(ClusterSettings, arguments, module="ray_serve")


def flags() -> list[str]:
    """Every flag of the command line, for a shell that completes them."""
    return flags_of(ClusterSettings)
