"""/metrics for Prometheus and /healthz for those without gRPC, over HTTP on a port and threads of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from prometheus_client import make_wsgi_app, start_http_server

from service.transports.address import refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

    from prometheus_client import CollectorRegistry

_PATIENCE = 10.0
"""Seconds that one who has connected may take for his request."""

_TEXT = ("Content-Type", "text/plain; charset=utf-8")


class HttpEndpoint:
    """Listens from construction to `stop`; each /healthz asks `serving`, and `about` for a word on either answer.

    Raises AddressInUse.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        serving: Callable[[], bool],
        about: Callable[[], str] = lambda: "",
    ) -> None:
        self._metrics = make_wsgi_app(registry)
        self._serving = serving
        self._about = about
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as e:
            raise refused(host, port, e) from e
        self._server.set_app(self._answer)
        # A connection on which nothing comes would hold its thread for ever.
        handler: Any = self._server.RequestHandlerClass
        self._server.RequestHandlerClass = type(handler.__name__, (handler,), {"timeout": _PATIENCE})
        self.port = int(self._server.server_port)

    def stop(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return cast("Iterable[bytes]", self._metrics(environ, start_response))
        if path == "/healthz":
            status, health = ("200 OK", "SERVING") if self._serving() else ("503 Service Unavailable", "NOT_SERVING")
            text = f"{health} {self._about()}".strip().encode() + b"\n"
        elif path == "/":
            status, text = "200 OK", b"digitserve: /metrics for Prometheus, /healthz for health checks\n"
        else:
            status, text = "404 Not Found", b"here are /metrics and /healthz\n"
        start_response(status, [_TEXT, ("Content-Length", str(len(text)))])
        return [text]
