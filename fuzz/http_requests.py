"""The fuzz target of the HTTP transport's readers of bodies."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, cast

from prometheus_client import CollectorRegistry
from structlog.testing import CapturingLogger

from fuzz.targets import FOLDER, MOST_IMAGES, BrokenPromise, model_file
from service.batching.batcher import Batcher
from service.inference.model import Model
from service.observability.metrics import Metrics
from service.observability.telemetry import Telemetry
from service.runtime.pipeline import PipelineConfig, ServerInfo, compose_pipeline
from service.security.config import SecurityConfig
from service.transports.config import TransportConfig
from service.transports.http.application import HttpApplication
from service.transports.http.inference import JSON_LENGTH
from service.transports.http.routes import make_routes
from service.transports.limits import Limits

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

INFER, PREDICT, EXPLAIN = "/v2/models/digits/infer", "/v1/predict", "/v1/explain"
FORMS: tuple[tuple[str, dict[str, str]], ...] = (
    (INFER, {}),
    (INFER, {JSON_LENGTH: "200"}),
    (INFER, {"content-encoding": "gzip"}),
    (PREDICT, {"content-type": "application/json"}),
    (PREDICT, {"content-type": "multipart/form-data; boundary=XX"}),
    (PREDICT, {"content-type": "image/png"}),
    ("/v2/repository/index", {}),
    (EXPLAIN, {"content-type": "application/json"}),
    (EXPLAIN, {"content-type": "image/png"}),
)
"""Paths and headers; the first byte of the input chooses one, and the rest is the body."""


class HttpRequests:
    """Any body of a request: an answer, or an error other than 500 whose message is one short line."""

    def __init__(self) -> None:
        path = FOLDER / "http.onnx"
        path.write_bytes(model_file())
        self._runner = asyncio.Runner()
        self._log = CapturingLogger()
        registry = CollectorRegistry()
        telemetry = Telemetry(Metrics(registry), cast("FilteringBoundLogger", self._log))
        config = PipelineConfig(max_batch_size=MOST_IMAGES, max_queued_images=64, inline_images=MOST_IMAGES)
        self._pipeline = compose_pipeline(Batcher, Model(path), telemetry, config, ServerInfo())
        transport = TransportConfig(limits=Limits(max_batch_size=MOST_IMAGES))
        routes = make_routes(self._pipeline.services, transport.limits)
        self._application = HttpApplication(routes, telemetry, registry, transport, SecurityConfig())

    def __call__(self, data: bytes) -> None:
        """Send the request to the application."""
        if not data:
            return
        path, headers = FORMS[data[0] % len(FORMS)]
        status, body = self._runner.run(self._request(path, headers, data[1:]))
        calls, self._log.calls = self._log.calls, []
        if status == 500:
            raise next(call.kwargs["exc_info"] for call in calls if "exc_info" in call.kwargs)
        if status >= 400:
            message = json.loads(body)["error"]
            if len(message) > 600 or not message.isprintable():
                raise BrokenPromise(f"the client receives {message!r}")

    async def _request(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(event: dict[str, Any]) -> None:
            sent.append(event)

        scope = {
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": [(key.encode(), value.encode()) for key, value in headers.items()],
            "state": {"connection": _Connection(), "cycle": _Cycle()},
        }
        await self._application(scope, receive, send)
        return int(sent[0]["status"]), bytes(sent[1]["body"])

    def close(self) -> None:
        """End the batcher and the event loop."""
        self._runner.run(self._pipeline.batcher.close())
        self._runner.close()


class _Connection:
    def begin_request(self) -> None:
        pass

    def set_authenticated(self) -> None:
        pass

    def closes_after_response(self, cycle: Any) -> bool:
        return not cycle.keep_alive


class _Cycle:
    keep_alive = True
