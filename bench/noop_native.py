"""The native transport with a no-op model: everything except ONNX Runtime. The floor of that transport.

python -m bench.noop_native PORT
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np
from prometheus_client import CollectorRegistry

from bench.server import LARGEST_BATCH, MODEL
from service.inference.model import Model
from service.network import Pixels, Predictions
from service.observability.logs import make_logger
from service.observability.metrics import Metrics
from service.observability.telemetry import Telemetry
from service.runtime.pipeline import PipelineConfig, ServerInfo, compose_pipeline
from service.security.config import SecurityConfig
from service.transports.config import TransportConfig
from service.transports.limits import Limits
from service.transports.native.transport import NativeBatcher, NativeTransport


class NoopModel(Model):
    """The committed model's name and version; its answers are zeros."""

    float_graph = None

    def predict(self, pixels: Pixels) -> Predictions:
        """Answer without looking."""
        n = len(pixels)
        zeros = (np.zeros((n, width), np.float32) for width in (10, 16, 16))
        return Predictions(np.zeros(n, np.int64), *zeros)

    def _warm_up(self) -> None:
        """Return at once: a no-op model needs no warm-up."""


async def main() -> None:
    """Serve on the port of the command line until the process is ended."""
    telemetry = Telemetry(Metrics(CollectorRegistry()), make_logger("json", "error"))
    queue = PipelineConfig(max_batch_size=LARGEST_BATCH, max_queued_images=65536, inline_images=128)
    pipeline = compose_pipeline(NativeBatcher, NoopModel(MODEL), telemetry, queue, ServerInfo())
    config = TransportConfig(limits=Limits(max_batch_size=LARGEST_BATCH), reflection=False)
    transport = NativeTransport(pipeline.services, pipeline.batcher, telemetry, config, SecurityConfig())
    await transport.start("127.0.0.1", int(sys.argv[1]))
    await transport.set_serving(True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
