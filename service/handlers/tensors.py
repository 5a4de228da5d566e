"""The tensors of the Open Inference Protocol: pixels from a request, predictions into a response."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from service.errors import InvalidInput
from service.handlers.predictor import echo
from service.network import PIXELS
from service.pb.inference.open_inference_pb2 import InferTensorContents, ModelInferResponse

if TYPE_CHECKING:
    from service.handlers.predictor import Predictor
    from service.network import Pixels, Predictions
    from service.pb.inference.open_inference_pb2 import ModelInferRequest

INPUT = "pixels"


class Output(NamedTuple):
    """One output tensor: its datatype, its numpy type on the wire, its dimensions after that of the images."""

    datatype: str
    wire: str
    dims: tuple[int, ...]


OUTPUTS = {
    "activations": Output("FP32", "<f4", (10,)),
    "digit": Output("INT64", "<i8", ()),
    "layer1": Output("FP32", "<f4", (16,)),
    "layer2": Output("FP32", "<f4", (16,)),
}

_INPUT_BYTES = {"UINT8": 1, "FP32": 4}
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_UNSUPPORTED = {"shared_memory_region": "shared memory", "classification": "classification"}


def to_pixels(request: ModelInferRequest, predictor: Predictor) -> Pixels:
    """Read the only input as (n, 784) uint8; raises InvalidInput."""
    if len(request.inputs) != 1 or request.inputs[0].name != INPUT:
        names = ", ".join(echo(tensor.name) for tensor in request.inputs[:4]) or "none"
        raise InvalidInput("inputs", f"are {len(request.inputs)} ({names}); expected one, {INPUT!r}")
    tensor = request.inputs[0]
    _reject_unsupported(INPUT, tensor.parameters)
    if tensor.datatype not in _INPUT_BYTES:
        raise InvalidInput(INPUT, f"has datatype {echo(tensor.datatype)}; expected 'UINT8' or 'FP32'")
    shape = list(tensor.shape)
    if len(shape) != 2 or shape[1] != PIXELS or not 1 <= shape[0] <= predictor.max_batch_size:
        raise InvalidInput(
            INPUT, f"has shape {shape[:8]}; expected [n, {PIXELS}], n from 1 to {predictor.max_batch_size}"
        )
    values = _read_raw(request, shape[0]) if request.raw_input_contents else _read_typed(tensor, shape[0])
    return predictor.view_images(values, INPUT)


def is_typed(request: ModelInferRequest) -> bool:
    """Check whether the values are in `contents`; the response then has its values there too."""
    return not request.raw_input_contents


def requested_outputs(request: ModelInferRequest) -> list[str]:
    """Return the names of the requested outputs in order; all outputs if the request names none."""
    for output in request.outputs:
        if output.name not in OUTPUTS:
            raise InvalidInput("outputs", f"has {echo(output.name)}; expected some of {', '.join(OUTPUTS)}")
        _reject_unsupported(output.name, output.parameters)
    names = [output.name for output in request.outputs]
    if len(set(names)) != len(names):
        raise InvalidInput("outputs", "names an output twice; expected each at most once")
    return names or list(OUTPUTS)


def add_outputs(response: ModelInferResponse, predictions: Predictions, names: list[str], *, typed: bool) -> None:
    """Add outputs to the response, as typed contents or as raw bytes."""
    for name in names:
        output, values = OUTPUTS[name], getattr(predictions, name)
        tensor = response.outputs.add(name=name, datatype=output.datatype, shape=values.shape)
        if typed:
            getattr(tensor.contents, _CONTENTS[output.datatype]).extend(values.ravel().tolist())
        else:
            response.raw_output_contents.append(values.astype(output.wire, copy=False).tobytes())


def _read_raw(request: ModelInferRequest, images: int) -> bytes:
    if len(request.raw_input_contents) != 1 or request.inputs[0].HasField("contents"):
        raise InvalidInput(
            "raw_input_contents",
            f"has {len(request.raw_input_contents)} entries; expected one for each input, and then no `contents`",
        )
    width = _INPUT_BYTES[request.inputs[0].datatype]
    data, expected = request.raw_input_contents[0], images * PIXELS * width
    if len(data) != expected:
        raise InvalidInput(INPUT, f"has {len(data)} raw bytes; expected {expected} for shape [{images}, {PIXELS}]")
    return data if width == 1 else _quantize(np.frombuffer(data, dtype="<f4"))


def _read_typed(tensor: ModelInferRequest.InferInputTensor, images: int) -> bytes:
    field = _CONTENTS[tensor.datatype]
    filled = [name for name in InferTensorContents.DESCRIPTOR.fields_by_name if getattr(tensor.contents, name)]
    if filled not in ([], [field]):
        raise InvalidInput(INPUT, f"has values in {', '.join(filled)}; expected {field} for {tensor.datatype}")
    values = getattr(tensor.contents, field)
    if len(values) != images * PIXELS:
        raise InvalidInput(
            INPUT, f"has {len(values)} values in {field}; expected {images * PIXELS} for shape [{images}, {PIXELS}]"
        )
    if tensor.datatype == "FP32":
        return _quantize(np.array(values, dtype=np.float32))
    wide = np.array(values, dtype=np.int64)
    if wide.max() > 255:
        raise InvalidInput(INPUT, f"has the value {wide.max()}; expected UINT8, 0 to 255")
    return wide.astype(np.uint8).tobytes()


def _quantize(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    """Round brightness 0 to 1 to the nearest 1/255, which restores uint8 pixels that were divided by 255."""
    minimum, maximum = values.min(), values.max()
    if not (minimum >= 0.0 and maximum <= 1.0):  # false for NaN too
        wrong = minimum if not minimum >= 0.0 else maximum
        expected = "FP32 pixels from 0 to 1; divide by 255, or send UINT8"
        raise InvalidInput(INPUT, f"has the value {wrong!s}; expected {expected}")
    nearest: Pixels = np.rint(values * np.float32(255)).astype(np.uint8)
    return nearest.tobytes()


def _reject_unsupported(name: str, parameters: object) -> None:
    for key, feature in _UNSUPPORTED.items():
        if key in parameters:  # type: ignore[operator] # a protobuf map
            raise InvalidInput(name, f"{feature} ({key}) is not supported by this server")
