"""DigitsClient and AsyncDigitsClient: send digits, get answers; each call with a deadline and gRPC's own retries."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any, Self

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from digitserve_client.connection import AsyncConnection, Connection
from digitserve_client.messages import (
    SERVICE,
    DigitsError,
    ExplainResult,
    Network,
    Predictions,
    to_explain_request,
    to_explain_result,
    to_network,
    to_predictions,
    to_request,
)
from digitserve_client.pb.digits.v1.digits_pb2 import GetNetworkRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator

    from digitserve_client.pb.digits.v1.digits_pb2 import PredictRequest
    from digitserve_client.pixels import Pixels

STREAM_TIMEOUT = 3600.0
"""Seconds that the whole of a stream may take unless told otherwise."""

_ASK_AGAIN = 0.1


class DigitsClient(Connection):
    """A connection to a server at `address`, which is host:port or another of gRPC's names; a context manager.

    `timeout` is in seconds and holds for each call that does not bring its own, but not for streams. The channel is TLS
    with `credentials`, or with `tls_ca` (PEM file of the CA that vouches for the server); `tls_cert` and `tls_key` are
    shown to a server that asks for them. The token in `token_file` goes with each call and is read again when the file
    changes; so does what `metadata` gives, which is asked for each call, and may bring an `x-request-id` to find it by.

    Raises ValueError, naming the parameter, for what cannot be used. Calls raise DigitsError where the server does not
    answer, ValueError where the images are no images, and RuntimeError after `close`.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._is_closed = True
        self._channel.close()

    def predict(
        self,
        pixels: Pixels,
        *,
        include_hidden_layers: bool = False,
        model_version: str = "",
        timeout: float | None = None,
    ) -> Predictions:
        """The digits in images: arrays, tensors or lists of (n, 784), (n, 28, 28) or one of these, pictures or files.

        0 is background; ink is 255 as uint8, 1 as float, True as bool. A path, an open binary file or a PIL image is
        brought into that form first. docs/client.md has the table; what is ambiguous is refused with ValueError.
        """
        request = to_request(pixels, include_hidden_layers=include_hidden_layers, model_version=model_version)
        return to_predictions(*self._call(self._stub.Predict, request, timeout))

    def explain(
        self,
        pixels: Pixels,
        neurons: Iterable[tuple[int, int]] = (),
        *,
        model_version: str = "",
        timeout: float | None = None,
    ) -> ExplainResult:
        """As `predict`, with all layers, sums, and why the neurons named (layer 1 to 3, place in it) are as they are.

        Without neurons the output of the digit read in each image is explained.
        """
        request = to_explain_request(pixels, neurons, model_version=model_version)
        return to_explain_result(*self._call(self._stub.Explain, request, timeout))

    def network(self, *, model_version: str = "", timeout: float | None = None) -> Network:
        """The network that serves."""
        reply, _ = self._call(self._stub.GetNetwork, GetNetworkRequest(model_version=model_version), timeout)
        return to_network(reply)

    def predict_stream(
        self,
        batches: Iterable[Pixels],
        *,
        include_hidden_layers: bool = False,
        model_version: str = "",
        timeout: float = STREAM_TIMEOUT,
    ) -> Iterator[Predictions]:
        """One answer for each batch of images, in order, over one call; `timeout` is for the whole of it.

        What `batches` raises is raised here, after the answers to what came before.
        """
        request_id, metadata = self._begin()
        failed: list[Exception] = []

        def requests() -> Iterator[PredictRequest]:
            # grpcio runs this in a thread of its own and would make UNKNOWN of what it raises.
            try:
                for pixels in batches:
                    yield to_request(pixels, include_hidden_layers=include_hidden_layers, model_version=model_version)
            except Exception as e:  # noqa: BLE001 (raised again below)
                failed.append(e)

        within = self._within(timeout)
        until = time.monotonic() + within
        left = self._reach(within)
        replies = self._stub.PredictStream(requests(), timeout=left, metadata=metadata)
        try:
            for reply in replies:
                yield to_predictions(reply, request_id)
        except grpc.RpcError as e:
            raise self._failed(e, request_id, within, self._why(e, until)) from None
        finally:
            replies.cancel()
        if failed:
            raise failed[0]

    def is_serving(self, service: str = SERVICE, *, timeout: float = 1.0) -> bool:
        """Whether grpc.health.v1 says SERVING; False too where nobody answers."""
        self._check_open()
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            reply = self._health.Check(request, timeout=self._within(timeout), metadata=self._token.metadata())
        except grpc.RpcError:
            return False
        self._is_reached = True
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    def health(self, service: str = "", *, timeout: float = 1.0) -> str:
        """What grpc.health.v1 says of a service, or with none of the whole server: SERVING or NOT_SERVING.

        Raises DigitsError where nobody answers, or the service is not known.
        """
        self._check_open()
        request, within = health_pb2.HealthCheckRequest(service=service), self._within(timeout)
        until = time.monotonic() + within
        # A server that says NOT_SERVING is left out by the channel of all other calls.
        with self._open(("grpc.inhibit_health_checking", 1)) as channel:
            stub: Any = HealthStub(channel)
            try:
                reply = stub.Check(request, timeout=within, metadata=self._token.metadata())
            except grpc.RpcError as e:
                raise self._failed(e, "", within, self._why(e, until)) from None
        return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)

    def wait_until_serving(self, timeout: float) -> None:
        """Return when health says SERVING; DigitsError, UNAVAILABLE, where it does not within `timeout` seconds."""
        until = time.monotonic() + timeout
        while not self.is_serving():
            if time.monotonic() >= until:
                raise _not_serving(timeout, self._told(self._probe(math.inf), math.inf))
            time.sleep(_ASK_AGAIN)


