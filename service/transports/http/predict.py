"""`POST /v1/predict`: images in, digits and how reliable they are out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from service.network import DIGITS, HIDDEN, is_unsure
from service.pb.digits.v1.digits_pb2 import PredictRequest, PredictResponse
from service.transports.http.errors import Response, json_response
from service.transports.http.images import rows
from service.transports.http.values import get

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.network import Floats
    from service.transports.http.images import Images

_NOT_IN_FORM = (
    "pixels: not in MNIST's form; expected light ink on 0, its longer side 18 to 21 of the 28 pixels, its mass centred"
)


def to_predict_request(images: Images) -> PredictRequest:
    """Make the message of a request; raises InvalidInput."""
    return PredictRequest(
        pixels=images.pixels,
        model_version=get(images.fields, "model_version", str, ""),
        include_hidden_layers=get(images.fields, "include_hidden_layers", bool, False),
        include_reliability=True,
    )


def encode_predictions(response: PredictResponse, images: Images) -> Response:
    """Make the HTTP response: arrays with an element for each image."""
    warnings = _warnings(response, images)
    document: dict[str, Any] = {
        "digits": [*response.digits],
        "second": [*response.second_digits],
        "sure": [not each for each in warnings],
        "warnings": warnings,
        "in_distribution": [*response.in_distribution],
        "activations": rows(response.activations, DIGITS),
        "model_version": response.model_version,
    }
    if response.layer1:
        document.update(layer1=rows(response.layer1, HIDDEN), layer2=rows(response.layer2, HIDDEN))
    return json_response(document)


def _warnings(response: PredictResponse, images: Images) -> list[list[str]]:
    activations = np.array(response.activations, np.float32).reshape(-1, DIGITS)
    if images.inspections is not None:
        from service.transports.http.pictures import warn  # noqa: PLC0415 (an extra of the client)

        return warn(activations, images.inspections)
    answers = zip(activations, response.digits, response.second_digits, response.in_distribution, strict=True)
    return [[*_row_warnings(*answer)] for answer in answers]


def _row_warnings(activations: Floats, digit: int, second: int, in_distribution: float) -> Iterator[str]:
    if in_distribution <= 0:
        yield _NOT_IN_FORM
    if is_unsure(activations[digit], activations[second]):
        yield f"answer: {digit}, perhaps {second}; expected one clear digit"
