"""The options of `python -m ray_serve`: those of the service that mean something here, and the cluster's own."""

from __future__ import annotations

from copy import copy
from pathlib import Path  # noqa: TC003 (pydantic reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings

from service.config import Seconds, Settings, parsed

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

Count = Annotated[int, Field(ge=1, le=100_000)]


def _of_service(name: str) -> Any:
    """The service's option, with its default, bounds and line of help: it stands once, there."""
    field: FieldInfo = copy(Settings.model_fields[name])
    return field


class ClusterSettings(BaseSettings):
    """Serve model.onnx on a running cluster of Ray, with Ray Serve's gRPC proxy on every node that has a replica.

    Run it again with another model or other options and Ray Serve changes the replicas one after the other. `serve
    status` tells how it goes, `serve shutdown` ends it. Each option can also be set by an environment variable:
    --max-replicas is DIGITS_MAX_REPLICAS.

    Exit status: 0 it serves; 1 it cannot; 2 wrong usage.
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
    """Of `--help`, each with the first field under it."""

    ray_address: str = Field("auto", min_length=1, description="the cluster: auto is the one of this machine")
    model: Path = _of_service("model")
    model_version: str = _of_service("model_version")
    model_sha256: str = _of_service("model_sha256")
    port: int = Field(
        50051, ge=1, le=65535, description="port of gRPC on every node; Ray Serve listens on all addresses"
    )
    reflection: bool = _of_service("reflection")

    min_replicas: Count = Field(1, description="replicas that are there without load")
    max_replicas: Count = Field(4, description="replicas that there may be under load")
    target_ongoing: float = Field(
        32.0, gt=0, le=100_000, description="calls in flight for each replica that autoscaling aims at"
    )
    scale_up_after: Seconds = Field(10.0, description="seconds that there must be too many before replicas are added")
    scale_down_after: Seconds = Field(120.0, description="seconds that there must be too few before some are ended")
    replica_cpus: float = Field(
        1.0, ge=0, le=1024, description="CPUs that Ray sets aside for a replica; logical, Ray bounds nothing"
    )
    max_ongoing: Count = Field(256, description="calls that a replica works on at a time; more wait at the proxies")
    max_queued: Count = Field(4096, description="calls that may wait at one proxy before more are refused")

    max_batch_size: int = _of_service("max_batch_size")
    max_queued_images: int = _of_service("max_queued_images")
    inline_images: int | None = _of_service("inline_images")
    shutdown_grace: Seconds = _of_service("shutdown_grace")

    metrics_host: str = Field("127.0.0.1", min_length=1, description="address of /metrics on every node")
    metrics_port: int = Field(
        9464, ge=1, le=65535, description="port of /metrics over HTTP on every node, all replicas at once"
    )
    log_format: Literal["auto", "console", "json"] = _of_service("log_format")
    log_level: Literal["debug", "info", "warning", "error"] = _of_service("log_level")

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"--min-replicas is {self.min_replicas}, more than --max-replicas, {self.max_replicas}")
        return self


def load(arguments: list[str]) -> ClusterSettings:
    """The settings that a command line and the environment give. Raises SettingsError for a bad value."""
    return parsed(ClusterSettings, arguments, module="cluster", name="digitserve-cluster")
