"""How a call meets its server: the first connection waited for, a failed one explained; sync and for asyncio."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, ClassVar

import grpc
from grpc import aio
from grpc_health.v1.health_pb2_grpc import HealthStub

from digitserve_client.base import LATE, SETTLES_WITHIN, UNMET, WHOLE_SERVER, BaseClient
from digitserve_client.connection_diagnostics import AWAITED
from digitserve_client.pb.digits.v1.digits_pb2_grpc import DigitServiceStub

if TYPE_CHECKING:
    import concurrent.futures

    from google.protobuf.message import Message


class Connection(BaseClient):
    """The common part of DigitsClient's calls: a channel that is open from the start."""

    _api: ClassVar[Any] = grpc

    def _connect(self) -> None:
        self._channel = self._open()
        self._stub: Any = DigitServiceStub(self._channel)
        self._health: Any = HealthStub(self._channel)

    def _call(self, rpc: Any, request: Message, timeout: float | None) -> tuple[Any, str]:
        """The reply, and the request id that it was asked with; DigitsError where there is none."""
        request_id, metadata = self._begin()
        within = self._within(timeout)
        until = time.monotonic() + within
        left = within if self._is_reached else self._reach(within)
        try:
            return rpc(request, timeout=left, metadata=metadata), request_id
        except grpc.RpcError as e:
            raise self._failed(e, request_id, within, self._why(e, until)) from None

    def _reach(self, within: float) -> float:
        """Meet the server for the first time; the seconds that are left. DigitsError where there is none to meet.

        Health is asked, since its calls are not retried: they fail when the connection does. The retries of other calls
        are for a server that restarts; with a wrong address they would only delay the error.
        """
        if self._is_reached:
            return within
        until = time.monotonic() + within
        code, reason = self._check(min(within / 2, SETTLES_WITHIN)), None
        if code in UNMET:
            reason = self._told(self._probe(until), until)
        if code is LATE:
            code = self._check(until - time.monotonic())
        if (error := self._unreached(code, reason, within)) is not None:
            raise error
        return max(until - time.monotonic(), 0.001)

    def _check(self, within: float) -> grpc.StatusCode:
        try:
            self._health.Check(WHOLE_SERVER, timeout=max(within, 0.001), metadata=self._token.metadata())
        except grpc.RpcError as e:
            code: grpc.StatusCode = e.code()
            return code
        return grpc.StatusCode.OK

    def _why(self, error: Any, until: float) -> str | None:
        """The reason of a call's failure, where it was the connection's."""
        return self._told(self._probe(until), until) if self._is_open_question(error, until) else None

    def _told(self, found: concurrent.futures.Future[str | None], until: float) -> str | None:
        """What a probe found, if it did in time."""
        try:
            return found.result(min(until - time.monotonic(), AWAITED))
        except TimeoutError:
            return None


class AsyncConnection(BaseClient):
    """As Connection, for asyncio: a channel for the event loop that runs, opened at the first call in it."""

    _api: ClassVar[Any] = aio

    def _connect(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: Any = None

    @property
    def _stub(self) -> Any:
        """The calls of the running event loop."""
        self._bind()
        return self._calls

    @property
    def _health(self) -> Any:
        self._bind()
        return self._checks

    def _bind(self) -> None:
        """Make the channel in the loop that runs: gRPC's belongs to one loop, and a client may be made before any.

        Raises RuntimeError where the loop of earlier calls still runs, in another thread.
        """
        self._check_open()
        running = asyncio.get_running_loop()
        if self._loop is running:
            return
        if self._loop is not None and self._loop.is_running():
            raise RuntimeError(
                f"the client of {self._address} is in use by the event loop of another thread; expected one for each"
            )
        self._loop, self._channel, self._is_reached = running, self._open(), False
        self._calls, self._checks = DigitServiceStub(self._channel), HealthStub(self._channel)

    async def _call(self, rpc: Any, request: Message, timeout: float | None) -> tuple[Any, str]:
        """The reply, and the request id that it was asked with; DigitsError where there is none."""
        request_id, metadata = self._begin()
        within = self._within(timeout)
        until = time.monotonic() + within
        left = within if self._is_reached else await self._reach(within)
        try:
            return await rpc(request, timeout=left, metadata=metadata), request_id
        except aio.AioRpcError as e:
            raise self._failed(e, request_id, within, await self._why(e, until)) from None

    async def _reach(self, within: float) -> float:
        """As Connection._reach."""
        self._bind()
        if self._is_reached:
            return within
        until = time.monotonic() + within
        code, reason = await self._check(min(within / 2, SETTLES_WITHIN)), None
        if code in UNMET:
            reason = await self._told(self._probe(until), until)
        if code is LATE:
            code = await self._check(until - time.monotonic())
        if (error := self._unreached(code, reason, within)) is not None:
            raise error
        return max(until - time.monotonic(), 0.001)

    async def _check(self, within: float) -> grpc.StatusCode:
        try:
            await self._health.Check(WHOLE_SERVER, timeout=max(within, 0.001), metadata=self._token.metadata())
        except aio.AioRpcError as e:
            return e.code()
        return grpc.StatusCode.OK

    async def _why(self, error: Any, until: float) -> str | None:
        """As Connection._why."""
        return await self._told(self._probe(until), until) if self._is_open_question(error, until) else None

    async def _told(self, found: concurrent.futures.Future[str | None], until: float) -> str | None:
        """As Connection._told."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(found), min(until - time.monotonic(), AWAITED))
        except TimeoutError:
            return None
