"""What goes over the wire and comes back, the same for the sync and the async client: requests, replies, errors."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from grpc_status import rpc_status

from service.pb.digits.v1.digits_pb2 import PredictRequest

if TYPE_CHECKING:
    import grpc

    from service.pb.digits.v1.digits_pb2 import PredictResponse

PIXELS = 784
HIDDEN = 16
REQUEST_ID = "x-request-id"
SERVICE = "digits.v1.DigitService"

Pixels = npt.NDArray[np.uint8] | bytes
Floats = npt.NDArray[np.float32]

CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A server that comes up is found within seconds; gRPC's own pause grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # The server permits a ping every 10 s; a vanished server is noticed within 40.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    (
        "grpc.service_config",
        json.dumps(
            {
                # All addresses of a name are used, those that say NOT_SERVING left out.
                "loadBalancingConfig": [{"round_robin": {}}],
                "healthCheckConfig": {"serviceName": SERVICE},
                "methodConfig": [
                    {
                        "name": [{"service": SERVICE}],
                        # Predicting twice does no harm, so what met no server is asked again. An overloaded server
                        # is not asked again at once: its RetryInfo is handed to the caller instead.
                        "retryPolicy": {
                            "maxAttempts": 4,
                            "initialBackoff": "0.05s",
                            "maxBackoff": "1s",
                            "backoffMultiplier": 2,
                            "retryableStatusCodes": ["UNAVAILABLE"],
                        },
                    }
                ],
            }
        ),
    ),
]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers for n images: digits (n,), activations (n, 10) in 0..1; the hidden layers (n, 16) if asked for."""

    digits: npt.NDArray[np.int64]
    activations: Floats
    layer1: Floats | None
    layer2: Floats | None
    model_version: str
    request_id: str

    def __getitem__(self, row: int) -> Predictions:
        """The answer for that image alone, n = 1."""
        return Predictions(
            digits=self.digits[row, None],
            activations=self.activations[row, None],
            layer1=None if self.layer1 is None else self.layer1[row, None],
            layer2=None if self.layer2 is None else self.layer2[row, None],
            model_version=self.model_version,
            request_id=self.request_id,
        )


@dataclass(frozen=True)
class FieldViolation:
    """A field of the request that the server refused, and why."""

    field: str
    description: str


class DigitsError(Exception):
    """The server did not answer: its status code, its sentence and what else it said.

    `retry_after` is in seconds, where an overloaded server named a time; `request_id` finds the call in its log.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        sentence: str,
        *,
        request_id: str = "",
        violations: tuple[FieldViolation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{code.name}: {sentence}")
        self.code = code
        self.sentence = sentence
        self.request_id = request_id
        self.violations = violations
        self.retry_after = retry_after


def checked(address: str) -> str:
    """The address; ValueError where gRPC would log a fault of its own instead."""
    if not address.strip():
        raise ValueError(f"address is {address!r}; expected host:port")
    return address


def to_request(pixels: Pixels, *, include_hidden_layers: bool = False, model_version: str = "") -> PredictRequest:
    """The message for images given as uint8 (n, 784), (n, 28, 28), (784,) or (28, 28), or as their bytes.

    Raises ValueError, naming type and shape, for anything else.
    """
    return PredictRequest(
        pixels=_image_bytes(pixels), include_hidden_layers=include_hidden_layers, model_version=model_version
    )


def to_predictions(reply: PredictResponse, request_id: str) -> Predictions:
    """The reply as arrays."""
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
    )


def to_error(error: Any, request_id: str = "") -> DigitsError:
    """The error of a call (grpc.RpcError, of either API) with its details unpacked."""
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
        error.details() or "no reason given",
        request_id=request_id,
        violations=tuple(violations),
        retry_after=retry_after,
    )


def _details(error: Any) -> Any:
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):  # a proxy put its own code beside the server's details
        return ()
    return status.details if status else ()


def new_request_id() -> str:
    """An id to find a call by, in the server's log too."""
    return uuid.uuid4().hex


def _image_bytes(pixels: Pixels) -> bytes:
    if isinstance(pixels, bytes):
        if not pixels or len(pixels) % PIXELS:
            raise ValueError(f"pixels holds {len(pixels)} bytes; expected n x {PIXELS}, n at least 1")
        return pixels
    array = np.asarray(pixels)
    rows, squares = array.shape[-1:] == (PIXELS,), array.shape[-2:] == (28, 28)
    shaped = (rows and array.ndim <= 2) or (squares and array.ndim <= 3)
    if array.dtype != np.uint8 or not shaped or not array.size:
        raise ValueError(
            f"pixels is {array.dtype}{list(array.shape)}; expected uint8, [n, 784], [n, 28, 28] or one image of these"
        )
    return array.tobytes()
