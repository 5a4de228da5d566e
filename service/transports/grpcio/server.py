"""The server of grpc.aio, replaced when its accept loop ends.

Since grpcio 1.84 that loop decodes the path of every call as UTF-8. One invalid byte ends the loop: the port closes,
and no further call is answered (docs/upstream/grpc-aio-non-utf8-path.md). So the loop gets no path to decode: RPCs are
registered with the C core, which compares bytes, and any other call ends with UNIMPLEMENTED. If the loop ends for
another reason, another server takes the port.
"""

from __future__ import annotations

import asyncio
import inspect
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from grpc import aio
from grpc._cython import cygrpc  # type: ignore[attr-defined] # its stubs leave it out

from service.address import ensure_bindable, join_host_port, reserve_ipv6_port
from service.errors import AddressInUse
from service.transports.grpcio.unsent_replies import CALL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import grpc

    from service.observability.metrics import Metrics
    from service.transports.call_log import CallLogger
    from service.transports.grpcio.unsent_replies import UnsentReplies
    from service.unix_socket import UnixSocketFile

_CRASH_GRACE = 10.0
"""Seconds for the calls in flight of a server whose accept loop has ended."""

_MIN_BACKOFF, _MAX_BACKOFF = 0.01, 1.0
"""Seconds between two attempts to listen on the port again."""

_ANY_IPV4 = "0.0.0.0"  # noqa: S104 (compared with the option)

_INTERNALS = {
    "_request_call": ["self"],
    "_request_registered_call": ["self", "method"],
    "_make_request_call_future": ["self", "method_bytes"],
    "_serving_task_crash_handler": ["self", "task"],
    "_handle_rpc": [
        *("method_name", "method_resolver", "interceptors", "rpc_state", "loop"),
        "concurrency_exceeded",
    ],
    "_schedule_rpc_coro": ["rpc_coro", "rpc_state", "loop", "method_name"],
}


def _has_known_internals() -> bool:
    for name, parameters in _INTERNALS.items():
        attribute: Any = getattr(cygrpc.AioServer, name, None) or getattr(cygrpc, name, None)
        with suppress(TypeError, ValueError):  # older ones have no signatures
            if [*inspect.signature(attribute).parameters] == parameters:
                continue
        return False
    return True


HAS_KNOWN_INTERNALS = _has_known_internals()
"""Whether this grpcio has the internals that `_AioServer` uses; without them it keeps upstream's accept loop."""


