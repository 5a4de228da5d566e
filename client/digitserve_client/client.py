"""DigitsClient and AsyncDigitsClient: send digits, get answers; each call with a deadline and gRPC's own retries."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any, ClassVar, Self

import grpc
from grpc import aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from digitserve_client.connection import Connection, blocking, iterate
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
from digitserve_client.pb.digits.v1.digits_pb2_grpc import DigitServiceStub
from digitserve_client.pixels import inspect
from digitserve_client.waiting import AsyncWaits, BlockingWaits

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator

    from digitserve_client.pixels import Pixels

_POLL_INTERVAL = 0.1

STREAM_TIMEOUT = 3600.0
"""Default timeout of a complete stream, in seconds."""


class AsyncDigitsClient(Connection):
    """As DigitsClient, for asyncio; an async context manager. Its channel is opened at the first call in a loop."""

    _api: ClassVar[Any] = aio
    _waits = AsyncWaits

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        self._is_closed = True
        if self._loop is asyncio.get_running_loop():
            await self._channel.close()

    # DigitsClient has the next methods too: in them `self` is either.

    async def predict(
        self: Connection,
        pixels: Pixels,
        *,
        include_hidden_layers: bool = False,
        model_version: str = "",
        timeout: float | None = None,
    ) -> Predictions:
        """The digits in images: arrays, tensors or lists of (n, 784), (n, 28, 28) or one of these, pictures or files.

        0 is background; ink is 255 as uint8, 1 as float, True as bool. A path, an open binary file or a PIL image is
        converted to that form first. docs/client.md has the table; ambiguous input raises ValueError.
        """
        images, inspections = inspect(pixels)
        request = to_request(images, include_hidden_layers=include_hidden_layers, model_version=model_version)
        return to_predictions(*await self._call(self._stub.Predict, request, timeout), inspections)

    async def explain(
        self: Connection,
        pixels: Pixels,
        neurons: Iterable[tuple[int, int]] = (),
        *,
        model_version: str = "",
        timeout: float | None = None,
    ) -> ExplainResult:
        """As `predict`, with all layers, sums, and why the neurons named (layer 1 to 3, place in it) are as they are.

        Without neurons the output of the digit read in each image is explained.
        """
        images, inspections = inspect(pixels)
        request = to_explain_request(images, neurons, model_version=model_version)
        return to_explain_result(*await self._call(self._stub.Explain, request, timeout), inspections)

    async def network(self: Connection, *, model_version: str = "", timeout: float | None = None) -> Network:
        """The network that serves."""
        request = GetNetworkRequest(model_version=model_version)
        return to_network((await self._call(self._stub.GetNetwork, request, timeout))[0])

    async def is_serving(self: Connection, service: str = SERVICE, *, timeout: float = 1.0) -> bool:
        """Whether grpc.health.v1 reports SERVING; False too if no server answers."""
        self._check_open()
        call = {"timeout": self._timeout_of(timeout), "metadata": self._token.metadata()}
        try:
            reply = await self._waits.result(self._health.Check(HealthCheckRequest(service=service), **call))
        except grpc.RpcError:
            return False
        self._is_reached = True
        return bool(reply.status == HealthCheckResponse.SERVING)

    async def health(self: Connection, service: str = "", *, timeout: float = 1.0) -> str:
        """Return the status of a service in grpc.health.v1, by default of the server: SERVING or NOT_SERVING.

        Raises DigitsError if no server answers, or if the service is unknown.
        """
        self._check_open()
        timeout_s = self._timeout_of(timeout)
        deadline = time.monotonic() + timeout_s
        # The channel of all other calls omits a server that is NOT_SERVING.
        channel = self._open(("grpc.inhibit_health_checking", 1))
        stub: Any = HealthStub(channel)
        call = {"timeout": timeout_s, "metadata": self._token.metadata()}
        try:
            reply = await self._waits.result(stub.Check(HealthCheckRequest(service=service), **call))
        except grpc.RpcError as e:
            raise self._call_error(e, "", timeout_s, await self._reason(e, deadline)) from None
        finally:
            await self._waits.result(channel.close())
        return HealthCheckResponse.ServingStatus.Name(reply.status)

    async def wait_until_serving(self: Connection, timeout: float) -> None:
        """Wait for SERVING; DigitsError (UNAVAILABLE) after `timeout` seconds without it."""
        deadline = time.monotonic() + timeout
        while not await AsyncDigitsClient.is_serving(self):
            if time.monotonic() >= deadline:
                reason = await self._probe_result(self._probe(math.inf), math.inf)
                description = f"health is not SERVING after {timeout:g} s"
                raise DigitsError(grpc.StatusCode.UNAVAILABLE, f"{reason}; {description}" if reason else description)
            await self._waits.sleep(_POLL_INTERVAL)

    def predict_stream(
        self,
        batches: AsyncIterable[Pixels],
        *,
        include_hidden_layers: bool = False,
        model_version: str = "",
        timeout: float = STREAM_TIMEOUT,
    ) -> AsyncIterator[Predictions]:
        """As DigitsClient.predict_stream."""
        return self._stream(batches, timeout, include_hidden_layers=include_hidden_layers, model_version=model_version)

    def _connect(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: Any = None

    @property
    def _stub(self) -> Any:
        """The calls of the running event loop."""
        self._bind()
        return self._digits_stub

    @property
    def _health(self) -> Any:
        self._bind()
        return self._health_stub

    def _bind(self) -> None:
        """Make the channel in the loop that runs: gRPC's belongs to one loop, and a client may be made before any.

        Raises RuntimeError if the loop of earlier calls still runs in another thread.
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
        self._digits_stub, self._health_stub = DigitServiceStub(self._channel), HealthStub(self._channel)


class DigitsClient(Connection):
    """A connection to a server at `address`, which is host:port or another of gRPC's names; a context manager.

    `timeout` is the default of each call in seconds, but not of streams. The channel uses TLS with `credentials`, or
    with `tls_ca`, the PEM file of the server's CA. `tls_cert` and `tls_key` are the client's certificate and key. Each
    call sends the token in `token_file`, which is reloaded when it changes, and the result of `metadata()`, such as an
    `x-request-id`.

    Raises ValueError, with the parameter's name, for invalid parameters. Calls raise DigitsError without a reply of the
    server, ValueError for invalid images, and RuntimeError after `close`.
    """

    _api: ClassVar[Any] = grpc
    _waits = BlockingWaits

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._is_closed = True
        self._channel.close()

    predict = blocking(AsyncDigitsClient.predict)
    explain = blocking(AsyncDigitsClient.explain)
    network = blocking(AsyncDigitsClient.network)
    is_serving = blocking(AsyncDigitsClient.is_serving)
    health = blocking(AsyncDigitsClient.health)
    wait_until_serving = blocking(AsyncDigitsClient.wait_until_serving)

    def predict_stream(
        self,
        batches: Iterable[Pixels],
        *,
        include_hidden_layers: bool = False,
        model_version: str = "",
        timeout: float = STREAM_TIMEOUT,
    ) -> Iterator[Predictions]:
        """One answer for each batch of images, in order, over one call; `timeout` is for the whole of it.

        An exception of `batches` is raised here, after the answers to earlier batches.
        """
        return iterate(
            self._stream(batches, timeout, include_hidden_layers=include_hidden_layers, model_version=model_version)
        )

    def _connect(self) -> None:
        self._channel = self._open()
        self._stub, self._health = DigitServiceStub(self._channel), HealthStub(self._channel)
