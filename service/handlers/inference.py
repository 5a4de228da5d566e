"""inference.GRPCInferenceService, the Open Inference Protocol, which the clients of Triton and KServe speak."""

from __future__ import annotations

import time
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from service.errors import InvalidInput, ServiceError
from service.handlers import Alternative, tensors
from service.handlers.messages import parse
from service.handlers.predictor import echo
from service.pb.inference import open_inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from service.handlers import BatchHandler, MessageHandler
    from service.handlers.metadata import MetadataHandler
    from service.handlers.predictor import Predictor
    from service.handlers.shared_memory import Placement, SharedMemoryRegions
    from service.network import ModelInfo, Pixels, Predictions

ERROR_STATUS = ("triton_grpc_error", "true")
"""The metadata entry of a stream that ends with a gRPC status at its first error; as in Triton."""


class InferenceHandler:
    """A `service.handlers.Service` over one predictor; `metadata` answers the RPCs that run no model."""

    def __init__(
        self, predictor: Predictor, metadata: MetadataHandler, regions: SharedMemoryRegions | None = None
    ) -> None:
        self._predictor = predictor
        self._regions = regions
        self.name: str = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
        self.unary: Mapping[str, MessageHandler] = {"ModelInfer": self.infer, **metadata.unary}
        self.streams: Mapping[str, MessageHandler] = {"ModelStreamInfer": self.infer_in_stream}
        self.batches: Mapping[str, BatchHandler] = {"ModelStreamInfer": self.infer_batch}
        error_status = Alternative(*ERROR_STATUS, self.infer_in_stream_or_raise)
        self.alternatives: Mapping[str, Alternative] = {"ModelStreamInfer": error_status}

    async def infer(self, request: bytes, deadline: float = float("inf")) -> bytes:
        """Answer a serialised ModelInferRequest with a serialised ModelInferResponse; raises ServiceError."""
        return await self._infer(request, deadline, pb.ModelInferResponse.SerializeToString)

    async def infer_in_stream(self, request: bytes, deadline: float = float("inf")) -> bytes:
        """Answer a message of a stream; a ServiceError becomes an error reply, and the stream continues."""
        try:
            return await self._infer(request, deadline, _serialize_in_stream)
        except ServiceError as error:
            reply = _mark_final(pb.ModelInferResponse(id=_parse_id(request)))
            return pb.ModelStreamInferResponse(error_message=str(error), infer_response=reply).SerializeToString()

    async def infer_in_stream_or_raise(self, request: bytes, deadline: float = float("inf")) -> bytes:
        """Answer a message of a stream that ends at its first ServiceError, with the error's status."""
        return await self._infer(request, deadline, _serialize_in_stream)

    def infer_batch(self, requests: Sequence[bytes], deadline: float = float("inf")) -> list[bytes] | None:
        """Answer several messages of a stream; None unless all are valid, the model is idle and no output is placed."""
        predictor = self._predictor
        with predictor.time_batch(len(requests)) as timer:
            info = predictor.info
            try:
                decoded = [self._decode(request) for request in requests]
            except ServiceError:
                return None
            if any(request.placements for request in decoded):
                return None
            sizes = [len(request.pixels) for request in decoded]
            pixels = np.concatenate([request.pixels for request in decoded])
            timer.decoded(len(pixels))
            earliest = min(deadline, *(request.deadline for request in decoded))
            if (predictions := predictor.run_batch(pixels, len(requests), earliest)) is None:
                return None
            timer.predicted()
            return [
                _serialize_in_stream(request.encode(predictions.rows(stop - size, stop), info))
                for request, size, stop in zip(decoded, sizes, accumulate(sizes), strict=True)
            ]

    async def _infer(
        self, request: bytes, deadline: float, serialize: Callable[[pb.ModelInferResponse], bytes]
    ) -> bytes:
        predictor = self._predictor
        with predictor.time_request() as timer:
            info = predictor.info
            decoded = self._decode(request)
            timer.decoded(len(decoded.pixels))
            predictions = await predictor.predict(decoded.pixels, min(deadline, decoded.deadline))
            timer.predicted()
            if decoded.placements and self._regions is not None:
                tensors.write_outputs(self._regions, decoded.placements, predictions)
            return serialize(decoded.encode(predictions, info))

    def _decode(self, request: bytes) -> _InferRequest:
        message = parse(pb.ModelInferRequest, request)
        self._predictor.check_model(message.model_name, message.model_version)
        _check_empty_final(message)
        outputs = tensors.requested_outputs(message, self._regions)
        pixels = tensors.to_pixels(message, self._predictor, self._regions)
        placements = tensors.output_placements(message, len(pixels), self._regions)
        typed, deadline = tensors.is_typed(message), _parse_timeout(message)
        return _InferRequest(message.id, pixels, outputs, placements, typed, deadline)


class _InferRequest(NamedTuple):
    """A valid ModelInferRequest: its images, the outputs to return, and the deadline of its `timeout` parameter."""

    id: str
    pixels: Pixels
    outputs: list[str]
    placements: Mapping[str, Placement]
    """Of the outputs that go into shared memory."""
    typed: bool
    deadline: float

    def encode(self, predictions: Predictions, info: ModelInfo) -> pb.ModelInferResponse:
        """Make the response, given the predictions and the model that made them."""
        response = pb.ModelInferResponse(model_name=info.name, model_version=info.version, id=self.id)
        tensors.add_outputs(response, predictions, self.outputs, typed=self.typed, placed=self.placements)
        return response


def _serialize_in_stream(response: pb.ModelInferResponse) -> bytes:
    return pb.ModelStreamInferResponse(infer_response=_mark_final(response)).SerializeToString()


def _mark_final(response: pb.ModelInferResponse) -> pb.ModelInferResponse:
    """Mark the only response to a message of a stream as its last, which clients of decoupled models wait for."""
    response.parameters["triton_final_response"].bool_param = True
    return response


def _parse_id(request: bytes) -> str:
    """Return the id of a rejected request; empty for bytes that are not a message."""
    try:
        return pb.ModelInferRequest.FromString(request).id
    except DecodeError:
        return ""


def _check_empty_final(request: pb.ModelInferRequest) -> None:
    """Reject the types that Triton rejects; the parameter has no effect on a model with one response a request."""
    name = "triton_enable_empty_final_response"
    if name in request.parameters and request.parameters[name].WhichOneof("parameter_choice") != "bool_param":
        raise InvalidInput(name, "is no bool_param; expected true or false")


def _parse_timeout(request: pb.ModelInferRequest) -> float:
    """Return the deadline of the `timeout` parameter, which is in microseconds, on the clock of `time.monotonic`."""
    if "timeout" not in request.parameters:
        return float("inf")
    timeout = request.parameters["timeout"]
    kind = timeout.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param") or getattr(timeout, kind) < 0:
        value = getattr(timeout, kind) if kind else "nothing"
        raise InvalidInput("timeout", f"is {echo(str(value))}; expected microseconds, an int64 of at least 0")
    microseconds = getattr(timeout, kind)
    return time.monotonic() + microseconds / 1e6 if microseconds else float("inf")
