"""How a call waits, in coroutines: BlockingWaits blocks and never suspends, AsyncWaits awaits."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from grpc import aio

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator

    from digitserve_client.pb.digits.v1.digits_pb2 import PredictRequest
    from digitserve_client.pixels import Pixels


class BlockingWaits:
    """For grpc, whose calls return when they are done."""

    @staticmethod
    async def result(call: Any) -> Any:
        """Return the result of a call."""
        return call

    @staticmethod
    async def read(replies: Any) -> Any:
        """Return the next message of a stream, or aio.EOF."""
        return next(replies, aio.EOF)

    @staticmethod
    async def wait(future: concurrent.futures.Future[str | None], seconds: float) -> str | None:
        """Return a future's result; TimeoutError after so many seconds."""
        return future.result(seconds)

    @staticmethod
    async def sleep(seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)  # noqa: ASYNC251 (no event loop runs this)

    @staticmethod
    def requests(
        batches: Iterable[Pixels], to_message: Callable[[Pixels], PredictRequest], errors: list[Exception]
    ) -> Iterator[PredictRequest]:
        """Yield the messages of a stream; an exception of `batches` ends them and is appended to `failed`.

        grpcio would convert it to UNKNOWN, or to CancelledError as if the client's own task were cancelled.
        """
        try:
            for pixels in batches:
                yield to_message(pixels)
        except Exception as e:  # noqa: BLE001 (the call raises it again)
            errors.append(e)


class AsyncWaits:
    """For grpc.aio; its functions are those of BlockingWaits."""

    @staticmethod
    async def result(call: Any) -> Any:  # noqa: D102
        return await call

    @staticmethod
    async def read(replies: Any) -> Any:  # noqa: D102
        return await replies.read()

    @staticmethod
    async def wait(future: concurrent.futures.Future[str | None], seconds: float) -> str | None:  # noqa: D102
        return await asyncio.wait_for(asyncio.wrap_future(future), seconds)

    @staticmethod
    async def sleep(seconds: float) -> None:  # noqa: D102
        await asyncio.sleep(seconds)

    @staticmethod
    async def requests(  # noqa: D102
        batches: AsyncIterable[Pixels], to_message: Callable[[Pixels], PredictRequest], errors: list[Exception]
    ) -> AsyncIterator[PredictRequest]:
        try:
            async for pixels in batches:
                yield to_message(pixels)
        except Exception as e:  # noqa: BLE001 (as above)
            errors.append(e)
