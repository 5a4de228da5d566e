"""Requests, replies and errors of the sync and the async client."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from grpc_status import rpc_status

from digitserve_client.pb.digits.v1.digits_pb2 import ExplainRequest, Neuron, PredictRequest
from digitserve_client.pixels import to_bytes
from digitserve_client.uncertainty import Inspection, doubts, runners_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import grpc

    from digitserve_client.pb.digits.v1.digits_pb2 import ExplainResponse, GetNetworkResponse, PredictResponse
    from digitserve_client.pixels import Pixels

HIDDEN = 16
REQUEST_ID = "x-request-id"
SERVICE = "digits.v1.DigitService"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers for n images: digits (n,), activations (n, 10) in 0..1; hidden layers (n, 16) on request.

    A sequence of Predictions of n = 1, one per image. `inspections` has the findings on each prepared picture; empty
    for arrays.
    """

    digits: npt.NDArray[np.int64]
    activations: Floats
    layer1: Floats | None
    layer2: Floats | None
    model_version: str
    request_id: str
    inspections: tuple[Inspection, ...] = ()

    @property
    def second(self) -> npt.NDArray[np.int64]:
        """The digits with the second highest activation, (n,)."""
        return runners_up(self.activations)

    @property
    def warnings(self) -> tuple[tuple[str, ...], ...]:
        """The doubts about each image's answer, as messages; none for a reliable answer."""
        seen = self.inspections or (Inspection(),) * len(self)
        return tuple(doubts(row, each) for row, each in zip(self.activations, seen, strict=True))

    @property
    def sure(self) -> npt.NDArray[np.bool_]:
        """Whether each answer is without warnings, (n,)."""
        return np.array([not each for each in self.warnings], np.bool_)

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, rows: int | slice) -> Predictions:
        """The answer for one image, n = 1, or for those of a slice."""
        if not isinstance(rows, slice):
            row = range(len(self))[rows]  # IndexError, and TypeError, as of any sequence
            rows = slice(row, row + 1)
        return Predictions(
            digits=self.digits[rows],
            activations=self.activations[rows],
            layer1=None if self.layer1 is None else self.layer1[rows],
            layer2=None if self.layer2 is None else self.layer2[rows],
            model_version=self.model_version,
            request_id=self.request_id,
            inspections=self.inspections[rows],
        )

    def __iter__(self) -> Iterator[Predictions]:
        return (self[row] for row in range(len(self)))


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why one neuron is as bright as it is on one image.

    The sum of `contributions`, of the pixels (784,) or neurons (16,) below, and `bias` is the neuron's sum. `gradient`
    (784,) is the derivative of its activation by each pixel's ink, 0..1.
    """

    layer: int
    index: int
    bias: float
    contributions: Floats
    gradient: Floats


@dataclass(frozen=True, eq=False)
class ExplainResult:
    """The answers for n images with all layers, the sums before activation, and the requested explanations.

    `sums` are (n, 16), (n, 16) and (n, 10); `explanations[i]` are those of image i, in the order of the question.
    """

    answers: Predictions
    sums: tuple[Floats, Floats, Floats]
    explanations: list[list[Explanation]]


@dataclass(frozen=True, eq=False)
class Network:
    """The network that serves: weights (out, in) and biases (out,) of its three layers, for ink 0..1.

    `activation` is the hidden layers' activation function, `sigmoid` or `relu`; `accuracy` is the share of the images
    of `accuracy_data` read correctly, as text.
    """

    name: str
    version: str
    activation: str
    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]
    accuracy: str
    accuracy_data: str
    weights_sha256: str


@dataclass(frozen=True)
class FieldViolation:
    """A field of the request that the server rejected, and the reason."""

    field: str
    description: str


class DigitsError(Exception):
    """The server did not answer: its status code, its message and details.

    `retry_after` is the delay of an overloaded server, in seconds; `request_id` identifies the call in its log.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        request_id: str = "",
        violations: tuple[FieldViolation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.request_id = request_id
        self.violations = violations
        self.retry_after = retry_after


def to_request(pixels: Pixels, *, include_hidden_layers: bool = False, model_version: str = "") -> PredictRequest:
    """Return the message for images as `pixels.to_bytes` accepts them; ValueError with the problem for others."""
    return PredictRequest(
        pixels=to_bytes(pixels), include_hidden_layers=include_hidden_layers, model_version=model_version
    )


def to_predictions(
    reply: PredictResponse | ExplainResponse, request_id: str, inspections: tuple[Inspection, ...] = ()
) -> Predictions:
    """Return the reply as arrays, with the findings on its pictures."""
    n = len(reply.digits)

    def layer(values: Any, width: int) -> Floats:
        return np.array(values, dtype=np.float32).reshape(n, width)

    return Predictions(
        digits=np.array(reply.digits, dtype=np.int64),
        activations=layer(reply.activations, 10),
        layer1=layer(reply.layer1, HIDDEN) if reply.layer1 else None,
        layer2=layer(reply.layer2, HIDDEN) if reply.layer2 else None,
        model_version=reply.model_version,
        request_id=request_id,
        inspections=inspections,
    )


def to_explain_request(
    pixels: Pixels, neurons: Iterable[tuple[int, int]] = (), *, model_version: str = ""
) -> ExplainRequest:
    """The message for images as in `to_request` and neurons as (layer 1 to 3, place in it); ValueError for others."""
    return ExplainRequest(pixels=to_bytes(pixels), neurons=map(_neuron, neurons), model_version=model_version)


def to_explain_result(
    reply: ExplainResponse, request_id: str, inspections: tuple[Inspection, ...] = ()
) -> ExplainResult:
    """The reply as arrays."""
    answers = to_predictions(reply, request_id, inspections)
    n = len(answers.digits)
    sums = [np.array(s, np.float32).reshape(n, -1) for s in (reply.sums1, reply.sums2, reply.sums3)]
    each = [
        Explanation(
            e.neuron.layer,
            e.neuron.index,
            e.bias,
            np.array(e.contributions, np.float32),
            np.array(e.gradient, np.float32),
        )
        for e in reply.explanations
    ]
    per_image = len(each) // n
    return ExplainResult(
        answers, (sums[0], sums[1], sums[2]), [each[i * per_image : (i + 1) * per_image] for i in range(n)]
    )


def to_network(reply: GetNetworkResponse) -> Network:
    """The reply as arrays."""
    biases = tuple(np.array(layer.biases, np.float32) for layer in reply.layers)
    weights = (np.array(layer.weights, np.float32) for layer in reply.layers)
    return Network(
        name=reply.name,
        version=reply.version,
        activation=reply.activation,
        weights=tuple(w.reshape(len(b), -1) for w, b in zip(weights, biases, strict=True)),
        biases=biases,
        accuracy=reply.accuracy,
        accuracy_data=reply.accuracy_data,
        weights_sha256=reply.weights_sha256,
    )


def to_error(error: Any, request_id: str = "", *, message: str) -> DigitsError:
    """Return the error of a call (grpc.RpcError, of either API) with its message and unpacked details."""
    violations: list[FieldViolation] = []
    retry_after = None
    for detail in _details(error):
        bad, retry = BadRequest(), RetryInfo()
        if detail.Unpack(bad):
            violations += [FieldViolation(v.field, v.description) for v in bad.field_violations]
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToMilliseconds() / 1000
    return DigitsError(
        error.code(),
        message,
        request_id=request_id,
        violations=tuple(violations),
        retry_after=retry_after,
    )


def _details(error: Any) -> Any:
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):  # a proxy added its own code to the server's details
        return ()
    return status.details if status else ()


def new_request_id() -> str:
    """An id to find a call by, in the server's log too."""
    return uuid.uuid4().hex


def _neuron(neuron: tuple[int, int]) -> Neuron:
    try:
        layer, index = neuron
        return Neuron(layer=layer, index=index)
    except (TypeError, ValueError):  # protobuf's error for a number too large
        raise ValueError(f"neurons holds {neuron!r}; expected (layer 1 to 3, place in it)") from None
