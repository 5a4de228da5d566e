"""python -m ray_serve: serve model.onnx on a cluster of Ray."""

from __future__ import annotations

from commandline import startup

startup.exit_on_interrupt(__name__)

import sys
from importlib.util import find_spec

from ray_serve.config import load
from service.address import join_host_port
from service.config import SettingsError
from service.errors import StartError
from service.observability.logs import make_logger


def main() -> int:
    """Deploy; return the exit status: 0 it serves, 1 it cannot, 2 for an invalid option."""
    try:
        settings = load(sys.argv[1:])
    except SettingsError as e:
        print(e, file=sys.stderr)  # noqa: T201 (before there is a log)
        return 2
    log = make_logger(settings.log_format, settings.log_level)
    if find_spec("ray") is None:
        log.error("cannot start", reason=startup.missing_extra("ray", "ray"))
        return 1
    from ray_serve.deployment import deploy  # noqa: PLC0415 (--help and an invalid option answer at once)

    try:
        info = deploy(settings)
    except StartError as e:
        log.error("cannot start", reason=str(e))  # noqa: TRY400 (one sentence for the operator, no traceback)
        return 1
    log.info(
        "serving",
        ray=settings.ray_address,
        port=settings.port,
        metrics=f"http://{join_host_port(settings.metrics_host, settings.metrics_port)}/metrics",
        model=info.name,
        model_version=info.version,
        weights_sha256=info.weights_sha256,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
