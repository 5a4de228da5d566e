"""What the page asks, answered by the service over gRPC: nothing of the network is computed here."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from digitserve_client.image import ImageError, NoDigitError, Pixels, Polarity, prepare_bytes, read
from digitserve_client.messages import DigitsError
from digitserve_client.pixels import PIXELS
from digitserve_client.uncertainty import Inspection, doubts
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from commandline import sample_digits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, MutableMapping

    from digitserve_client.client import AsyncDigitsClient
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

STATIC = Path(__file__).parent / "static"
LARGEST_PICTURE = 32 * 2**20

HARD = 5
"""How many samples are offered of those that the network reads worst."""

ABOVE_THE_FIRST = [(2, i) for i in range(16)] + [(3, i) for i in range(10)]
"""The neurons whose contributions are drawn as lines."""

HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
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


def application(connect: Callable[[], AsyncDigitsClient]) -> Starlette:
    """The ASGI application, over the digitserve server that `connect` gives a client of; it need not be up yet."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, AsyncDigitsClient]]:
        async with connect() as client:
            yield {"client": client}

    return Starlette(
        routes=[
            *(Route(f"/{path}", _file(name)) for path, name in (("", "index.html"), ("page.js", "page.js"))),
            *(Route(f"/{name}", _file(name)) for name in ("style.css", "icon.svg")),
            Route("/samples", samples),
            Route("/network", network),
            Route("/read", read_picture, methods=["POST"]),
            Route("/neuron/{layer:int}/{index:int}", neuron, methods=["POST"]),
        ],
        middleware=[Middleware(_Secured)],
        exception_handlers={DigitsError: _refused, HTTPException: _failed},
        lifespan=lifespan,
    )


async def samples(request: Request) -> Response:
    """Real digits, each with label and 784 pixels, chosen by how the network that serves reads them.

    `clear`: of each digit the one that is read best; `hard`: the few that are read worst, the worst first.
    """
    images = read(sample_digits.IMAGES)
    labels = np.fromfile(sample_digits.LABELS, dtype=np.uint8)[8:]
    answers = await request.state.client.predict(images)
    worst_first = np.argsort(_margins(answers.activations, labels), kind="stable").tolist()
    best = {int(labels[i]): i for i in worst_first}  # the last of each label stays

    def offered(chosen: list[int]) -> list[dict[str, Any]]:
        return [{"label": int(labels[i]), "pixels": images[i].tolist()} for i in chosen]

    clear = [best[label] for label in sorted(best)]
    return JSONResponse({"clear": offered(clear), "hard": offered(worst_first[:HARD])})


def _margins(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """By how much the output of the label is brighter than the brightest other, (n,); below 0 where it is misread."""
    is_label = np.arange(outputs.shape[1]) == labels[:, None]
    margins: np.ndarray = outputs[is_label] - np.where(is_label, -np.inf, outputs).max(axis=1)
    return margins


async def network(request: Request) -> Response:
    """What serves, and its weights."""
    found = await request.state.client.network()
    return JSONResponse(
        {
            "name": found.name,
            "version": found.version,
            "activation": found.activation,
            "accuracy": found.accuracy,
            "weights": [_rounded(weights) for weights in found.weights],
            "biases": [_rounded(biases) for biases in found.biases],
        }
    )


async def read_picture(request: Request) -> Response:
    """A picture in any form, or 784 pixels as they are -> the pixels, every layer, and what the lines show.

    With `?ink=light` the picture is a drawing, light on black. `digit` is null, and `nothing` says why, where the
    picture shows none: whoever draws has only begun. `milliseconds` is what the service took as seen from here, and
    `preparing` what made the picture 28x28.
    """
    body, began = await _body(request), time.perf_counter()
    polarity: Polarity = "light-on-dark" if request.query_params.get("ink") == "light" else "unknown"
    seen = Inspection()
    try:
        pixels, seen = (_pixels(body), seen) if _is_raw(request) else await asyncio.to_thread(_prepare, body, polarity)
    except NoDigitError as e:
        return JSONResponse({"digit": None, "nothing": f"the picture {e}"})
    prepared = time.perf_counter()
    found = await request.state.client.explain(pixels.tobytes(), ABOVE_THE_FIRST)
    answered = time.perf_counter()
    answers, explanations = found.answers, found.explanations[0]
    return JSONResponse(
        {
            "pixels": pixels.tolist(),
            "digit": int(answers.digits[0]),
            "second": int(answers.second[0]),
            "warnings": doubts(answers.activations[0], seen),
            "layers": [_rounded(layer[0]) for layer in (answers.layer1, answers.layer2, answers.activations)],
            "sums": [_rounded(layer[0]) for layer in found.sums],
            "contributions": [
                [_rounded(e.contributions) for e in explanations if e.layer == layer] for layer in (2, 3)
            ],
            "model_version": answers.model_version,
            "milliseconds": round((answered - prepared) * 1e3, 2),
            "preparing": round((prepared - began) * 1e3, 2),
        }
    )


async def neuron(request: Request) -> Response:
    """784 pixels -> why that neuron is as bright as it is on them."""
    pixels = _pixels(await _body(request))
    asked = (request.path_params["layer"], request.path_params["index"])
    try:
        found = await request.state.client.explain(pixels.tobytes(), [asked])
    except ValueError as e:
        raise HTTPException(400, str(e)) from None
    why = found.explanations[0][0]
    return JSONResponse(
        {"bias": why.bias, "contributions": _rounded(why.contributions), "gradient": _to_four_digits(why.gradient)}
    )


def _prepare(picture: bytes, polarity: Polarity) -> tuple[Pixels, Inspection]:
    try:
        prepared = prepare_bytes(picture, polarity=polarity)
    except NoDigitError:
        raise
    except ImageError as e:
        raise HTTPException(422, f"the picture {e}") from None
    return prepared.pixels[0], prepared.inspections[0] if prepared.inspections else Inspection()


async def _body(request: Request) -> bytes:
    """The request's content, of which no more than a picture's worth is ever held."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > LARGEST_PICTURE:
            raise HTTPException(413, f"the picture has more than {LARGEST_PICTURE:,} bytes")
    return bytes(content)


def _pixels(body: bytes) -> Pixels:
    if len(body) != PIXELS:
        raise HTTPException(400, f"the body holds {len(body)} bytes; expected 784 pixels")
    return np.frombuffer(body, np.uint8)


def _is_raw(request: Request) -> bool:
    return request.headers.get("content-type") == "application/octet-stream"


def _rounded(values: Any) -> Any:
    """As a person can tell them apart, in a third of the bytes."""
    return np.round(values.astype(np.float64), 5).tolist()


def _to_four_digits(values: Any) -> Any:
    """Of the largest of them: the slopes of an output that is sure are tiny, and differ all the same."""
    largest = max(float(np.abs(values).max()), 1e-30)
    return np.round(values.astype(np.float64), 3 - math.floor(math.log10(largest))).tolist()


def _file(name: str) -> Any:
    async def answer(_: Request) -> Response:
        return FileResponse(STATIC / name)

    return answer


async def _refused(_: Request, error: Exception) -> Response:
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
