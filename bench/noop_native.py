"""The native transport with a model that does nothing: everything but ONNX Runtime. The floor of that transport.

python -m bench.noop_native PORT
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import CollectorRegistry

from bench.servers import LARGEST_BATCH, MODEL
from service.handlers.digits import DigitsHandler
from service.handlers.inference import InferenceHandler
from service.handlers.metadata import MetadataHandler
from service.handlers.predictor import Predictor
from service.inference.model import Model
from service.network import Pixels, Predictions
from service.observability.logs import make_logger
from service.observability.metrics import Metrics
from service.observability.statistics import Statistics
from service.transports.limits import Limits
from service.transports.native.transport import NativeBatcher, NativeTransport

if TYPE_CHECKING:
    from service.handlers import Service


class NoopModel(Model):
    """The committed model's name and version; its answers are zeros."""

    def predict(self, pixels: Pixels) -> Predictions:
        """Answer without looking."""
        n = len(pixels)
        zeros = (np.zeros((n, width), np.float32) for width in (10, 16, 16))
        return Predictions(np.zeros(n, np.int64), *zeros)

    def _warm_up(self) -> None:
        """Nothing to warm."""


async def main() -> None:
    """Serve on the port of the command line until the process is ended."""
    batcher = NativeBatcher(NoopModel(MODEL), Statistics())
    predictor = Predictor(batcher, max_batch_size=LARGEST_BATCH)
    services: list[Service] = [
        DigitsHandler(predictor),
        InferenceHandler(predictor, MetadataHandler(predictor, is_serving=lambda: True, server_version="0")),
    ]
    log, metrics = make_logger("json", "error"), Metrics(CollectorRegistry())
    limits = Limits(max_batch_size=LARGEST_BATCH)
    transport = NativeTransport(
        services, batcher, metrics, log, limits=limits, with_reflection=False, max_queued_images=65536, inline=128
    )
    await transport.start("127.0.0.1", int(sys.argv[1]))
    await transport.set_serving(True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
