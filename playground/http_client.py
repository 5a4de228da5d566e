"""The client of the page over HTTP: the routes of `--http-port`."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, Self

import grpc
import httpx2
import numpy as np
from digitserve_client.address import is_loopback
from digitserve_client.credentials import Token
from digitserve_client.messages import REQUEST_ID, DigitsError, Network, new_request_id

from playground.inspection import Batches, Call, InspectedClient

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

_LIMITS = httpx2.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=5)
"""Connections for a burst of calls, closed before the server closes those that are idle."""

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""The status of an error over gRPC; service/transports/http/errors.py has the other direction."""


class HttpClient(InspectedClient):
    """A client of http://HOST:PORT or, with `context`, of https://HOST:PORT; the messages are JSON."""

    transport = "HTTP"

    def __init__(
        self, address: str, *, timeout: float, context: ssl.SSLContext | None = None, token_file: Path | None = None
    ) -> None:
        self.address = address
        self._timeout = timeout
        self._token = Token(token_file, address=address, encrypted=context is not None)
        self._http = httpx2.AsyncClient(
            base_url=address,
            verify=True if context is None else context,
            timeout=None,  # `asyncio.timeout` bounds a call as a whole
            limits=_LIMITS,
            trust_env=not is_loopback(address),  # else a proxy of the environment is used for localhost too
        )

    async def __aenter__(self) -> Self:
        """Return the client; leaving the `async with` block closes it."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def call(self, pixels: bytes) -> Call:
        """Predict one image, with its hidden layers."""
        request = json.dumps({"pixels": [*pixels], "include_hidden_layers": True})
        began = time.perf_counter()
        response = await self._send("POST", f"/v1/predict?timeout={round(self._timeout * 1e6)}", request)
        milliseconds, reply = (time.perf_counter() - began) * 1e3, self._document(response)
        return Call(
            digit=reply["digits"][0],
            activations=reply["activations"][0],
            layer1=reply["layer1"][0],
            layer2=reply["layer2"][0],
            version=reply["model_version"],
            request_id=response.request.headers[REQUEST_ID],
            milliseconds=milliseconds,
            method="POST /v1/predict",
            request=request,
            request_bytes=len(request),
            reply=response.text,
            reply_bytes=len(response.content),
        )

    async def network(self) -> Network:
        """Return the network that serves."""
        reply = await self._get("/v1/network")
        return Network(
            name=reply["name"],
            version=reply["version"],
            activation=reply["activation"],
            weights=tuple(np.array(layer["weights"], np.float32) for layer in reply["layers"]),
            biases=tuple(np.array(layer["biases"], np.float32) for layer in reply["layers"]),
            accuracy=reply["accuracy"],
            accuracy_data=reply["accuracy_data"],
            weights_sha256=reply["weights_sha256"],
        )

    async def batches(self, network: Network) -> Batches:
        """Return the runs since the server started."""
        reply = await self._get(f"/v2/models/{network.name}/stats")
        return {one["batch_size"]: one["compute_infer"]["count"] for one in reply["model_stats"][0]["batch_stats"]}

    async def runtime(self, network: Network) -> tuple[str, str]:
        """Return the platform and the execution provider."""
        reply = await self._get(f"/v2/models/{network.name}")
        return reply["platform"], reply["properties"]["execution_provider"]

    async def _get(self, path: str) -> Any:
        return self._document(await self._send("GET", path))

    async def _send(self, method: str, path: str, content: str | None = None) -> httpx2.Response:
        headers = {REQUEST_ID: new_request_id(), **dict(self._token.metadata())}
        if content is not None:
            headers["content-type"] = "application/json"
        try:
            async with asyncio.timeout(self._timeout):
                return await self._http.request(method, path, content=content, headers=headers)
        except TimeoutError:
            message = f"{self.address}: no answer within {self._timeout:g} s"
            raise DigitsError(grpc.StatusCode.DEADLINE_EXCEEDED, message) from None
        except httpx2.TransportError as e:
            message = f"{self.address}: {e or type(e).__name__}; expected the HTTP port of a server"
            raise DigitsError(grpc.StatusCode.UNAVAILABLE, message) from None

    def _document(self, response: httpx2.Response) -> Any:
        """Return the object of a response; DigitsError for an error."""
        try:
            document = response.json()
        except ValueError:
            document = None
        if response.is_success and isinstance(document, dict):
            return document
        message = f"{self.address}: {response.status_code} {response.reason_phrase}; expected the HTTP port of a server"
        if isinstance(document, dict):
            message = str(document.get("error", message))
        retry_after = response.headers.get("retry-after", "")
        raise DigitsError(
            _CODES.get(response.status_code, grpc.StatusCode.UNKNOWN),
            message,
            request_id=response.request.headers[REQUEST_ID],
            retry_after=float(retry_after) if retry_after.isdecimal() else None,
        )
