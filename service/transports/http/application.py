"""The ASGI application of the HTTP transport: authentication, admission, routing, errors, metrics, log."""

from __future__ import annotations

import asyncio
import gzip
import re
import time
import uuid
from email.utils import formatdate
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from service.errors import Unauthenticated
from service.transports.call_log import CallLogger
from service.transports.http.body import BodyBudget
from service.transports.http.errors import HttpError, Response, to_response
from service.transports.http.metrics import HttpMetrics, method_label
from service.transports.http.routes import Request
from service.transports.request_id import REQUEST_ID, request_id_from

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from prometheus_client import CollectorRegistry

    from service.observability.telemetry import Telemetry
    from service.security.config import SecurityConfig
    from service.transports.admission import AdmissionQueue
    from service.transports.config import TransportConfig
    from service.transports.http.connection import Connection
    from service.transports.http.routes import Route

_MIN_GZIP_BYTES = 1024
_MAX_INLINE_GZIP_BYTES = 2**16
"""A larger response is compressed in a thread: compression takes 15 ms per MiB."""
_GZIP_LEVEL = 1
_ACCEPTS_GZIP = re.compile(
    r"(?:^|,)[ \t]*gzip[ \t]*(?:;[ \t]*q=(?:1(?:\.0{0,3})?|0\.(?=\d*[1-9])\d{1,3})[ \t]*)?(?:,|$)", re.IGNORECASE
)
"""Accept-Encoding with gzip at a weight above 0 (RFC 9110, 12.4.2)."""
CANCELLED = 499
"""The status of a request whose client disconnected, in metrics; as in nginx."""

NOT_FOUND_ROUTE = ""


class _Match(NamedTuple):
    """The route of a request and its path parameters; `error` if there is none."""

    route: Route | None
    parameters: Mapping[str, str]
    error: HttpError | None = None


class HttpApplication:
    """Answers HTTP requests by `routes`.

    While `queue` is full, requests for predictions are rejected before their body is read.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        telemetry: Telemetry,
        registry: CollectorRegistry,
        config: TransportConfig,
        security: SecurityConfig,
        queue: AdmissionQueue | None = None,
    ) -> None:
        self._routes = [(_pattern(route.template), route) for route in routes]
        self._dropped = telemetry.metrics.requests_dropped
        self.metrics = HttpMetrics(
            registry, [(route.method, route.template) for route in routes if route.is_prediction]
        )
        self._calls = CallLogger(telemetry.log)
        self._config = config
        self._tokens = security.tokens
        self._queue = queue
        self._budget = BodyBudget()

    async def __call__(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        """Answer one request of ASGI."""
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        method, match = method_label(scope["method"]), self._match(scope["method"], scope["path"])
        template = NOT_FOUND_ROUTE if match.route is None else match.route.template
        finish = self.metrics.start(method, template)
        request_id = request_id_from(headers.items())
        try:
            response = await self._answer(scope, receive, headers, match)
        except asyncio.CancelledError:
            finish(CANCELLED)
            raise
        except Exception as error:  # noqa: BLE001 (the last place that can keep an internal text from the client)
            response, request_id = to_response(error), request_id or uuid.uuid4().hex
            self._calls.log_error(
                error, method=f"{method} {template}".strip(), code=str(response.status), request_id=request_id
            )
        finish(response.status)
        response = await _compress(response, headers)
        if scope["state"]["connection"].closes_after_response(scope["state"]["cycle"]):
            response = response._replace(headers=(*response.headers, ("Connection", "close")))
        await _send(send, response, request_id)

    def record_rejection(self, status: int) -> None:
        """Count a request that the connection rejected, such as one that is not HTTP."""
        self.metrics.start(method_label(""), NOT_FOUND_ROUTE)(status)

    async def _answer(self, scope: Any, receive: Any, headers: Mapping[str, str], match: _Match) -> Response:
        is_open = match.route is not None and match.route.is_health and self._config.health_without_token
        connection: Connection = scope["state"]["connection"]
        connection.begin_request()
        if not is_open:
            self._check_token(headers, scope)
            connection.set_authenticated()
        if match.route is None:
            assert match.error is not None
            raise match.error
        if match.route.is_prediction and self._queue is not None and self._queue.is_full:
            raise self._queue.overloaded_error()
        with self._budget.lease() as lease:
            query = scope["query_string"].decode("latin-1")
            return await match.route.endpoint(Request(match.parameters, headers, query, receive, lease))

    def _check_token(self, headers: Mapping[str, str], scope: Any) -> None:
        if self._tokens is None:
            return
        try:
            self._tokens.check(headers.items())
        except Unauthenticated:
            self._dropped.labels("unauthenticated").inc()
            scope["state"]["cycle"].keep_alive = False
            raise

    def _match(self, method: str, path: str) -> _Match:
        allowed = []
        for pattern, route in self._routes:
            if (match := pattern.fullmatch(path)) is not None:
                if method == route.method or (method == "HEAD" and route.method == "GET"):
                    return _Match(route, {key: value or "" for key, value in match.groupdict().items()})
                allowed.append(route.method)
        if allowed:
            expected = ", ".join(allowed)
            return _Match(None, {}, HttpError(405, f"method: expected {expected}", (("Allow", expected),)))
        message = "path: unknown; expected /v2/..., /v1/predict, /v1/explain or /v1/network"
        return _Match(None, {}, HttpError(404, message))


def _pattern(template: str) -> re.Pattern[str]:
    """Compile a template such as /v2/models/{model}[/ready]; brackets enclose an optional part."""
    optional = template.replace("[", "(?:").replace("]", ")?")
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", optional))


async def _compress(response: Response, headers: Mapping[str, str]) -> Response:
    """Compress a large response for a client that accepts gzip."""
    if len(response.body) < _MIN_GZIP_BYTES or not _ACCEPTS_GZIP.search(headers.get("accept-encoding", "")):
        return response
    compress = partial(gzip.compress, response.body, _GZIP_LEVEL, mtime=0)
    body = compress() if len(response.body) <= _MAX_INLINE_GZIP_BYTES else await asyncio.to_thread(compress)
    return response._replace(body=body, headers=(*response.headers, ("Content-Encoding", "gzip")))


async def _send(send: Callable[[Any], Any], response: Response, request_id: str) -> None:
    headers = [
        ("Content-Type", response.content_type),
        ("Content-Length", str(len(response.body))),
        ("Date", _date(int(time.time()))),
        *response.headers,
    ]
    if request_id:
        headers.append((REQUEST_ID, request_id))
    encoded = [(key.lower().encode(), value.encode("latin-1")) for key, value in headers]
    await send({"type": "http.response.start", "status": response.status, "headers": encoded})
    await send({"type": "http.response.body", "body": response.body})


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
