"""`POST /v1/predict`: pictures or JSON rows in, digits out."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from service.errors import InvalidInput, Unimplemented
from service.network import DIGITS, HIDDEN, is_unsure
from service.pb.digits.v1.digits_pb2 import PredictRequest, PredictResponse
from service.transports.http.body import parse_json
from service.transports.http.errors import HttpError, Response, json_response
from service.transports.http.values import describe, flatten, get

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from digitserve_client.uncertainty import Inspection

    from service.network import Floats

MAX_PICTURE_BYTES = 8 * 2**20
MAX_PICTURES = 64
"""In one multipart body."""

_BOUNDARY = re.compile(r'boundary="?([^";,]{1,70})"?')
_EXPECTED = "expected application/json, multipart/form-data or a picture such as image/png"
_NOT_IN_FORM = (
    "pixels: not in MNIST's form; expected light ink on 0, its longer side 18 to 21 of the 28 pixels, its mass centred"
)


class PictureReader:
    """Prepares pictures as `digitserve_client` does, on one thread, so that a large picture delays no other request."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    async def read(self, pictures: Sequence[bytes]) -> DecodedPredict:
        """Prepare each picture; raises InvalidInput."""
        try:
            from service.transports.http.pictures import prepare  # noqa: PLC0415 (an extra of the client)
        except ImportError:
            raise Unimplemented(
                "pictures: the server cannot read them; install `digitserve-client[image]` there, or send JSON rows of "
                "784 pixels"
            ) from None
        loop = asyncio.get_running_loop()
        prepared = [await loop.run_in_executor(self._thread, prepare, picture) for picture in pictures]
        message = PredictRequest(pixels=b"".join(pixels for pixels, _ in prepared), include_reliability=True)
        return DecodedPredict(message, [each for _, inspections in prepared for each in inspections])


@dataclass(frozen=True)
class DecodedPredict:
    """A request, and the inspections of its pictures; None for rows of pixels."""

    message: PredictRequest
    inspections: Sequence[Inspection] | None = None

    def encode(self, response: PredictResponse) -> Response:
        """Make the HTTP response: arrays with an element for each image."""
        warnings = self._warnings(response)
        document: dict[str, Any] = {
            "digits": [*response.digits],
            "second": [*response.second_digits],
            "sure": [not each for each in warnings],
            "warnings": warnings,
            "in_distribution": [*response.in_distribution],
            "activations": _rows(response.activations, DIGITS),
            "model_version": response.model_version,
        }
        if response.layer1:
            document.update(layer1=_rows(response.layer1, HIDDEN), layer2=_rows(response.layer2, HIDDEN))
        return json_response(document)

    def _warnings(self, response: PredictResponse) -> list[list[str]]:
        activations = np.array(response.activations, np.float32).reshape(-1, DIGITS)
        if self.inspections is not None:
            from service.transports.http.pictures import warn  # noqa: PLC0415 (an extra of the client)

            return warn(activations, self.inspections)
        answers = zip(activations, response.digits, response.second_digits, response.in_distribution, strict=True)
        return [[*_row_warnings(*answer)] for answer in answers]


def _row_warnings(activations: Floats, digit: int, second: int, in_distribution: float) -> Iterator[str]:
    if in_distribution <= 0:
        yield _NOT_IN_FORM
    if is_unsure(activations[digit], activations[second]):
        yield f"answer: {digit}, perhaps {second}; expected one clear digit"


async def decode_predict(body: bytes, content_type: str, pictures: PictureReader) -> DecodedPredict:
    """Read a request by its content type; raises InvalidInput or HttpError."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        return _decode_json(body)
    if kind == "multipart/form-data":
        return await pictures.read([*_parts(body, content_type)])
    if kind.startswith("image/") or kind == "application/octet-stream":
        return await pictures.read([body])
    raise HttpError(415, f"content-type: {kind[:64]!r} is unsupported; {_EXPECTED}")


def _rows(values: Sequence[float], width: int) -> list[list[float]]:
    return [[*values[start : start + width]] for start in range(0, len(values), width)]


def _decode_json(body: bytes) -> DecodedPredict:
    document = parse_json(body)
    if type(document) is list:
        document = {"pixels": document}
    if type(document) is not dict:
        raise InvalidInput("body", f"is {describe(document)}; expected an array of pixels, or an object with `pixels`")
    rows = flatten(get(document, "pixels", list, []), "pixels")
    message = PredictRequest(
        pixels=_to_bytes(rows),
        model_version=get(document, "model_version", str, ""),
        include_hidden_layers=get(document, "include_hidden_layers", bool, False),
        include_reliability=True,
    )
    return DecodedPredict(message)


def _to_bytes(values: list[Any]) -> bytes:
    for value in values:
        if type(value) is not int or not 0 <= value <= 255:
            shown = value if type(value) in (int, float) else describe(value)
            raise InvalidInput("pixels", f"has the value {str(shown)[:32]}; expected integers from 0 to 255")
    return bytes(values)


def _parts(body: bytes, content_type: str) -> Iterator[bytes]:
    """Split a multipart body (RFC 7578) into the content of its parts."""
    if (boundary := _BOUNDARY.search(content_type)) is None:
        raise InvalidInput("content-type", "has no boundary; expected multipart/form-data; boundary=...")
    delimiter = b"\r\n--" + boundary[1].encode("latin-1")
    _preamble, *parts = (b"\r\n" + body).split(delimiter, MAX_PICTURES + 2)
    if not parts or not parts[-1].startswith(b"--"):
        raise InvalidInput(
            "body", f"is not multipart/form-data of at most {MAX_PICTURES} files that ends with its boundary"
        )
    if len(parts) == 1:
        raise InvalidInput("body", "has no file; expected at least one, as from curl -F file=@seven.jpg")
    for part in parts[:-1]:
        _, separator, content = part.partition(b"\r\n\r\n")
        if not separator:
            raise InvalidInput("body", "has a part without an empty line after its headers")
        yield content
