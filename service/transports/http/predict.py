"""`POST /v1/predict`: pictures or JSON rows in, digits out."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from service.errors import InvalidInput, Unimplemented
from service.network import DIGITS, HIDDEN
from service.pb.digits.v1.digits_pb2 import PredictRequest, PredictResponse
from service.transports.http.body import parse_json
from service.transports.http.errors import HttpError, Response, json_response
from service.transports.http.values import describe, flatten, get

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_PICTURE_BYTES = 8 * 2**20
MAX_PICTURES = 64
"""In one multipart body."""

_BOUNDARY = re.compile(r'boundary="?([^";,]{1,70})"?')
_EXPECTED = "expected application/json, multipart/form-data or a picture such as image/png"


class PictureReader:
    """Prepares pictures as `digitserve_client` does, on one thread, so that a large picture delays no other request."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    async def read(self, pictures: Sequence[bytes]) -> bytes:
        """Return the pixels of each picture, 784 bytes each; raises InvalidInput."""
        try:
            from service.transports.http.pictures import to_pixels  # noqa: PLC0415 (an extra of the client)
        except ImportError:
            raise Unimplemented(
                "pictures: the server cannot read them; install `digitserve-client[image]` there, or send JSON rows of "
                "784 pixels"
            ) from None
        loop = asyncio.get_running_loop()
        return b"".join([await loop.run_in_executor(self._thread, to_pixels, picture) for picture in pictures])


async def decode_predict(body: bytes, content_type: str, pictures: PictureReader) -> PredictRequest:
    """Read a request by its content type; raises InvalidInput or HttpError."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        return _decode_json(body)
    if kind == "multipart/form-data":
        return PredictRequest(pixels=await pictures.read([*_parts(body, content_type)]))
    if kind.startswith("image/") or kind == "application/octet-stream":
        return PredictRequest(pixels=await pictures.read([body]))
    raise HttpError(415, f"content-type: {kind[:64]!r} is unsupported; {_EXPECTED}")


def encode_predict(response: PredictResponse) -> Response:
    """Make the HTTP response: arrays with an element for each image."""
    document: dict[str, Any] = {
        "digits": [*response.digits],
        "activations": _rows(response.activations, DIGITS),
        "model_version": response.model_version,
    }
    if response.layer1:
        document.update(layer1=_rows(response.layer1, HIDDEN), layer2=_rows(response.layer2, HIDDEN))
    return json_response(document)


def _rows(values: Sequence[float], width: int) -> list[list[float]]:
    return [[*values[start : start + width]] for start in range(0, len(values), width)]


def _decode_json(body: bytes) -> PredictRequest:
    document = parse_json(body)
    if type(document) is list:
        document = {"pixels": document}
    if type(document) is not dict:
        raise InvalidInput("body", f"is {describe(document)}; expected an array of pixels, or an object with `pixels`")
    rows = flatten(get(document, "pixels", list, []), "pixels")
    return PredictRequest(
        pixels=_to_bytes(rows),
        model_version=get(document, "model_version", str, ""),
        include_hidden_layers=get(document, "include_hidden_layers", bool, False),
    )


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
