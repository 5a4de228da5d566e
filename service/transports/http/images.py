"""The images of a request, pictures or JSON rows, and their answers as rows of JSON."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from service.errors import InvalidInput, Unimplemented
from service.transports.http.body import parse_json
from service.transports.http.errors import HttpError
from service.transports.http.values import describe, flatten, get

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from digitserve_client.uncertainty import Inspection

MAX_PICTURE_BYTES = 8 * 2**20
MAX_PICTURES = 64
"""In one multipart body."""

_BOUNDARY = re.compile(r'boundary="?([^";,]{1,70})"?')
_EXPECTED = "expected application/json, multipart/form-data or a picture such as image/png"


class Images(NamedTuple):
    """Images of 784 bytes each; the other fields of a JSON object; the inspections of pictures, None for JSON."""

    pixels: bytes
    fields: dict[str, Any]
    inspections: Sequence[Inspection] | None = None


class ImageReader:
    """Reads images. Pictures are prepared as by `digitserve_client`, on one thread: a large one delays no request."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    async def read(self, body: bytes, content_type: str) -> Images:
        """Read the images of a body by its content type; raises InvalidInput or HttpError."""
        kind = content_type.partition(";")[0].strip().lower()
        if kind == "application/json":
            return _read_json(body)
        if kind == "multipart/form-data":
            return await self._read_pictures([*_parts(body, content_type)])
        if kind.startswith("image/") or kind == "application/octet-stream":
            return await self._read_pictures([body])
        raise HttpError(415, f"content-type: {kind[:64]!r} is unsupported; {_EXPECTED}")

    async def _read_pictures(self, pictures: Sequence[bytes]) -> Images:
        try:
            from service.transports.http.pictures import prepare  # noqa: PLC0415 (an extra of the client)
        except ImportError:
            raise Unimplemented(
                "pictures: the server cannot read them; install `digitserve-client[image]` there, or send JSON rows of "
                "784 pixels"
            ) from None
        loop = asyncio.get_running_loop()
        prepared = [await loop.run_in_executor(self._thread, prepare, picture) for picture in pictures]
        inspections = [each for _, inspections in prepared for each in inspections]
        return Images(b"".join(pixels for pixels, _ in prepared), {}, inspections)


def rows(values: Sequence[float], width: int) -> list[list[float]]:
    """Split values into one list for each image."""
    return [[*values[start : start + width]] for start in range(0, len(values), width)]


def _read_json(body: bytes) -> Images:
    document = parse_json(body)
    if type(document) is list:
        document = {"pixels": document}
    if type(document) is not dict:
        raise InvalidInput("body", f"is {describe(document)}; expected an array of pixels, or an object with `pixels`")
    return Images(_to_bytes(flatten(get(document, "pixels", list, []), "pixels")), document)


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
