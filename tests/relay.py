"""An address whose server a test can remove and replace at any time."""

from __future__ import annotations

import contextlib
import socket
import threading


class Relay:
    """A relay of connections from `address` to a server; without a server, its port is closed."""

    def __init__(self, port: int) -> None:
        self._at = ("127.0.0.1", port)
        self.address = f"127.0.0.1:{port}"
        self._sockets: list[socket.socket] = []

    def open(self, server: str) -> None:
        """Accept connections for that server."""
        host, _, port = server.rpartition(":")
        listener = socket.create_server(self._at)
        self._sockets.append(listener)
        threading.Thread(target=self._accept, args=(listener, (host, int(port))), daemon=True).start()

    def close(self) -> None:
        """Stop listening and close open connections, as a killed process does."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._sockets.clear()

    def _accept(self, listener: socket.socket, server: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(server)
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_copy, args=(source, sink), daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
