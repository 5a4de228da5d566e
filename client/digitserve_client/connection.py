"""How a call meets its server: the first connection waited for, a failed one explained.

All of it is coroutines: the blocking client runs them to their end at once, the one for asyncio awaits them.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, TypeVar

import grpc
from grpc import aio

from digitserve_client.base import LATE, SETTLES_WITHIN, UNMET, WHOLE_SERVER, BaseClient
from digitserve_client.connection_diagnostics import AWAITED
from digitserve_client.messages import to_predictions, to_request

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator

    from google.protobuf.message import Message

    from digitserve_client.messages import Predictions
    from digitserve_client.pb.digits.v1.digits_pb2 import PredictRequest
    from digitserve_client.pixels import Pixels
    from digitserve_client.waiting import AsyncWaits, BlockingWaits

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Connection(BaseClient):
    """What a call is made of, the same for DigitsClient and AsyncDigitsClient."""

    _stub: Any
    _health: Any

    _waits: ClassVar[type[BlockingWaits | AsyncWaits]]
    """How to wait for gRPC and for anything else."""

    def _bind(self) -> None:
        """Make the channel where it is made late."""

    async def _call(self, rpc: Any, request: Message, timeout: float | None) -> tuple[Any, str]:
        """Return the reply and the request id; DigitsError where there is no reply."""
        request_id, metadata = self._begin()
        within = self._within(timeout)
        until = time.monotonic() + within
        left = within if self._is_reached else await self._reach(within)
        try:
            return await self._waits.result(rpc(request, timeout=left, metadata=metadata)), request_id
        except grpc.RpcError as e:
            raise self._failed(e, request_id, within, await self._reason(e, until)) from None

    async def _stream(
        self, batches: Any, timeout: float, *, include_hidden_layers: bool, model_version: str
    ) -> AsyncGenerator[Predictions]:
        """Yield the answer to each batch; then raise what `batches` raised."""
        request_id, metadata = self._begin()
        failed: list[Exception] = []

        def to_message(pixels: Pixels) -> PredictRequest:
            return to_request(pixels, include_hidden_layers=include_hidden_layers, model_version=model_version)

        within = self._within(timeout)
        until = time.monotonic() + within
        left = await self._reach(within)
        requests = self._waits.requests(batches, to_message, failed)
        replies = self._stub.PredictStream(requests, timeout=left, metadata=metadata)
        try:
            while (reply := await self._waits.read(replies)) is not aio.EOF:
                yield to_predictions(reply, request_id)
        except grpc.RpcError as e:
            raise self._failed(e, request_id, within, await self._reason(e, until)) from None
        finally:
            replies.cancel()
        if failed:
            raise failed[0]

    async def _reach(self, within: float) -> float:
        """Connect for the first time and return the seconds that are left; DigitsError where there is no server.

        Health is checked, since its calls are not retried: they fail when the connection does. The retries of other
        calls are for a server that restarts; with a wrong address they would only delay the error.
        """
        self._bind()
        if self._is_reached:
            return within
        until = time.monotonic() + within
        code, reason = await self._check(min(within / 2, SETTLES_WITHIN)), None
        if code in UNMET:
            reason = await self._probe_result(self._probe(until), until)
        if code is LATE:
            code = await self._check(until - time.monotonic())
        if (error := self._unreached(code, reason, within)) is not None:
            raise error
        return max(until - time.monotonic(), 0.001)

    async def _check(self, within: float) -> grpc.StatusCode:
        try:
            await self._waits.result(
                self._health.Check(WHOLE_SERVER, timeout=max(within, 0.001), metadata=self._token.metadata())
            )
        except grpc.RpcError as e:
            code: grpc.StatusCode = e.code()
            return code
        return grpc.StatusCode.OK

    async def _reason(self, error: Any, until: float) -> str | None:
        """Return why a call failed, where it was for want of a connection."""
        return await self._probe_result(self._probe(until), until) if self._is_open_question(error, until) else None

    async def _probe_result(self, found: concurrent.futures.Future[str | None], until: float) -> str | None:
        """Return what a probe found, if it did in time."""
        try:
            return await self._waits.wait(found, min(until - time.monotonic(), AWAITED))
        except TimeoutError:
            return None


def blocking(
    method: Callable[Concatenate[Connection, Parameters], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate[Connection, Parameters], Result]:
    """Return the method of the blocking client that does the same as that of the one for asyncio."""

    @functools.wraps(method)
    def call(self: Connection, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return run(method(self, *args, **kwargs))

    return call


def run(steps: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine of a client that blocks instead of suspending."""
    try:
        steps.send(None)
    except StopIteration as e:
        result: Result = e.value
        return result
    raise RuntimeError("a call of the blocking client was suspended")


def iterate(steps: AsyncGenerator[Result]) -> Iterator[Result]:
    """As `run`, for an asynchronous generator; closing this one closes that one."""
    try:
        while True:
            try:
                item = run(anext(steps))
            except StopAsyncIteration:
                return
            yield item
    finally:
        run(steps.aclose())
