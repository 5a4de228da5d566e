"""digits.v1.DigitService: uint8 pixels in, digits, activations and what led to them out as packed arrays."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from service.errors import InvalidInput
from service.handlers.explanation import Admission, ExplanationQueue, cost, packed_explanations
from service.handlers.fields import field, floats, head
from service.inference.explain import INK, Explainer
from service.network import PIXELS
from service.pb.digits.v1.digits_pb2 import (
    DESCRIPTOR,
    ExplainRequest,
    GetNetworkRequest,
    GetNetworkResponse,
    Layer,
    PredictRequest,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from service.handlers import Alternative, Answer, Together
    from service.handlers.predictor import Predictor
    from service.network import ModelInfo, Parameters, Pixels, Predictions

M = TypeVar("M", bound=Message)

# Tags: a field's number and wire type 2 (length-delimited) in one byte; first PredictRequest's, then PredictResponse's.
_PIXELS = bytes([1 << 3 | 2])
_DIGITS, _ACTIVATIONS, _MODEL_VERSION, _LAYER1, _LAYER2 = (bytes([number << 3 | 2]) for number in range(1, 6))
_SUMS = [bytes([number << 3 | 2]) for number in (6, 7, 8)]  # ExplainResponse's
_ACTIVATION_BYTES = 10 * 4  # of one image


class DigitsHandler:
    """A `service.handlers.Service`, over one predictor.

    `rejected` is called for each Explain request that finds the queue of explanations full.
    """

    def __init__(self, predictor: Predictor, rejected: Callable[[], object] = bool) -> None:
        self._predictor = predictor
        self._explanations = ExplanationQueue(rejected)
        self._network: tuple[ModelInfo, bytes] | None = None
        self._plain = _plain_requests(predictor.max_batch_size)
        self.name: str = DESCRIPTOR.services_by_name["DigitService"].full_name
        self.unary: Mapping[str, Answer] = {
            "Predict": self.predict,
            "Explain": self.explain,
            "GetNetwork": self.network,
        }
        self.streams: Mapping[str, Answer] = {"PredictStream": self.predict}
        self.together: Mapping[str, Together] = {"PredictStream": self.predict_together}
        self.alternatives: Mapping[str, Alternative] = {}

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
        message: ExplainRequest
        # Of the model that will answer: nothing else happens before the batcher has the request.
        explainer = Explainer(self._predictor.parameters, self._predictor.info.activation)

        def decode() -> tuple[Pixels, float]:
            nonlocal message
            message = _decoded(ExplainRequest, request)
            self._predictor.check_version(message.model_version)
            images = self._predictor.images(message.pixels, "pixels")
            admission.admit(cost(message.neurons, explainer.sizes, len(images)))
            return images, deadline

        def encode(found: Predictions, info: ModelInfo) -> bytes:
            pixels = self._predictor.images(message.pixels, "pixels")
            sums = explainer.sums(pixels, found)
            return b"".join(
                [
                    _encoded(found, info.version, hidden=True),
                    *(field(tag, floats(layer)) for tag, layer in zip(_SUMS, sums, strict=True)),
                    *packed_explanations(explainer, [(n.layer, n.index) for n in message.neurons], pixels, found),
                ]
            )

        with Admission(self._explanations, deadline) as admission:
            return await self._predictor.answer(decode, encode, admission.run)

    async def network(self, request: bytes, _: float = float("inf")) -> bytes:
        """A serialised GetNetworkRequest -> a serialised GetNetworkResponse; ServiceError for anything else."""
        self._predictor.check_version(_decoded(GetNetworkRequest, request).model_version)
        info = self._predictor.info
        if self._network is None or self._network[0] is not info:  # encoding takes longer than a run of the model
            self._network = info, _described(info, self._predictor.parameters)
        return self._network[1]

    def _pixels_alone(self, request: bytes) -> Pixels | None:
        """The images of a request that holds nothing else, as nearly all do, as a view of its bytes.

        It spares them the protobuf library, and a large one a copy of its pixels.
        """
        images, head = self._plain.get(len(request), (0, b""))
        if not images or not request.startswith(head):
            return None
        return np.ndarray((images, PIXELS), np.uint8, request, len(head))


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
    reply = _plain_reply(_digits(predictions), floats(predictions.activations), version)
    if hidden:
        reply += field(_LAYER1, floats(predictions.layer1)) + field(_LAYER2, floats(predictions.layer2))
    return reply


def _encoded_each(predictions: Predictions, sizes: Sequence[int], info: ModelInfo) -> list[bytes]:
    """A PredictResponse for each of those that asked for so many images, without hidden layers."""
    digits, activations, width = _digits(predictions), floats(predictions.activations), _ACTIVATION_BYTES
    return [
        _plain_reply(digits[stop - size : stop], activations[(stop - size) * width : stop * width], info.version)
        for size, stop in zip(sizes, accumulate(sizes), strict=True)
    ]


def _plain_reply(digits: bytes, activations: bytes, version: str) -> bytes:
    return b"".join(
        (
            head(_DIGITS, len(digits)),
            digits,
            head(_ACTIVATIONS, len(activations)),
            activations,
            _version_field(version),
        )
    )


def _digits(predictions: Predictions) -> bytes:
    """A digit is below 128, so its varint is the byte itself."""
    return predictions.digit.astype(np.uint8).tobytes()


@lru_cache(maxsize=4)
def _version_field(version: str) -> bytes:
    return field(_MODEL_VERSION, version.encode())


def _decoded(kind: type[M], request: bytes) -> M:
    try:
        return kind.FromString(request)
    except DecodeError:
        raise InvalidInput("message", f"is not a {kind.DESCRIPTOR.full_name}") from None


def _plain_requests(max_batch_size: int) -> dict[int, tuple[int, bytes]]:
    """Bytes of a PredictRequest with pixels and no other field -> its images, and what stands before the pixels."""
    prefixes = {images: head(_PIXELS, images * PIXELS) for images in range(1, max_batch_size + 1)}
    return {len(prefix) + images * PIXELS: (images, prefix) for images, prefix in prefixes.items()}