class AsyncDigitsClient(AsyncConnection):
    """As DigitsClient, for asyncio; an async context manager."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up."""
        self._is_closed = True
        if self._loop is asyncio.get_running_loop():
            await self._channel.close()

    async def predict(
        self,
        pixels: Pixels,
        *,
        include_hidden_layers: bool = False,
        model_version: str = "",
        timeout: float | None = None,
    ) -> Predictions:
        """As DigitsClient.predict."""
        request = to_request(pixels, include_hidden_layers=include_hidden_layers, model_version=model_version)
        return to_predictions(*await self._call(self._stub.Predict, request, timeout))

    async def explain(
        self,
        pixels: Pixels,
        neurons: Iterable[tuple[int, int]] = (),
        *,
        model_version: str = "",
        timeout: float | None = None,
    ) -> ExplainResult:
        """As DigitsClient.explain."""
        request = to_explain_request(pixels, neurons, model_version=model_version)
        return to_explain_result(*await self._call(self._stub.Explain, request, timeout))

    async def network(self, *, model_version: str = "", timeout: float | None = None) -> Network:
        """As DigitsClient.network."""
        reply, _ = await self._call(self._stub.GetNetwork, GetNetworkRequest(model_version=model_version), timeout)
        return to_network(reply)

    async def predict_stream(
        self,
        batches: AsyncIterable[Pixels],
        *,
        include_hidden_layers: bool = False,
        model_version: str = "",
        timeout: float = STREAM_TIMEOUT,
    ) -> AsyncIterator[Predictions]:
        """As DigitsClient.predict_stream."""
        request_id, metadata = self._begin()
        failed: list[Exception] = []

        async def requests() -> AsyncIterator[PredictRequest]:
            # grpcio would make CancelledError of what this raises, as if the caller's own task were cancelled.
            try:
                async for pixels in batches:
                    yield to_request(pixels, include_hidden_layers=include_hidden_layers, model_version=model_version)
            except Exception as e:  # noqa: BLE001 (raised again below)
                failed.append(e)

        within = self._within(timeout)
        until = time.monotonic() + within
        left = await self._reach(within)
        replies = self._stub.PredictStream(requests(), timeout=left, metadata=metadata)
        try:
            async for reply in replies:
                yield to_predictions(reply, request_id)
        except aio.AioRpcError as e:
            raise self._failed(e, request_id, within, await self._why(e, until)) from None
        finally:
            replies.cancel()
        if failed:
            raise failed[0]

    async def is_serving(self, service: str = SERVICE, *, timeout: float = 1.0) -> bool:
        """As DigitsClient.is_serving."""
        self._check_open()
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            reply = await self._health.Check(request, timeout=self._within(timeout), metadata=self._token.metadata())
        except aio.AioRpcError:
            return False
        self._is_reached = True
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    async def health(self, service: str = "", *, timeout: float = 1.0) -> str:
        """As DigitsClient.health."""
        self._check_open()
        request, within = health_pb2.HealthCheckRequest(service=service), self._within(timeout)
        until = time.monotonic() + within
        async with self._open(("grpc.inhibit_health_checking", 1)) as channel:
            stub: Any = HealthStub(channel)
            try:
                reply = await stub.Check(request, timeout=within, metadata=self._token.metadata())
            except aio.AioRpcError as e:
                raise self._failed(e, "", within, await self._why(e, until)) from None
        return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)

    async def wait_until_serving(self, timeout: float) -> None:
        """As DigitsClient.wait_until_serving."""
        until = time.monotonic() + timeout
        while not await self.is_serving():
            if time.monotonic() >= until:
                raise _not_serving(timeout, await self._told(self._probe(math.inf), math.inf))
            await asyncio.sleep(_ASK_AGAIN)


def _not_serving(seconds: float, reason: str | None) -> DigitsError:
    late = f"health did not say SERVING within {seconds:g} s"
    return DigitsError(grpc.StatusCode.UNAVAILABLE, f"{reason}; {late}" if reason else late)
