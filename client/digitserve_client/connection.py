"""How a call meets its server: the first connection waited for, a failed one explained.

All of it is coroutines: the blocking client runs them to their end at once, the one for asyncio awaits them.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, TypeVar

import grpc
from grpc import aio

from digitserve_client.base import (
    DEADLINE_EXCEEDED,
    FIRST_CHECK_TIMEOUT,
    NO_CONNECTION_CODES,
    SERVER_HEALTH_REQUEST,
    BaseClient,
)
from digitserve_client.connection_diagnostics import PROBE_RESULT_TIMEOUT
from digitserve_client.messages import to_predictions, to_request
from digitserve_client.pixels import inspect

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator

    from google.protobuf.message import Message

    from digitserve_client.messages import Predictions
    from digitserve_client.pb.digits.v1.digits_pb2 import PredictRequest
    from digitserve_client.pixels import Pixels
    from digitserve_client.uncertainty import Inspection
    from digitserve_client.waiting import AsyncWaits, BlockingWaits

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Connection(BaseClient):
    """The steps of a call, the same for DigitsClient and AsyncDigitsClient."""

    _stub: Any
    _health: Any

    _waits: ClassVar[type[BlockingWaits | AsyncWaits]]
    """How to wait for gRPC and for anything else."""

    def _bind(self) -> None:
        """Create the channel, if it is created late."""

    async def _call(self, rpc: Any, request: Message, timeout: float | None) -> tuple[Any, str]:
        """Return the reply and the request id; DigitsError without a reply."""
        request_id, metadata = self._call_metadata()
        timeout_s = self._timeout_of(timeout)
        deadline = time.monotonic() + timeout_s
        remaining = timeout_s if self._is_reached else await self._reach(timeout_s)
        try:
            return await self._waits.result(rpc(request, timeout=remaining, metadata=metadata)), request_id
        except grpc.RpcError as e:
            raise self._call_error(e, request_id, timeout_s, await self._reason(e, deadline)) from None

    async def _stream(
        self, batches: Any, timeout: float, *, include_hidden_layers: bool, model_version: str
    ) -> AsyncGenerator[Predictions]:
        """Yield the answer to each batch; then raise the exception of `batches`."""
        request_id, metadata = self._call_metadata()
        errors: list[Exception] = []
        inspections: deque[tuple[Inspection, ...]] = deque()  # of the batches that are not answered yet

        def to_message(pixels: Pixels) -> PredictRequest:
            images, seen = inspect(pixels)
            inspections.append(seen)
            return to_request(images, include_hidden_layers=include_hidden_layers, model_version=model_version)

        timeout_s = self._timeout_of(timeout)
        deadline = time.monotonic() + timeout_s
        remaining = await self._reach(timeout_s)
        requests = self._waits.requests(batches, to_message, errors)
        replies = self._stub.PredictStream(requests, timeout=remaining, metadata=metadata)
        try:
            while (reply := await self._waits.read(replies)) is not aio.EOF:
                yield to_predictions(reply, request_id, inspections.popleft() if inspections else ())
        except grpc.RpcError as e:
            raise self._call_error(e, request_id, timeout_s, await self._reason(e, deadline)) from None
        finally:
            replies.cancel()
        if errors:
            raise errors[0]

    async def _reach(self, timeout_s: float) -> float:
        """Connect for the first time and return the remaining seconds; DigitsError without a server.

        Health is checked, since its calls are not retried: they fail when the connection does. The retries of other
        calls are for a server that restarts; with a wrong address they would only delay the error.
        """
        self._bind()
        if self._is_reached:
            return timeout_s
        deadline = time.monotonic() + timeout_s
        code, reason = await self._check(min(timeout_s / 2, FIRST_CHECK_TIMEOUT)), None
        if code in NO_CONNECTION_CODES:
            reason = await self._probe_result(self._probe(deadline), deadline)
        if code is DEADLINE_EXCEEDED:
            code = await self._check(deadline - time.monotonic())
        if (error := self._connection_error(code, reason, timeout_s)) is not None:
            raise error
        return max(deadline - time.monotonic(), 0.001)

    async def _check(self, timeout_s: float) -> grpc.StatusCode:
        try:
            await self._waits.result(
                self._health.Check(
                    SERVER_HEALTH_REQUEST, timeout=max(timeout_s, 0.001), metadata=self._token.metadata()
                )
            )
        except grpc.RpcError as e:
            code: grpc.StatusCode = e.code()
            return code
        return grpc.StatusCode.OK

    async def _reason(self, error: Any, deadline: float) -> str | None:
        """Return why a call had no connection; None if it had one."""
        return (
            await self._probe_result(self._probe(deadline), deadline)
            if self._is_worth_probing(error, deadline)
            else None
        )

    async def _probe_result(self, future: concurrent.futures.Future[str | None], deadline: float) -> str | None:
        """Return the result of a probe; None if it is late."""
        try:
            return await self._waits.wait(future, min(deadline - time.monotonic(), PROBE_RESULT_TIMEOUT))
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
