"""The tensors of the Open Inference Protocol: pixels from a request, predictions into a response."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from service.errors import InvalidInput
from service.handlers.predictor import echo
from service.handlers.shared_memory import UNAVAILABLE, Placement
from service.network import PIXELS
from service.pb.inference.open_inference_pb2 import InferTensorContents, ModelInferResponse

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from service.handlers.predictor import Predictor
    from service.handlers.shared_memory import SharedMemoryRegions
    from service.network import Pixels, Predictions
    from service.pb.inference.open_inference_pb2 import ModelInferRequest

INPUT = "pixels"


class Output(NamedTuple):
    """One output tensor: its datatype, its numpy type on the wire, its dimensions after that of the images."""

    datatype: str
    wire: str
    dims: tuple[int, ...]

    def byte_size(self, images: int) -> int:
        """Bytes of the output of so many images."""
        return images * math.prod(self.dims) * np.dtype(self.wire).itemsize


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
_REGION, _REGION_OFFSET, _REGION_SIZE = "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"


def to_pixels(request: ModelInferRequest, predictor: Predictor, regions: SharedMemoryRegions | None) -> Pixels:
    """Read the only input as (n, 784) uint8; raises InvalidInput."""
    if len(request.inputs) != 1 or request.inputs[0].name != INPUT:
        names = ", ".join(echo(tensor.name) for tensor in request.inputs[:4]) or "none"
        raise InvalidInput("inputs", f"are {len(request.inputs)} ({names}); expected one, {INPUT!r}")
    tensor = request.inputs[0]
    _reject_unsupported(INPUT, tensor.parameters, regions)
    if tensor.datatype not in _INPUT_BYTES:
        raise InvalidInput(INPUT, f"has datatype {echo(tensor.datatype)}; expected 'UINT8' or 'FP32'")
    shape = list(tensor.shape)
    if len(shape) != 2 or shape[1] != PIXELS or not 1 <= shape[0] <= predictor.max_batch_size:
        raise InvalidInput(
            INPUT, f"has shape {shape[:8]}; expected [n, {PIXELS}], n from 1 to {predictor.max_batch_size}"
        )
    if _REGION in tensor.parameters:
        values = _read_region(request, shape[0], regions)
    elif request.raw_input_contents:
        values = _read_raw(request, shape[0])
    else:
        values = _read_typed(tensor, shape[0])
    return predictor.view_images(values, INPUT)


def is_typed(request: ModelInferRequest) -> bool:
    """Check whether the values are in `contents`; the response then has its values there too."""
    return not request.raw_input_contents and _REGION not in request.inputs[0].parameters


def requested_outputs(request: ModelInferRequest, regions: SharedMemoryRegions | None) -> list[str]:
    """Return the names of the requested outputs in order; all outputs if the request names none."""
    for output in request.outputs:
        if output.name not in OUTPUTS:
            raise InvalidInput("outputs", f"has {echo(output.name)}; expected some of {', '.join(OUTPUTS)}")
        _reject_unsupported(output.name, output.parameters, regions)
    names = [output.name for output in request.outputs]
    if len(set(names)) != len(names):
        raise InvalidInput("outputs", "names an output twice; expected each at most once")
    return names or list(OUTPUTS)


def output_placements(
    request: ModelInferRequest, images: int, regions: SharedMemoryRegions | None
) -> dict[str, Placement]:
    """Return the places of the outputs that the client requests in shared memory; InvalidInput if they do not fit."""
    placements = {}
    for output in request.outputs:
        if _REGION in output.parameters:
            placement = _placement(output.name, output.parameters)
            _require(output.name, regions).check(output.name, placement, OUTPUTS[output.name].byte_size(images))
            placements[output.name] = placement
    return placements


def write_outputs(regions: SharedMemoryRegions, placements: Mapping[str, Placement], predictions: Predictions) -> None:
    """Write outputs into shared memory."""
    for name, placement in placements.items():
        regions.write(name, placement, getattr(predictions, name).astype(OUTPUTS[name].wire, copy=False).tobytes())


def add_outputs(
    response: ModelInferResponse,
    predictions: Predictions,
    names: list[str],
    *,
    typed: bool,
    placed: Collection[str] = (),
) -> None:
    """Add outputs to the response, as typed contents or as raw bytes; the values of those in `placed` are elsewhere."""
    for name in names:
        output, values = OUTPUTS[name], getattr(predictions, name)
        tensor = response.outputs.add(name=name, datatype=output.datatype, shape=values.shape)
        if name in placed:
            if not typed:
                response.raw_output_contents.append(b"")
        elif typed:
            getattr(tensor.contents, _CONTENTS[output.datatype]).extend(values.ravel().tolist())
        else:
            response.raw_output_contents.append(values.astype(output.wire, copy=False).tobytes())


def _read_raw(request: ModelInferRequest, images: int) -> bytes:
    if len(request.raw_input_contents) != 1 or request.inputs[0].HasField("contents"):
        raise InvalidInput(
            "raw_input_contents",
            f"has {len(request.raw_input_contents)} entries; expected one for each input, and then no `contents`",
        )
    return _convert_raw(request.raw_input_contents[0], images, request.inputs[0].datatype)


def _read_region(request: ModelInferRequest, images: int, regions: SharedMemoryRegions | None) -> bytes:
    tensor = request.inputs[0]
    if request.raw_input_contents or tensor.HasField("contents"):
        raise InvalidInput(INPUT, f"has values in the request too; expected none with {_REGION}")
    placement = _placement(INPUT, tensor.parameters)
    _check_size(placement.byte_size, images, tensor.datatype)  # before the bytes are read
    return _convert_raw(_require(INPUT, regions).read(INPUT, placement), images, tensor.datatype)


def _convert_raw(data: bytes, images: int, datatype: str) -> bytes:
    _check_size(len(data), images, datatype)
    return data if datatype == "UINT8" else _quantize(np.frombuffer(data, dtype="<f4"))


def _check_size(size: int, images: int, datatype: str) -> None:
    expected = images * PIXELS * _INPUT_BYTES[datatype]
    if size != expected:
        raise InvalidInput(INPUT, f"has {size} raw bytes; expected {expected} for shape [{images}, {PIXELS}]")


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


def _placement(name: str, parameters: Any) -> Placement:
    """Read the parameters of a tensor in shared memory."""
    region = parameters[_REGION]
    if region.WhichOneof("parameter_choice") != "string_param":
        raise InvalidInput(name, f"has no text as {_REGION}; expected the name of a region")
    size, offset = _natural(name, _REGION_SIZE, parameters), 0
    if _REGION_OFFSET in parameters:
        offset = _natural(name, _REGION_OFFSET, parameters)
    return Placement(region.string_param, offset, size)


def _natural(name: str, key: str, parameters: Any) -> int:
    kind = parameters[key].WhichOneof("parameter_choice") if key in parameters else None
    if kind not in ("int64_param", "uint64_param") or getattr(parameters[key], kind) < 0:
        raise InvalidInput(name, f"has no valid {key}; expected an int64 of at least 0")
    return int(getattr(parameters[key], kind))


def _require(name: str, regions: SharedMemoryRegions | None) -> SharedMemoryRegions:
    if regions is None:
        raise InvalidInput(name, f"shared memory ({_REGION}) {UNAVAILABLE}")
    return regions


def _reject_unsupported(name: str, parameters: object, regions: SharedMemoryRegions | None) -> None:
    if _REGION in parameters:  # type: ignore[operator] # a protobuf map
        _require(name, regions)
    if "classification" in parameters:  # type: ignore[operator] # as above
        raise InvalidInput(name, "classification (classification) is not supported by this server")
