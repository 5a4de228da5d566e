"""digits.v1.DigitService: uint8 pixels in, digits and activations out as packed arrays."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
from google.protobuf.message import DecodeError

from service.errors import InvalidInput
from service.pb.digits.v1.digits_pb2 import DESCRIPTOR, PredictRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.handlers import Answer
    from service.handlers.predicting import Predictor
    from service.model import Floats, Pixels, Predictions

# Tags of PredictResponse's fields: the field's number and wire type 2 (length-delimited) in one byte.
_DIGITS, _ACTIVATIONS, _MODEL_VERSION, _LAYER1, _LAYER2 = (bytes([number << 3 | 2]) for number in range(1, 6))


class DigitsHandler:
    """A `service.handlers.Service`, over one predictor."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._version_field = _field(_MODEL_VERSION, predictor.info.version.encode())
        self.name: str = DESCRIPTOR.services_by_name["DigitService"].full_name
        self.unary: Mapping[str, Answer] = {"Predict": self.predict}
        self.streams: Mapping[str, Answer] = {"PredictStream": self.predict}

    async def predict(self, request: bytes, deadline: float = float("inf")) -> bytes:
        """A serialised PredictRequest -> a serialised PredictResponse; ServiceError for anything else."""
        hidden = False

        def decode() -> tuple[Pixels, float]:
            nonlocal hidden
            message = _decoded(request)
            self._predictor.check_version(message.model_version)
            hidden = message.include_hidden_layers
            return self._predictor.images(message.pixels, "pixels"), deadline

        return await self._predictor.answer(decode, lambda found: self._encoded(found, hidden=hidden))

    def _encoded(self, predictions: Predictions, *, hidden: bool) -> bytes:
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


def _decoded(request: bytes) -> PredictRequest:
    try:
        return PredictRequest.FromString(request)
    except DecodeError:
        raise InvalidInput("message", "is not a digits.v1.PredictRequest") from None


def _floats(array: Floats) -> bytes:
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
