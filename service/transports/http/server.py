"""The HTTP port: listens, with TLS or without, and drains."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import tempfile
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from uvicorn.config import Config
from uvicorn.server import ServerState

from service.address import listen
from service.transports.http.connection import HEADER_TIMEOUT, Connection

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from service.security.certificates import Pem
    from service.security.tls import Tls
    from service.transports.http.application import HttpApplication
    from service.transports.limits import Limits

_BACKLOG = 128

_uvicorn = logging.getLogger("uvicorn")
_uvicorn.addHandler(logging.NullHandler())  # any client can cause its warnings; the application logs errors
_uvicorn.propagate = False


class HttpServer:
    """Serves on the running event loop from `start` to `stop`; `start` raises AddressInUse."""

    def __init__(self, application: HttpApplication, *, limits: Limits, tls: Tls | None = None) -> None:
        self._config = Config(
            application,
            loop="none",
            http=Connection,  # `_connect` makes them
            ws="none",
            proxy_headers=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
        )
        self._config.load()
        self._limits = limits
        self._state = ServerState()
        self._on_rejection = application.record_rejection
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._idle = asyncio.Event()
        self._context: ssl.SSLContext | None = None
        self._loop = asyncio.get_running_loop()
        application.metrics.set_connections(lambda: len(self._state.connections))
        if tls is not None:
            tls.subscribe(self._use)

    @property
    def port(self) -> int:
        """The port, after `start`."""
        return int(self._sockets[0].getsockname()[1])

    async def start(self, host: str, port: int) -> None:
        """Listen."""
        self._sockets = listen(host, port)
        await self._listen()

    async def stop(self, grace: float) -> None:
        """Close idle connections and let requests in progress finish; after `grace` seconds cancel them."""
        for server in self._servers:
            server.close()
        for listener in self._sockets:
            listener.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while self._state.connections:
                    self._idle.clear()
                    await self._idle.wait()
        for connection in list(self._state.connections):
            connection.transport.abort()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks)

    def _connect(self) -> Connection:
        return Connection(self._config, self._state, self._limits, self._on_rejection, self._idle.set)

    async def _listen(self) -> None:
        """Accept connections with the latest certificate; earlier connections keep theirs."""
        previous = self._servers
        self._servers = [
            await self._loop.create_server(
                self._connect,
                sock=listener.dup(),
                backlog=_BACKLOG,
                ssl=self._context,
                ssl_handshake_timeout=None if self._context is None else HEADER_TIMEOUT,
            )
            for listener in self._sockets
        ]
        for server in previous:
            server.close()

    def _use(self, pem: Pem) -> None:
        """Use other TLS files, on any thread; raises ValueError for files that OpenSSL rejects."""
        try:
            self._context = make_context(pem)
        except (ssl.SSLError, OSError) as e:
            raise ValueError(f"OpenSSL, the TLS library of Python, cannot load them: {e}") from None
        if self._servers:
            asyncio.run_coroutine_threadsafe(self._listen(), self._loop)


def make_context(pem: Pem) -> ssl.SSLContext:
    """Make the TLS context of a server; on Linux the key is not written to disk."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    with _private_file(pem.key + b"\n" + pem.chain) as path:
        context.load_cert_chain(path)
    if pem.client_ca is not None:
        context.load_verify_locations(cadata=pem.client_ca.decode())
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextmanager
def _private_file(content: bytes) -> Iterator[str]:
    """Give content a path, which is all that OpenSSL's loader takes."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("tls")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{descriptor}"
    else:
        with tempfile.NamedTemporaryFile() as temporary:  # only its owner can read it
            temporary.write(content)
            temporary.flush()
            yield temporary.name