class _AioServer(cygrpc.AioServer):  # type: ignore[misc] # without types
    """Accepts the calls of each registered method in a task of its own.

    Upstream's loop waits for all methods together at each call, which costs 20% more.
    """

    def __init__(
        self,
        options: Sequence[tuple[str, int]],
        handlers: Sequence[grpc.GenericRpcHandler],
        methods: Sequence[str],
        on_crash: Callable[[BaseException], None],
        unsent: UnsentReplies,
    ) -> None:
        xds = (False,) if "xds" in inspect.signature(aio.server).parameters else ()  # from grpcio 1.86 on
        super().__init__(cygrpc.get_working_loop(), None, handlers, (), options, None, *xds)
        self._on_crash = on_crash
        self._unsent = unsent
        self._calls: set[asyncio.Task[None]] = set()
        if HAS_KNOWN_INTERNALS:
            self._handlers = cygrpc._MethodResolver([*handlers], {})  # noqa: SLF001 (as its own loop does)
            self._no_handlers = cygrpc._MethodResolver([], {})  # noqa: SLF001 (likewise)
            # Without handlers: the core matches the methods, and the generic handlers choose the handler of a call.
            self.add_registered_method_handlers(dict.fromkeys(methods))

    def _make_request_call_future(self, method_bytes: bytes | None) -> asyncio.Task[None]:
        """Return a task that ends when no more calls can be accepted; upstream's is the next call."""
        if not HAS_KNOWN_INTERNALS:
            future: asyncio.Task[None] = super()._make_request_call_future(method_bytes)
            return future
        return asyncio.create_task(self._accept(method_bytes))

    async def _accept(self, method: bytes | None) -> None:
        name, handlers = ("", self._no_handlers) if method is None else (method.decode(), self._handlers)
        request = self._request_call if method is None else partial(self._request_registered_call, method)
        loop = asyncio.get_running_loop()
        while True:
            call = await request()
            task = loop.create_task(self._answer(name, handlers, call, loop))
            del call  # the call ends with its last reference
            self._calls.add(task)
            task.add_done_callback(self._on_call_done)

    async def _answer(self, name: str, handlers: Any, call: Any, loop: asyncio.AbstractEventLoop) -> None:
        task = asyncio.current_task()
        assert task is not None
        CALL.set(task)
        answer = cygrpc._handle_rpc(name, handlers, (), call, loop, False)  # noqa: SLF001 (as its own loop does)
        try:
            await cygrpc._schedule_rpc_coro(answer, call, loop, name)  # noqa: SLF001 (likewise)
        finally:
            del answer, call  # otherwise the traceback of a cancelled task keeps them

    def _on_call_done(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        self._unsent.release(task)

    def _serving_task_crash_handler(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and self.is_running():
            self._on_crash(error)

    async def close(self, grace: float) -> None:
        """Close the port at once, and cancel calls in flight after `grace` seconds."""
        with suppress(Exception):  # after a crash it closes the port and raises the error of the loop
            await self.shutdown(grace)
        await self.shutdown(grace)


class RestartingServer:
    """Serves handlers on one port; when a server's accept loop ends, another takes the port.

    Calls in flight continue. `unhealthy_reason` is empty while the port is open; `on_health_change` is called when it
    changes.
    """

    def __init__(
        self,
        options: Sequence[tuple[str, int]],
        credentials: Callable[[], grpc.ServerCredentials] | None,
        metrics: Metrics,
        call_log: CallLogger,
        on_health_change: Callable[[], object],
        unsent: UnsentReplies,
    ) -> None:
        self.unhealthy_reason = ""
        self._options = options
        self._credentials = credentials
        self._metrics = metrics
        self._call_log = call_log
        self._on_health_change = on_health_change
        self._unsent = unsent
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._methods: list[str] = []
        self._closing: dict[asyncio.Task[None], _AioServer] = {}

    def add_handler(self, handler: grpc.GenericRpcHandler, methods: Iterable[str]) -> None:
        """Add a handler and the paths of its methods, before `start`."""
        self._handlers.append(handler)
        self._methods += methods

    async def start(self, host: str, port: int, socket_file: UnixSocketFile | None = None) -> int:
        """Listen, and return the port; AddressInUse if that fails."""
        self._host, self._port, self._socket_file = host, port, socket_file
        if socket_file is not None:
            socket_file.ensure_bindable()
        self._replacement = asyncio.get_running_loop().create_future()
        self._replacement.set_result(None)
        await self._start()
        return self._port

    async def _start(self) -> None:
        addresses = ensure_bindable(self._host, self._port)
        server = _AioServer(self._options, self._handlers, self._methods, self._on_crash, self._unsent)
        try:
            for address in addresses:
                self._port = self._listen(server, address, self._port)
            self._listen_on_socket(server)
        except AddressInUse:
            await server.start()  # a server that was never started cannot be closed, and keeps its ports
            await server.close(0)
            raise
        await server.start()
        self._server = server

    def _listen(self, server: _AioServer, address: str, port: int) -> int:
        """Listen on exactly this address; return the port."""
        guard = reserve_ipv6_port(port) if address == _ANY_IPV4 else None
        with guard or nullcontext():
            target = join_host_port(address, guard.getsockname()[1] if guard else port).encode()
            try:
                if self._credentials is None:
                    bound = server.add_insecure_port(target)
                else:
                    bound = server.add_secure_port(target, self._credentials())
            except RuntimeError:
                bound = 0
        if not bound:
            raise AddressInUse(f"cannot listen on {address} port {port}")
        return int(bound)

    def _listen_on_socket(self, server: _AioServer) -> None:
        if self._socket_file is None:
            return
        with self._socket_file.binding() as bound_path:
            try:
                server.add_insecure_port(f"unix:{bound_path}".encode())
            except RuntimeError:
                raise AddressInUse(f"--listen: cannot listen on {self._socket_file.path}") from None

    def _on_crash(self, error: BaseException) -> None:
        self._metrics.transport_restarts.inc()
        self._call_log.log_server_crash(error)
        self.unhealthy_reason = "the gRPC port is closed: its server ended and is being replaced"
        self._on_health_change()
        closing = asyncio.create_task(self._server.close(_CRASH_GRACE))
        self._closing[closing] = self._server
        closing.add_done_callback(self._closing.pop)
        self._replacement = asyncio.create_task(self._replace())

    async def _replace(self) -> None:
        backoff = _MIN_BACKOFF
        while True:
            await asyncio.sleep(backoff)  # the port is still closing, and repeated crashes must not use all the CPU
            try:
                await self._start()
            except Exception:  # noqa: BLE001 (a later attempt may succeed after any failure; health is NOT_SERVING)
                backoff = min(2 * backoff, _MAX_BACKOFF)
            else:
                break
        self.unhealthy_reason = ""
        self._on_health_change()

    async def stop(self, grace: float) -> None:
        """Close the port at once, and cancel calls in flight after `grace` seconds."""
        self._replacement.cancel()
        if self._socket_file is not None:
            self._socket_file.remove()
        await asyncio.gather(*(server.close(grace) for server in {self._server, *self._closing.values()}))
