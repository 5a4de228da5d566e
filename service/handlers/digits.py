"""digits.v1.DigitService: uint8 pixels in, digits, activations and what led to them out as packed arrays."""

from __future__ import annotations

import struct
import sys
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from service.errors import InvalidInput
from service.explain import INK, Explainer
from service.handlers.predicting import PIXELS
from service.pb.digits.v1.digits_pb2 import (
    DESCRIPTOR,
    ExplainRequest,
    GetNetworkRequest,
    GetNetworkResponse,
    Layer,
    Neuron,
    PredictRequest,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from service.handlers import Answer, Together
    from service.handlers.predicting import Predictor
    from service.model import Floats, ModelInfo, Parameters, Pixels, Predictions

M = TypeVar("M", bound=Message)

MOST_EXPLANATIONS = 1024
"""In one message: images times neurons. Each is up to 6 kB of reply."""

# Tags: a field's number and wire type 2 (length-delimited) in one byte; first PredictRequest's, then PredictResponse's.
_PIXELS = bytes([1 << 3 | 2])
_DIGITS, _ACTIVATIONS, _MODEL_VERSION, _LAYER1, _LAYER2 = (bytes([number << 3 | 2]) for number in range(1, 6))
_SUMS, _EXPLANATION = [bytes([number << 3 | 2]) for number in (6, 7, 8)], bytes([9 << 3 | 2])  # ExplainResponse's
_NEURON, _CONTRIBUTIONS, _GRADIENT = (bytes([number << 3 | 2]) for number in (1, 3, 4))  # Explanation's
_BIAS = bytes([2 << 3 | 5])  # four bytes, without a length
_ACTIVATION_BYTES = 10 * 4  # of one image


class DigitsHandler:
    """A `service.handlers.Service`, over one predictor."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._plain = _plain_requests(predictor.max_batch)
        self.name: str = DESCRIPTOR.services_by_name["DigitService"].full_name
        self.unary: Mapping[str, Answer] = {
            "Predict": self.predict,
            "Explain": self.explain,
            "GetNetwork": self.network,
        }
        self.streams: Mapping[str, Answer] = {"PredictStream": self.predict}
        self.together: Mapping[str, Together] = {"PredictStream": self.predict_together}

    async def predict(self, request: bytes, deadline: float = float("inf")) -> bytes:
        """A serialised PredictRequest -> a serialised PredictResponse; ServiceError for anything else."""
        hidden = False

        def decode() -> tuple[Pixels, float]:
            nonlocal hidden
            if (pixels := self._pixels_alone(request)) is not None:
                return pixels, deadline
            message = _decoded(PredictRequest, request)
            self._predictor.check_version(message.model_version)
            hidden = message.include_hidden_layers
            return self._predictor.images(message.pixels, "pixels"), deadline

        return await self._predictor.answer(decode, lambda found, info: _encoded(found, info.version, hidden=hidden))

    def predict_together(self, requests: Sequence[bytes], deadline: float = float("inf")) -> list[bytes] | None:
        """As `predict` for several, at once; None unless all hold pixels alone and the model is idle."""

        def decode() -> tuple[list[Pixels], float] | None:
            found = [pixels for request in requests if (pixels := self._pixels_alone(request)) is not None]
            return (found, deadline) if len(found) == len(requests) else None

        return self._predictor.answer_together(decode, _encoded_each)

    async def explain(self, request: bytes, deadline: float = float("inf")) -> bytes:
        """A serialised ExplainRequest -> a serialised ExplainResponse; ServiceError for anything else."""
        message = ExplainRequest()
        # Of the model that will answer: nothing else happens before the batcher has the request.
        explainer = Explainer(self._predictor.parameters, self._predictor.info.activation)

        def decode() -> tuple[Pixels, float]:
            message.CopyFrom(_decoded(ExplainRequest, request))
            self._predictor.check_version(message.model_version)
            images = self._predictor.images(message.pixels, "pixels")
            _check_neurons(message.neurons, explainer.sizes, len(images))
            return images, deadline

        def encode(found: Predictions, info: ModelInfo) -> bytes:
            pixels = self._predictor.images(message.pixels, "pixels")
            sums = explainer.sums(pixels, found)
            return b"".join(
                [
                    _encoded(found, info.version, hidden=True),
                    *(_field(tag, _floats(layer)) for tag, layer in zip(_SUMS, sums, strict=True)),
                    *_explanations(explainer, [(n.layer, n.index) for n in message.neurons], pixels, found),
                ]
            )

        return await self._predictor.answer(decode, encode)

    async def network(self, request: bytes, _: float = float("inf")) -> bytes:
        """A serialised GetNetworkRequest -> a serialised GetNetworkResponse; ServiceError for anything else."""
        self._predictor.check_version(_decoded(GetNetworkRequest, request).model_version)
        return _described(self._predictor.info, self._predictor.parameters)

    def _pixels_alone(self, request: bytes) -> Pixels | None:
        """The images of a request that holds nothing else, as nearly all do, as a view of its bytes.

        It spares them the protobuf library, and a large one a copy of its pixels.
        """
        images, head = self._plain.get(len(request), (0, b""))
        if not images or not request.startswith(head):
            return None
        return np.ndarray((images, PIXELS), np.uint8, request, len(head))


def _check_neurons(neurons: Sequence[Neuron], sizes: Sequence[int], images: int) -> None:
    first: dict[tuple[int, int], int] = {}
    for i, neuron in enumerate(neurons):
        if not 1 <= neuron.layer <= 3:
            raise InvalidInput(f"neurons[{i}].layer", f"is {neuron.layer}; expected 1, 2 or 3")
        size = sizes[neuron.layer - 1]
        if neuron.index >= size:
            raise InvalidInput(
                f"neurons[{i}].index", f"is {neuron.index}; layer {neuron.layer} has neurons 0 to {size - 1}"
            )
        if (before := first.setdefault((neuron.layer, neuron.index), i)) != i:
            raise InvalidInput(f"neurons[{i}]", f"is neurons[{before}] once more; expected each neuron at most once")
    if (explanations := images * max(1, len(neurons))) > MOST_EXPLANATIONS:
        raise InvalidInput(
            "neurons",
            f"asks for {explanations} explanations, {max(1, len(neurons))} in each of {images} images; at most "
            f"{MOST_EXPLANATIONS} are allowed in one message",
        )


def _explanations(
    explainer: Explainer, neurons: list[tuple[int, int]], pixels: Pixels, found: Predictions
) -> Iterator[bytes]:
    """A field for each, all neurons of an image before the next image's."""
    asked: list[list[tuple[int, int]]]
    asked = [neurons] * len(pixels) if neurons else [[(3, digit)] for digit in found.digit.tolist()]
    wanted = {at for one in asked for at in one}
    explained = {at: explainer.explain(at, pixels, found) for at in wanted}
    for row, one in enumerate(asked):
        for at in one:
            bias, contributions, gradient = explained[at]
            yield _field(
                _EXPLANATION,
                _field(_NEURON, Neuron(layer=at[0], index=at[1]).SerializeToString())
                + _BIAS
                + struct.pack("<f", bias)
                + _field(_CONTRIBUTIONS, _floats(contributions[row]))
                + _field(_GRADIENT, _floats(gradient[row])),
            )


def _described(info: ModelInfo, parameters: Parameters) -> bytes:
    """A serialised GetNetworkResponse."""
    first, *rest = parameters.weights
    layers = zip((first * np.float32(INK), *rest), parameters.biases, strict=True)
    return GetNetworkResponse(
        name=info.name,
        version=info.version,
        activation=info.activation,
        layer_sizes=map(int, info.layer_sizes.split("-")),
        layers=[Layer(weights=weights.ravel(), biases=biases) for weights, biases in layers],
        accuracy=info.accuracy,
        accuracy_data=info.accuracy_data,
        weights_sha256=info.weights_sha256,
        content_sha256=info.content_sha256,
    ).SerializeToString()


def _encoded(predictions: Predictions, version: str, *, hidden: bool) -> bytes:
    """PredictResponse straight from the arrays: no Python object for a number, whatever the batch."""
    reply = _plain_reply(_digits(predictions), _floats(predictions.activations), version)
    if hidden:
        reply += _field(_LAYER1, _floats(predictions.layer1)) + _field(_LAYER2, _floats(predictions.layer2))
    return reply


def _encoded_each(predictions: Predictions, sizes: Sequence[int], info: ModelInfo) -> list[bytes]:
    """A PredictResponse for each of those that asked for so many images, without hidden layers."""
    digits, activations, width = _digits(predictions), _floats(predictions.activations), _ACTIVATION_BYTES
    return [
        _plain_reply(digits[stop - size : stop], activations[(stop - size) * width : stop * width], info.version)
        for size, stop in zip(sizes, accumulate(sizes), strict=True)
    ]


def _plain_reply(digits: bytes, activations: bytes, version: str) -> bytes:
    return b"".join(
        (
            _head(_DIGITS, len(digits)),
            digits,
            _head(_ACTIVATIONS, len(activations)),
            activations,
            _version_field(version),
        )
    )


def _digits(predictions: Predictions) -> bytes:
    """A digit is below 128, so its varint is the byte itself."""
    return predictions.digit.astype(np.uint8).tobytes()


@lru_cache(maxsize=4)
def _version_field(version: str) -> bytes:
    return _field(_MODEL_VERSION, version.encode())


def _decoded(kind: type[M], request: bytes) -> M:
    try:
        return kind.FromString(request)
    except DecodeError:
        raise InvalidInput("message", f"is not a {kind.DESCRIPTOR.full_name}") from None


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
