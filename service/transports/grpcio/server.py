"""grpc.aio's server, made to outlive what ends its accept loop.

From grpcio 1.84 on that loop decodes the path of every call as UTF-8. One byte that is not ends the loop: the port is
closed, and no call is answered again (docs/upstream/grpc-aio-non-utf8-path.md). So the loop gets no path to decode: an
RPC is registered with the C core, which compares bytes, and any other call is answered UNIMPLEMENTED as it is. If the
loop ends all the same, another server takes the port.
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

_RETIREMENT = 10.0
"""Seconds that calls in flight have on a server whose accept loop has ended."""

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0
"""Seconds between two tries to listen on the port again."""

_ANY_IPV4 = "0.0.0.0"  # noqa: S104 (to tell what an operator asks for)

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
        found: Any = getattr(cygrpc.AioServer, name, None) or getattr(cygrpc, name, None)
        with suppress(TypeError, ValueError):  # older ones have no signatures
            if [*inspect.signature(found).parameters] == parameters:
                continue
        return False
    return True


HAS_KNOWN_INTERNALS = _has_known_internals()
"""Whether this grpcio has what `_AioServer` builds on; of another the accept loop is left as it is."""


class _AioServer(cygrpc.AioServer):  # type: ignore[misc] # without types
    """Takes the calls of each registered method in a task of its own.

    Upstream's loop waits for all of them at once at every call, which costs a fifth more.
    """

    def __init__(
        self,
        options: Sequence[tuple[str, int]],
        handlers: Sequence[grpc.GenericRpcHandler],
        methods: Sequence[str],
        crashed: Callable[[BaseException], None],
        unsent: UnsentReplies,
    ) -> None:
        more = (False,) if "xds" in inspect.signature(aio.server).parameters else ()  # from grpcio 1.86 on
        super().__init__(cygrpc.get_working_loop(), None, handlers, (), options, None, *more)
        self._crashed = crashed
        self._unsent = unsent
        self._calls: set[asyncio.Task[None]] = set()
        if HAS_KNOWN_INTERNALS:
            self._handlers = cygrpc._MethodResolver([*handlers], {})  # noqa: SLF001 (as its own loop does)
            self._no_handlers = cygrpc._MethodResolver([], {})  # noqa: SLF001 (likewise)
            # Without handlers: the core tells the methods apart, and the generic handlers choose who answers.
            self.add_registered_method_handlers(dict.fromkeys(methods))

    def _make_request_call_future(self, method_bytes: bytes | None) -> asyncio.Task[None]:
        """Return what ends when no call can be taken any more; upstream's is the next call."""
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
            del call  # a call ends with the last reference to it
            self._calls.add(task)
            task.add_done_callback(self._done)

    async def _answer(self, name: str, handlers: Any, call: Any, loop: asyncio.AbstractEventLoop) -> None:
        task = asyncio.current_task()
        assert task is not None
        CALL.set(task)
        answer = cygrpc._handle_rpc(name, handlers, (), call, loop, False)  # noqa: SLF001 (as its own loop does)
        try:
            await cygrpc._schedule_rpc_coro(answer, call, loop, name)  # noqa: SLF001 (likewise)
        finally:
            del answer, call  # or the traceback of a cancelled task keeps them

    def _done(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        self._unsent.release(task)

    def _serving_task_crash_handler(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and self.is_running():
            self._crashed(error)

    async def end(self, grace: float) -> None:
        """Close the port at once, and cancel what is in flight after `grace` seconds."""
        with suppress(Exception):  # after a crash it closes the port and raises what ended the loop
            await self.shutdown(grace)
        await self.shutdown(grace)


class RestartingServer:
    """Serves handlers on one port; when a server's accept loop ends, another takes the port.

    Calls in flight are kept. `unhealthy_reason` is empty while the port is open; `changed` is called when it changes.
    """

    def __init__(
        self,
        options: Sequence[tuple[str, int]],
        credentials: Callable[[], grpc.ServerCredentials] | None,
        metrics: Metrics,
        call_log: CallLogger,
        changed: Callable[[], object],
        unsent: UnsentReplies,
    ) -> None:
        self.unhealthy_reason = ""
        self._options = options
        self._credentials = credentials
        self._metrics = metrics
        self._call_log = call_log
        self._changed = changed
        self._unsent = unsent
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._methods: list[str] = []
        self._retiring: dict[asyncio.Task[None], _AioServer] = {}

    def add_handler(self, handler: grpc.GenericRpcHandler, methods: Iterable[str]) -> None:
        """Serve these methods, given by path, before `start`."""
        self._handlers.append(handler)
        self._methods += methods

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port; AddressInUse if that fails."""
        self._host, self._port = host, port
        self._replacing = asyncio.get_running_loop().create_future()
        self._replacing.set_result(None)
        await self._start()
        return self._port

    async def _start(self) -> None:
        addresses = ensure_bindable(self._host, self._port)
        server = _AioServer(self._options, self._handlers, self._methods, self._on_crash, self._unsent)
        try:
            for address in addresses:
                self._port = self._listen(server, address, self._port)
        except AddressInUse:
            await server.start()  # what is not started cannot be ended, and keeps its ports
            await server.end(0)
            raise
        await server.start()
        self._server = server

    def _listen(self, server: _AioServer, address: str, port: int) -> int:
        """Listen on this address alone; the port."""
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

    def _on_crash(self, error: BaseException) -> None:
        self._metrics.transport_restarts.inc()
        self._call_log.log_server_crash(error)
        self.unhealthy_reason = "the gRPC port is closed: its server ended and is being replaced"
        self._changed()
        retiring = asyncio.create_task(self._server.end(_RETIREMENT))
        self._retiring[retiring] = self._server
        retiring.add_done_callback(self._retiring.pop)
        self._replacing = asyncio.create_task(self._replace())

    async def _replace(self) -> None:
        pause = _SHORTEST_PAUSE
        while True:
            await asyncio.sleep(pause)  # the port is still being closed; nor may crashes take all the time there is
            try:
                await self._start()
            except Exception:  # noqa: BLE001 (whatever it is, the port is to open again; health says NOT_SERVING)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                break
        self.unhealthy_reason = ""
        self._changed()

    async def stop(self, grace: float) -> None:
        """Close the port at once, and cancel what is in flight after `grace` seconds."""
        self._replacing.cancel()
        await asyncio.gather(*(server.end(grace) for server in {self._server, *self._retiring.values()}))
