"""A picture as the network's pixels; needs `digitserve_client` and Pillow, so import it only when a picture arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from digitserve_client import formats, image
from digitserve_client.uncertainty import Inspection, doubts

from service.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable

    from service.network import Floats

MAX_PICTURE_PIXELS = 25_000_000
"""Decoded at 4 bytes a pixel, pictures one after another."""


def prepare(content: bytes) -> tuple[bytes, tuple[Inspection, ...]]:
    """Find the digit in a picture and bring it into MNIST's form, 784 bytes; raises InvalidInput."""
    if not content:
        raise InvalidInput("file", "is empty; expected a picture")
    try:
        _check_size(content)
        prepared = image.prepare_bytes(content)
    except image.ImageError as e:
        raise InvalidInput("file", str(e)) from None
    return prepared.pixels.tobytes(), prepared.inspections or (Inspection(),) * len(prepared.pixels)


def warn(activations: Floats, inspections: Iterable[Inspection]) -> list[list[str]]:
    """List the warnings of each answer, as the client has them."""
    return [[*doubts(row, each)] for row, each in zip(activations, inspections, strict=True)]


def _check_size(content: bytes) -> None:
    """Reject a large picture by its header, before it is decoded; other faults are left to the decoder."""
    try:
        width, height = formats.open_undecoded(content).size
    except image.ImageError:
        return
    if width * height > MAX_PICTURE_PIXELS:
        raise InvalidInput("file", f"has {width} x {height} pixels; expected at most {MAX_PICTURE_PIXELS:,}")
