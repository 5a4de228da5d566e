"""The page and its calls to the service. The page also computes without it, so all calls may fail."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from digitserve_client.image import ImageError, NoDigitError, Pixels, read_bytes
from digitserve_client.messages import DigitsError
from digitserve_client.pixels import PIXELS
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from playground.inspection import InspectedClient

STATIC = Path(__file__).parent / "static"
FILES = ("page.js", "numbers.js", "style.css", "icon.svg", "fonts-licence.txt")
LARGEST_PICTURE = 32 * 2**20

BURST = 64
"""Calls that the page may have made at once, to see them gathered."""

HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; font-src data:; "
    b"img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cache-control": b"no-cache",
}

_HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


def application(connect: Sequence[Callable[[], InspectedClient]]) -> Starlette:
    """The ASGI application over digitserve servers, a client of each from `connect`; they need not be up yet.

    The first is the one whose network is shown; a second one is compared with it.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, list[InspectedClient]]]:
        async with contextlib.AsyncExitStack() as stack:
            yield {"clients": [await stack.enter_async_context(make()) for make in connect]}

    return Starlette(
        routes=[
            Route("/", _file("index.html")),
            *(Route(f"/{name}", _file(name)) for name in FILES),
            Route("/gateway", gateway),
            Route("/service", describe),
            Route("/network/{place:int}", network),
            Route("/pixels", to_pixels, methods=["POST"]),
            Route("/predict", predict, methods=["POST"]),
            Route("/burst", burst, methods=["POST"]),
        ],
        middleware=[Middleware(_Secured)],
        exception_handlers={DigitsError: _reply_error, HTTPException: _failed},
        lifespan=lifespan,
    )


async def gateway(request: Request) -> Response:
    """That there is one: the page finds out whether it stands alone."""
    return JSONResponse({"services": len(request.state.clients)})


async def describe(request: Request) -> Response:
    """Return the model, provider and batches of each service."""
    return JSONResponse(await asyncio.gather(*(client.describe() for client in request.state.clients)))


async def network(request: Request) -> Response:
    """The parameters of one service's network, W1 b1 W2 b2 W3 b3, as little-endian float32 in base64."""
    clients, place = request.state.clients, request.path_params["place"]
    if place >= len(clients):
        raise HTTPException(404, f"service {place}: not there; expected 0 to {len(clients) - 1}")
    parameters = await clients[place].network()
    arrays = [array.reshape(-1) for pair in zip(parameters.weights, parameters.biases, strict=True) for array in pair]
    return JSONResponse({"parameters": base64.b64encode(np.concatenate(arrays).astype("<f4").tobytes()).decode()})


async def to_pixels(request: Request) -> Response:
    """Convert a picture to `pixels` in MNIST's form; `nothing` has the reason if it shows no digit."""
    body = await _body(request)
    try:
        pixels = await asyncio.to_thread(_read, body)
    except NoDigitError as e:
        return JSONResponse({"nothing": f"the picture {e}"})
    return JSONResponse({"pixels": pixels.tolist()})


async def predict(request: Request) -> Response:
    """784 pixels -> one call to each service: its answer, its time and its messages."""
    pixels = _pixels(await _body(request))
    calls = await asyncio.gather(*(client.call(pixels) for client in request.state.clients))
    return JSONResponse([call.to_json() for call in calls])


async def burst(request: Request) -> Response:
    """784 pixels -> BURST calls at once to the first service, and the batches that they became."""
    milliseconds, batches = await request.state.clients[0].burst(_pixels(await _body(request)), BURST)
    shown = [{"images": images, "runs": runs} for images, runs in sorted(batches.items())]
    return JSONResponse({"calls": BURST, "milliseconds": round(milliseconds, 2), "batches": shown})


def _read(picture: bytes) -> Pixels:
    try:
        pixels: Pixels = read_bytes(picture)[0]
    except NoDigitError:
        raise
    except ImageError as e:
        raise HTTPException(422, f"the picture {e}") from None
    return pixels


async def _body(request: Request) -> bytes:
    """The request's content, of which no more than a picture's worth is ever held."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > LARGEST_PICTURE:
            raise HTTPException(413, f"the picture has more than {LARGEST_PICTURE:,} bytes")
    return bytes(content)


def _pixels(body: bytes) -> bytes:
    if len(body) != PIXELS:
        raise HTTPException(400, f"the body holds {len(body)} bytes; expected 784 pixels")
    return body


def _file(name: str) -> Any:
    async def answer(_: Request) -> Response:
        return FileResponse(STATIC / name)

    return answer


async def _reply_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, DigitsError)
    return JSONResponse({"error": error.message, "code": error.code.name}, _HTTP_STATUS.get(error.code, 502))


async def _failed(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


class _Secured:
    """Sends HEADERS with every reply."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def secured(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS.items()]
            await send(message)

        await self._app(scope, receive, secured)
