"""/metrics, /healthz for probes without gRPC, and the status page, over HTTP on its own port and threads."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Any

from prometheus_client import make_wsgi_app
from waitress import create_server
from waitress.server import BaseWSGIServer
from waitress.wasyncore import close_all

from service.address import listen
from service.healthcheck import publish_address
from service.observability.status_page import PAGE_HEADERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from prometheus_client import CollectorRegistry

    from service.observability.status_page import StatusPage

_IDLE_TIMEOUT = 10
"""Seconds without a byte after which a connection is closed."""

_LIMITS: dict[str, Any] = {
    "threads": 4,
    "connection_limit": 128,
    "backlog": 128,
    # Bytes of the headers and the body of a request. No path here reads a body, and no file is used.
    "max_request_header_size": 16 * 1024,
    "max_request_body_size": 1024,
    "inbuf_overflow": 2**30,
    "outbuf_overflow": 2**30,
}
_METHODS = ("GET", "HEAD")
_TEXT = "text/plain; charset=utf-8"
_HTML = "text/html; charset=utf-8"


class MetricsServer:
    """Serves a registry and the health of the process; `health_text` is a note after SERVING or NOT_SERVING.

    Its own threads answer, so that health is known while the event loop is blocked.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        is_serving: Callable[[], bool],
        health_text: Callable[[], str] = lambda: "",
        status_page: StatusPage | None = None,
    ) -> None:
        self._metrics: WSGIApplication = make_wsgi_app(registry)
        self._is_serving = is_serving
        self._health_text = health_text
        self._status_page = status_page
        self._sockets: dict[int, Any] = {}
        self.port = 0
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a request in the queue is no event either

    def start(self, host: str, port: int) -> int:
        """Listen, and return the port. Raises AddressInUse."""
        listeners = listen(host, port)
        self._server = create_server(
            self._answer,
            map=self._sockets,
            sockets=listeners,
            ident="",  # clients need no version
            channel_timeout=_IDLE_TIMEOUT,
            cleanup_interval=1,
            asyncore_use_poll=True,  # select() supports no descriptor over 1,023, and gRPC may have more
            clear_untrusted_proxy_headers=True,
            log_socket_errors=False,  # a peer that hangs up is no event
            **_LIMITS,
        )
        # There is one server per socket; of several, the library returns an object that cannot be woken.
        self._wake = next(one for one in self._sockets.values() if isinstance(one, BaseWSGIServer)).trigger.pull_trigger
        self._thread = threading.Thread(target=self._server.run, name="http", daemon=True)
        self._thread.start()
        address, bound_port = listeners[0].getsockname()[:2]
        self.port = int(bound_port)
        self._published = publish_address(address, self.port)
        if self._status_page is not None:
            self._status_page.start()
        return self.port

    def stop(self) -> None:
        """Close the port."""
        if self._status_page is not None:
            self._status_page.stop()
        if self._published is not None:
            os.close(self._published)
        # The loop of the library ends with its last socket; the thread that reads the sockets must close them.
        self._wake(lambda: close_all(self._sockets))
        self._thread.join()
        self._server.task_dispatcher.shutdown()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if method not in _METHODS:
            return _reply(start_response, "405 Method Not Allowed", "expected GET or HEAD", ("Allow", "GET, HEAD"))
        if path == "/metrics":
            metrics = self._metrics({**environ, "REQUEST_METHOD": "GET"}, start_response)  # it does not support HEAD
            return metrics if method == "GET" else []
        if path == "/healthz":
            status, health = ("200 OK", "SERVING") if self._is_serving() else ("503 Service Unavailable", "NOT_SERVING")
            text = f"{health} {self._health_text()}".strip()
        elif path == "/" and self._status_page is not None:
            page = _reply(start_response, "200 OK", self._status_page.render(), *PAGE_HEADERS, content_type=_HTML)
            return page if method == "GET" else []
        elif path == "/":
            status, text = "200 OK", "digitserve: /metrics for Prometheus, /healthz for health checks"
        else:
            status, text = "404 Not Found", "expected /metrics or /healthz"
        body = _reply(start_response, status, text)
        return body if method == "GET" else []


def _reply(
    start_response: StartResponse, status: str, text: str, *headers: tuple[str, str], content_type: str = _TEXT
) -> list[bytes]:
    body = text.encode() + b"\n"
    start_response(status, [("Content-Type", content_type), ("Content-Length", str(len(body))), *headers])
    return [body]
