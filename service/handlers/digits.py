"""digits.v1.DigitService: uint8 pixels in; digits, activations and hidden layers out, as packed arrays."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from service.handlers.explanation import Admission, ExplanationQueue, compute_cost, pack_explanations
from service.handlers.fields import pack_field, pack_floats, pack_header
from service.handlers.messages import parse
from service.handlers.reliability import Reliability
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
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from service.handlers import Alternative, BatchHandler, MessageHandler
    from service.handlers.predictor import Predictor
    from service.network import ModelInfo, Parameters, Pixels, Predictions

# Tags: a field's number and wire type 2 (length-delimited) in one byte; first PredictRequest's, then PredictResponse's.
_PIXELS = bytes([1 << 3 | 2])
_DIGITS, _ACTIVATIONS, _MODEL_VERSION, _LAYER1, _LAYER2 = (bytes([number << 3 | 2]) for number in range(1, 6))
_SECOND_DIGITS, _SURE, _IN_DISTRIBUTION = (bytes([number << 3 | 2]) for number in (6, 7, 8))
_SUMS = [bytes([number << 3 | 2]) for number in (6, 7, 8)]  # ExplainResponse's
_ACTIVATION_BYTES = 10 * 4  # of one image


class DigitsHandler:
    """A `service.handlers.Service` over one predictor.

    `on_reject` is called for each Explain request that the full queue of explanations rejects.
    """

    def __init__(self, predictor: Predictor, on_reject: Callable[[], object] = bool) -> None:
        self._predictor = predictor
        self._explanations = ExplanationQueue(on_reject)
        self._network: tuple[ModelInfo, bytes] | None = None
        self._fast_path = _fast_path_headers(predictor.max_batch_size)
        self.name: str = DESCRIPTOR.services_by_name["DigitService"].full_name
        self.unary: Mapping[str, MessageHandler] = {
            "Predict": self.predict,
            "Explain": self.explain,
            "GetNetwork": self.get_network,
        }
        self.streams: Mapping[str, MessageHandler] = {"PredictStream": self.predict}
        self.batches: Mapping[str, BatchHandler] = {"PredictStream": self.predict_batch}
        self.alternatives: Mapping[str, Alternative] = {}

    async def predict(self, request: bytes, deadline: float = float("inf")) -> bytes:
        """Answer a serialised PredictRequest with a serialised PredictResponse; raises ServiceError."""
        predictor = self._predictor
        with predictor.time_request() as timer:
            version, hidden, reliability = predictor.info.version, False, False
            if (pixels := self._fast_path_pixels(request)) is None:
                message = parse(PredictRequest, request)
                predictor.check_version(message.model_version)
                pixels = predictor.view_images(message.pixels, "pixels")
                hidden, reliability = message.include_hidden_layers, message.include_reliability
            timer.decoded(len(pixels))
            predictions = await predictor.predict(pixels, deadline)
            timer.predicted()
            reply = _encode_response(predictions, version, hidden=hidden)
            return reply + _encode_reliability(pixels, predictions) if reliability else reply

    def predict_batch(self, requests: Sequence[bytes], deadline: float = float("inf")) -> list[bytes] | None:
        """Answer several requests as `predict` does; None unless all are on the fast path and the model is idle."""
        predictor = self._predictor
        with predictor.time_batch(len(requests)) as timer:
            version = predictor.info.version
            images = [pixels for request in requests if (pixels := self._fast_path_pixels(request)) is not None]
            if len(images) < len(requests):
                return None
            batch = np.concatenate(images)
            timer.decoded(len(batch))
            if (predictions := predictor.run_batch(batch, len(requests), deadline)) is None:
                return None
            timer.predicted()
            return _encode_responses(predictions, map(len, images), version)

    async def explain(self, request: bytes, deadline: float = float("inf")) -> bytes:
        """Answer a serialised ExplainRequest with a serialised ExplainResponse; raises ServiceError."""
        predictor = self._predictor
        with predictor.time_request() as timer, Admission(self._explanations, deadline) as admission:
            info = predictor.info
            explainer = Explainer(predictor.parameters, info.activation)
            message = parse(ExplainRequest, request)
            predictor.check_version(message.model_version)
            pixels = predictor.view_images(message.pixels, "pixels")
            admission.admit(compute_cost(message.neurons, explainer.sizes, len(pixels)))
            timer.decoded(len(pixels))
            predictions = await predictor.predict(pixels, deadline)
            timer.predicted()
            neurons = [(neuron.layer, neuron.index) for neuron in message.neurons]
            return await admission.run(
                lambda: _encode_explanations(explainer, neurons, pixels, predictions, info.version)
            )

    async def get_network(self, request: bytes, _: float = float("inf")) -> bytes:
        """Answer a serialised GetNetworkRequest with a serialised GetNetworkResponse; raises ServiceError."""
        self._predictor.check_version(parse(GetNetworkRequest, request).model_version)
        info = self._predictor.info
        if self._network is None or self._network[0] is not info:  # encoding takes longer than a run of the model
            self._network = info, _encode_network(info, self._predictor.parameters)
        return self._network[1]

    def _fast_path_pixels(self, request: bytes) -> Pixels | None:
        """View the images of a request that has no field but `pixels`, which is nearly every request.

        This avoids the protobuf library and, for a large request, a copy of its pixels.
        """
        images, header = self._fast_path.get(len(request), (0, b""))
        if not images or not request.startswith(header):
            return None
        return np.ndarray((images, PIXELS), np.uint8, request, len(header))


def _encode_network(info: ModelInfo, parameters: Parameters) -> bytes:
    """Encode a GetNetworkResponse."""
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


def _encode_response(predictions: Predictions, version: str, *, hidden: bool) -> bytes:
    """Encode a PredictResponse from the arrays, without a Python object for each number."""
    reply = _join_fields(_pack_digits(predictions), pack_floats(predictions.activations), version)
    if hidden:
        reply += pack_field(_LAYER1, pack_floats(predictions.layer1))
        reply += pack_field(_LAYER2, pack_floats(predictions.layer2))
    return reply


def _encode_reliability(pixels: Pixels, predictions: Predictions) -> bytes:
    """Encode the fields of a PredictResponse with the reliability of each answer."""
    reliability = Reliability.of(pixels, predictions.activations)
    return b"".join(
        (
            pack_field(_SECOND_DIGITS, reliability.second.astype(np.uint8).tobytes()),
            pack_field(_SURE, reliability.sure.astype(np.uint8).tobytes()),
            pack_field(_IN_DISTRIBUTION, pack_floats(reliability.in_distribution)),
        )
    )


def _encode_responses(predictions: Predictions, sizes: Iterable[int], version: str) -> list[bytes]:
    """Encode a PredictResponse for each request of a batch, given their numbers of images, without hidden layers."""
    sizes, width = [*sizes], _ACTIVATION_BYTES
    digits, activations = _pack_digits(predictions), pack_floats(predictions.activations)
    return [
        _join_fields(digits[stop - size : stop], activations[(stop - size) * width : stop * width], version)
        for size, stop in zip(sizes, accumulate(sizes), strict=True)
    ]


def _encode_explanations(
    explainer: Explainer, neurons: list[tuple[int, int]], pixels: Pixels, predictions: Predictions, version: str
) -> bytes:
    """Encode an ExplainResponse: the fields of a PredictResponse with hidden layers, the sums, the explanations."""
    sums = explainer.sums(pixels, predictions)
    return b"".join(
        [
            _encode_response(predictions, version, hidden=True),
            *(pack_field(tag, pack_floats(layer)) for tag, layer in zip(_SUMS, sums, strict=True)),
            *pack_explanations(explainer, neurons, pixels, predictions),
        ]
    )


def _join_fields(digits: bytes, activations: bytes, version: str) -> bytes:
    return b"".join(
        (
            pack_header(_DIGITS, len(digits)),
            digits,
            pack_header(_ACTIVATIONS, len(activations)),
            activations,
            _pack_version(version),
        )
    )


def _pack_digits(predictions: Predictions) -> bytes:
    """Pack the digits as varints: each is below 128, so its varint is one byte."""
    return predictions.digit.astype(np.uint8).tobytes()


@lru_cache(maxsize=4)
def _pack_version(version: str) -> bytes:
    return pack_field(_MODEL_VERSION, version.encode())


def _fast_path_headers(max_batch_size: int) -> dict[int, tuple[int, bytes]]:
    """Map the length of a PredictRequest with no field but `pixels` to its images and the bytes before the pixels."""
    headers = {images: pack_header(_PIXELS, images * PIXELS) for images in range(1, max_batch_size + 1)}
    return {len(header) + images * PIXELS: (images, header) for images, header in headers.items()}
