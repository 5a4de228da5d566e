"""Deploys the application to a Ray cluster, and waits until it serves."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from ray_serve.connection import NO_ANSWER, connection_error
from service.errors import StartError
from service.inference.repository import ModelRepository

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read at the import of Ray
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # otherwise Ray warns of a future change

if TYPE_CHECKING:
    from ray_serve.config import ClusterSettings
    from service.network import ModelInfo

NAME = "digits"


def deploy(settings: ClusterSettings) -> ModelInfo:
    """Deploy the application, or update the running one; return the model when it serves. Raises StartError.

    It loads the model here first, so that an invalid file never reaches the cluster.
    """
    option = f"--ray-address (or DIGITS_RAY_ADDRESS) is {settings.ray_address!r}"
    if reason := connection_error(settings.ray_address):
        raise StartError(f"{option}: {reason}")
    place = ModelRepository(settings.model, version=settings.model_version, sha256=settings.model_sha256)
    candidate = place.candidates()[0]
    model, content = place.load(candidate), candidate.path.read_bytes()
    import ray  # noqa: PLC0415 (an extra, and slow to import)
    from ray import serve  # noqa: PLC0415

    from ray_serve import registration, replica  # noqa: PLC0415

    try:
        ray.init(settings.ray_address, namespace="serve", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as e:
        raise StartError(f"{option}: {NO_ANSWER}") from e
    options: dict[str, Any] = {
        "port": settings.port,
        "grpc_servicer_functions": registration.FUNCTIONS,
        "enable_reflection": settings.reflection,
    }
    serve.start(
        proxy_location="EveryNode",
        grpc_options=options,
        http_options={"host": settings.metrics_host, "port": settings.metrics_port},
    )
    try:
        serve.run(replica.application(settings, content), name=NAME, route_prefix="/")
    except RuntimeError as e:
        raise StartError(f"Ray Serve could not start the application: see `serve status`: {e}") from e
    return model.info
