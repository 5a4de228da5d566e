"""digits.v1.DigitService: uint8 pixels in, digits and activations out as packed arrays."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
from google.protobuf.message import DecodeError

from service.errors import InvalidInput, UnknownModel
from service.pb.digits.v1.digits_pb2 import PredictRequest

if TYPE_CHECKING:
    from service.batcher import Batcher
    from service.model import Pixels, Predictions

PIXELS = 784
SERVICE = "digits.v1.DigitService"
_LONGEST_ECHO = 32  # characters of a caller's text that an error repeats

# Tags of PredictResponse's fields: the field's number and wire type 2 (length-delimited) in one byte.
_DIGITS, _ACTIVATIONS, _MODEL_VERSION, _LAYER1, _LAYER2 = (bytes([number << 3 | 2]) for number in range(1, 6))


class DigitsHandler:
    """Answers for one model; a message may hold at most `max_batch` images."""

    def __init__(self, batcher: Batcher, *, max_batch: int) -> None:
        self._batcher = batcher
        self._max_batch = max_batch
        self._version = batcher.info.version
        self._version_field = _field(_MODEL_VERSION, self._version.encode())

    async def predict(self, request: bytes, deadline: float = float("inf")) -> bytes:
        """A serialised PredictRequest -> a serialised PredictResponse; ServiceError for anything else."""
        message = _decode(request)
        if message.model_version not in ("", self._version):
            asked = message.model_version[:_LONGEST_ECHO]
            raise UnknownModel(f"model_version: there is no version {asked!r}; {self._version!r} serves")
        predictions = await self._batcher.predict(self._pixels(message.pixels), deadline)
        return self._encode(predictions, hidden=message.include_hidden_layers)

    def _pixels(self, data: bytes) -> Pixels:
        """The images as a view of the message's bytes, (n, 784)."""
        images, rest = divmod(len(data), PIXELS)
        if not data:
            raise InvalidInput("pixels", f"is empty; expected n x {PIXELS} bytes, n at least 1")
        if rest:
            raise InvalidInput("pixels", f"holds {len(data)} bytes; expected a multiple of {PIXELS}")
        if images > self._max_batch:
            raise InvalidInput("pixels", f"holds {images} images; at most {self._max_batch} are allowed in one message")
        return np.frombuffer(data, dtype=np.uint8).reshape(images, PIXELS)

    def _encode(self, predictions: Predictions, *, hidden: bool) -> bytes:
        """PredictResponse straight from the arrays: no Python object for a number, whatever the batch."""
        fields = [
            # A digit is below 128, so its varint is the byte itself.
            _field(_DIGITS, predictions.digit.astype(np.uint8).tobytes()),
            _field(_ACTIVATIONS, _floats(predictions.activations)),
            self._version_field,
        ]
        if hidden:
            fields += [_field(_LAYER1, _floats(predictions.layer1)), _field(_LAYER2, _floats(predictions.layer2))]
        return b"".join(fields)


def _decode(request: bytes) -> PredictRequest:
    try:
        return PredictRequest.FromString(request)
    except DecodeError:
        raise InvalidInput("message", "is not a digits.v1.PredictRequest") from None


def _floats(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    """Packed floats are little-endian on the wire."""
    return array.tobytes() if sys.byteorder == "little" else array.astype("<f4").tobytes()


def _field(tag: bytes, content: bytes) -> bytes:
    """One length-delimited protobuf field: tag, length as a varint, content."""
    length, varint = len(content), bytearray()
    while length > 0x7F:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    varint.append(length)
    return tag + bytes(varint) + content
