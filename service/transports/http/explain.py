"""`POST /v1/explain` and `GET /v1/network`: why neurons have their activations, and the parameters of the network."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from service.errors import InvalidInput
from service.handlers.explanation import count_explanations
from service.network import DIGITS, HIDDEN, PIXELS
from service.pb.digits.v1.digits_pb2 import ExplainRequest, ExplainResponse, Explanation, GetNetworkResponse, Neuron
from service.transports.http.errors import Response, encode_json, json_response
from service.transports.http.images import rows
from service.transports.http.inference import to_json
from service.transports.http.values import expect, get

if TYPE_CHECKING:
    from service.transports.http.images import Images

MAX_EXPLANATIONS = 128
"""In one response, counted as the handler does. Each is about 18 kB of JSON, so no response exceeds 3 MiB."""

_NEURONS = HIDDEN + HIDDEN + DIGITS
_UINT32 = range(2**32)


def to_explain_request(images: Images) -> ExplainRequest:
    """Make the message of a request; raises InvalidInput."""
    neurons = get(images.fields, "neurons", list, [])
    if len(neurons) > _NEURONS:
        raise InvalidInput("neurons", f"are {len(neurons)}; expected at most {_NEURONS}, each neuron once")
    message = ExplainRequest(
        pixels=images.pixels,
        neurons=[_to_neuron(value, f"neurons[{i}]") for i, value in enumerate(neurons)],
        model_version=get(images.fields, "model_version", str, ""),
    )
    explanations = count_explanations(message.neurons, len(images.pixels) // PIXELS)
    if explanations > MAX_EXPLANATIONS:
        raise InvalidInput(
            "neurons",
            f"{explanations} explanations, images x neurons with those of layer 1 counted twice; expected at most "
            f"{MAX_EXPLANATIONS} over HTTP; send fewer images, or use gRPC",
        )
    return message


async def encode_explanations(response: ExplainResponse) -> Response:
    """Make the HTTP response: arrays with an element for each image, which in `explanations` is a list of neurons.

    The event loop runs other tasks after each explanation, which takes 0.5 ms.
    """
    document: dict[str, Any] = {
        "digits": [*response.digits],
        "activations": rows(response.activations, DIGITS),
        "model_version": response.model_version,
    }
    for name in ("layer1", "layer2", "sums1", "sums2"):
        document[name] = rows(getattr(response, name), HIDDEN)
    document["sums3"] = rows(response.sums3, DIGITS)
    texts = []
    for explanation in response.explanations:
        texts.append(_encode_explanation(explanation))
        await asyncio.sleep(0)
    each = len(texts) // len(response.digits)
    images = ",".join(f"[{','.join(texts[start : start + each])}]" for start in range(0, len(texts), each))
    head = encode_json(document)
    return Response(f'{head[:-1]},"explanations":[{images}]}}'.encode())


def encode_network(response: GetNetworkResponse) -> Response:
    """Make the HTTP response: the fields of the message, with one row of weights for each neuron."""
    layers = [
        {"weights": rows(layer.weights, len(layer.weights) // len(layer.biases)), "biases": [*layer.biases]}
        for layer in response.layers
    ]
    return json_response({**to_json(response), "layers": layers})


def _encode_explanation(explanation: Explanation) -> str:
    neuron = {"layer": explanation.neuron.layer, "index": explanation.neuron.index}
    values = {"contributions": [*explanation.contributions], "gradient": [*explanation.gradient]}
    return encode_json({"neuron": neuron, "bias": explanation.bias, **values})


def _to_neuron(value: Any, field: str) -> Neuron:
    document = expect(dict, value, field)
    numbers = {name: get(document, name, int, 0, f"{field}.") for name in ("layer", "index")}
    for name, number in numbers.items():
        if number not in _UINT32:
            raise InvalidInput(f"{field}.{name}", f"is {str(number)[:32]}; expected an integer of at least 0")
    return Neuron(**numbers)
