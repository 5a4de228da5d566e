"""digits.v1.DigitService: uint8 pixels in, digits and activations out as packed arrays."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from google.protobuf.message import DecodeError

from service.errors import InvalidInput
from service.handlers.predicting import PIXELS
from service.pb.digits.v1.digits_pb2 import DESCRIPTOR, PredictRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.handlers import Answer
    from service.handlers.predicting import Predictor
    from service.model import Floats, Pixels, Predictions

# Tags: a field's number and wire type 2 (length-delimited) in one byte; first PredictRequest's, then PredictResponse's.
_PIXELS = bytes([1 << 3 | 2])
_DIGITS, _ACTIVATIONS, _MODEL_VERSION, _LAYER1, _LAYER2 = (bytes([number << 3 | 2]) for number in range(1, 6))


class DigitsHandler:
    """A `service.handlers.Service`, over one predictor."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._plain = _plain_requests(predictor.max_batch)
        self.name: str = DESCRIPTOR.services_by_name["DigitService"].full_name
        self.unary: Mapping[str, Answer] = {"Predict": self.predict}
        self.streams: Mapping[str, Answer] = {"PredictStream": self.predict}

    async def predict(self, request: bytes, deadline: float = float("inf")) -> bytes:
        """A serialised PredictRequest -> a serialised PredictResponse; ServiceError for anything else."""
        hidden = False

        def decode() -> tuple[Pixels, float]:
            nonlocal hidden
            if (pixels := self._pixels_alone(request)) is not None:
                return pixels, deadline
            message = _decoded(request)
            self._predictor.check_version(message.model_version)
            hidden = message.include_hidden_layers
            return self._predictor.images(message.pixels, "pixels"), deadline

        return await self._predictor.answer(decode, lambda found, info: _encoded(found, info.version, hidden=hidden))

    def _pixels_alone(self, request: bytes) -> Pixels | None:
        """The images of a request that holds nothing else, as nearly all do, as a view of its bytes.

        It spares them the protobuf library, and a large one a copy of its pixels.
        """
        images, head = self._plain.get(len(request), (0, b""))
        if not images or not request.startswith(head):
            return None
        return np.ndarray((images, PIXELS), np.uint8, request, len(head))


def _encoded(predictions: Predictions, version: str, *, hidden: bool) -> bytes:
    """PredictResponse straight from the arrays: no Python object for a number, whatever the batch."""
    fields = [
        # A digit is below 128, so its varint is the byte itself.
        _field(_DIGITS, predictions.digit.astype(np.uint8).tobytes()),
        _field(_ACTIVATIONS, _floats(predictions.activations)),
        _version_field(version),
    ]
    if hidden:
        fields += [_field(_LAYER1, _floats(predictions.layer1)), _field(_LAYER2, _floats(predictions.layer2))]
    return b"".join(fields)


@lru_cache(maxsize=4)
def _version_field(version: str) -> bytes:
    return _field(_MODEL_VERSION, version.encode())


def _decoded(request: bytes) -> PredictRequest:
    try:
        return PredictRequest.FromString(request)
    except DecodeError:
        raise InvalidInput("message", "is not a digits.v1.PredictRequest") from None


def _floats(array: Floats) -> bytes:
    """Packed floats are little-endian on the wire."""
    return array.tobytes() if sys.byteorder == "little" else array.astype("<f4").tobytes()


def _plain_requests(max_batch: int) -> dict[int, tuple[int, bytes]]:
    """Bytes of a PredictRequest with pixels and no other field -> its images, and what stands before the pixels."""
    heads = {images: _head(_PIXELS, images * PIXELS) for images in range(1, max_batch + 1)}
    return {len(head) + images * PIXELS: (images, head) for images, head in heads.items()}


def _field(tag: bytes, content: bytes) -> bytes:
    """One length-delimited protobuf field."""
    return _head(tag, len(content)) + content


@lru_cache(maxsize=4096)
def _head(tag: bytes, length: int) -> bytes:
    """What stands before a field's content: tag, and length as a varint."""
    varint = bytearray()
    while length > 0x7F:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    varint.append(length)
    return tag + bytes(varint)
