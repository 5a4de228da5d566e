"""/metrics for Prometheus and /healthz for those without gRPC, over HTTP on a port and threads of their own."""

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
from service.healthcheck import publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from prometheus_client import CollectorRegistry

_IDLE_TIMEOUT = 10
"""Seconds without a byte after which a connection is closed."""

_LIMITS: dict[str, Any] = {
    "threads": 4,
    "connection_limit": 128,
    "backlog": 128,
    # Header and body of a request, in bytes. Nothing here takes a body, and nothing is spooled to a file.
    "max_request_header_size": 16 * 1024,
    "max_request_body_size": 1024,
    "inbuf_overflow": 2**30,
    "outbuf_overflow": 2**30,
}
_METHODS = ("GET", "HEAD")
_TEXT = ("Content-Type", "text/plain; charset=utf-8")


class MetricsServer:
    """Listens from construction to `stop`; each /healthz asks `serving`, and `about` for a word on either answer.

    Threads of its own answer, so that health is known while the event loop stands still. Raises AddressInUse.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        serving: Callable[[], bool],
        about: Callable[[], str] = lambda: "",
    ) -> None:
        self._metrics: WSGIApplication = make_wsgi_app(registry)
        self._serving = serving
        self._about = about
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a request that waits its turn is no news either
        listeners = listen(host, port)
        self.port = int(listeners[0].getsockname()[1])
        self._sockets: dict[int, Any] = {}
        self._server = create_server(
            self._answer,
            map=self._sockets,
            sockets=listeners,
            ident="",  # a version told to strangers is of use to them alone
            channel_timeout=_IDLE_TIMEOUT,
            cleanup_interval=1,
            asyncore_use_poll=True,  # select() knows no descriptor over 1,023, of which gRPC may have more
            clear_untrusted_proxy_headers=True,
            log_socket_errors=False,  # a peer that hangs up is no news
            **_LIMITS,
        )
        # One for each socket, and of several the library gives what has no way to wake them.
        self._wake = next(one for one in self._sockets.values() if isinstance(one, BaseWSGIServer)).trigger.pull_trigger
        self._thread = threading.Thread(target=self._server.run, name="http", daemon=True)
        self._thread.start()
        self._published = publish(listeners[0].getsockname()[0], self.port)

    def stop(self) -> None:
        """Answer no more."""
        if self._published is not None:
            os.close(self._published)
        # The loop of the library ends when no socket is left to it; they are closed by the thread that reads them.
        self._wake(lambda: close_all(self._sockets))
        self._thread.join()
        self._server.task_dispatcher.shutdown()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if method not in _METHODS:
            return _reply(start_response, "405 Method Not Allowed", "expected GET or HEAD", ("Allow", "GET, HEAD"))
        if path == "/metrics":
            body = self._metrics({**environ, "REQUEST_METHOD": "GET"}, start_response)  # it knows no HEAD
            return body if method == "GET" else []
        if path == "/healthz":
            status, health = ("200 OK", "SERVING") if self._serving() else ("503 Service Unavailable", "NOT_SERVING")
            text = f"{health} {self._about()}".strip()
        elif path == "/":
            status, text = "200 OK", "digitserve: /metrics for Prometheus, /healthz for health checks"
        else:
            status, text = "404 Not Found", "here are /metrics and /healthz"
        whole = _reply(start_response, status, text)
        return whole if method == "GET" else []


def _reply(start_response: StartResponse, status: str, text: str, *headers: tuple[str, str]) -> list[bytes]:
    body = text.encode() + b"\n"
    start_response(status, [_TEXT, ("Content-Length", str(len(body))), *headers])
    return [body]
