"""The Open Inference Protocol over HTTP: each request becomes the gRPC message of its RPC, each response JSON again.

https://github.com/kserve/open-inference-protocol describes the JSON, and
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md binary tensors.
"""

from __future__ import annotations

from collections.abc import MutableMapping, MutableSequence
from typing import TYPE_CHECKING, Any

import numpy as np

from service.errors import InvalidInput
from service.handlers.tensors import OUTPUTS
from service.pb.inference import open_inference_pb2 as pb
from service.transports.http.body import parse_json
from service.transports.http.errors import Response, encode_json
from service.transports.http.values import expect, flatten, get

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

JSON_LENGTH = "inference-header-content-length"
"""The header with the length of the JSON before the bytes of binary tensors."""

_CONTENTS = {"UINT8": "uint_contents", "FP32": "fp32_contents"}
_INT64 = range(-(2**63), 2**63)


class InferRequest:
    """A request as the handler reads it, `message`, and which outputs the client wants as binary tensors."""

    def __init__(self, message: pb.ModelInferRequest, binary_outputs: Collection[str], *, binary: bool) -> None:
        self.message = message
        self._binary_outputs = binary_outputs
        self._binary = binary

    def encode(self, response: pb.ModelInferResponse) -> Response:
        """Make the HTTP response."""
        outputs, chunks = [], []
        for index, tensor in enumerate(response.outputs):
            values = _output_values(response, index)
            output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": [*tensor.shape]}
            if tensor.name in self._binary_outputs or (self._binary and not self.message.outputs):
                chunks.append(values.tobytes())
                output["parameters"] = {"binary_data_size": len(chunks[-1])}
            else:
                output["data"] = values.tolist()
            outputs.append(output)
        document: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
        if response.id:
            document["id"] = response.id
        text = encode_json({**document, "outputs": outputs}).encode()
        if not chunks:
            return Response(text)
        header = (("Inference-Header-Content-Length", str(len(text))),)
        return Response(b"".join([text, *chunks]), content_type="application/octet-stream", headers=header)


def decode_infer(body: bytes, headers: Mapping[str, str], model: str, version: str) -> InferRequest:
    """Read an infer request; raises InvalidInput or HttpError."""
    text, tail = _split(body, headers.get(JSON_LENGTH))
    document = expect(dict, parse_json(text), "body")
    message = pb.ModelInferRequest(model_name=model, model_version=version, id=get(document, "id", str, ""))
    parameters = get(document, "parameters", dict, {})
    binary = get(parameters, "binary_data_output", bool, False, "parameters.")
    _set_parameters(message.parameters, parameters, "binary_data_output")
    rest = memoryview(tail)
    for value in get(document, "inputs", list, []):
        rest = _add_input(message, expect(dict, value, "inputs"), rest)
    if rest:
        raise InvalidInput("body", f"has {len(rest)} bytes after its tensors; expected the sizes in binary_data_size")
    return InferRequest(message, _add_outputs(message, get(document, "outputs", list, []), binary), binary=binary)


def _split(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    if length is None:
        return body, b""
    if not (length.isascii() and length.isdecimal() and len(length) <= 18 and int(length) <= len(body)):
        raise InvalidInput(JSON_LENGTH, f"is {length[:32]!r}; expected the length of the JSON, at most {len(body)}")
    return body[: int(length)], body[int(length) :]


def _add_input(message: pb.ModelInferRequest, document: dict[str, Any], rest: memoryview) -> memoryview:
    """Add an input tensor; return the bytes of the binary tensors after it."""
    name = get(document, "name", str, "", "inputs.")
    datatype = get(document, "datatype", str, "", "inputs.")
    tensor = message.inputs.add(name=name, datatype=datatype)
    shape = get(document, "shape", list, [], "inputs.")
    if not all(type(size) is int and size in _INT64 for size in shape):
        raise InvalidInput("inputs.shape", "has an element that is not an integer of 64 bits")
    tensor.shape.extend(shape)
    parameters = get(document, "parameters", dict, {}, "inputs.")
    _set_parameters(tensor.parameters, parameters, "binary_data_size")
    field = _CONTENTS.get(datatype)
    data = flatten(get(document, "data", list, [], "inputs."), name or "inputs")
    if data and field:
        try:
            getattr(tensor.contents, field).extend(data)
        except (TypeError, ValueError):
            raise InvalidInput(name, f"has data that is not {datatype}") from None
    if (size := get(parameters, "binary_data_size", int, -1, "inputs.parameters.")) < 0:
        return rest
    if size > len(rest):
        raise InvalidInput("binary_data_size", f"is {size}; expected at most the {len(rest)} bytes in the body")
    message.raw_input_contents.append(bytes(rest[:size]))
    return rest[size:]


def _add_outputs(message: pb.ModelInferRequest, outputs: list[Any], binary: bool) -> set[str]:
    """Add the requested outputs; return the names of those that the client wants as binary tensors."""
    names = set()
    for value in outputs:
        document = expect(dict, value, "outputs")
        parameters = get(document, "parameters", dict, {}, "outputs.")
        output = message.outputs.add(name=get(document, "name", str, "", "outputs."))
        if get(parameters, "binary_data", bool, binary, "outputs.parameters."):
            names.add(output.name)
        _set_parameters(output.parameters, parameters, "binary_data")
    return names


def _set_parameters(target: Any, parameters: dict[str, Any], transport_parameter: str) -> None:
    for key, value in parameters.items():
        if key == transport_parameter:
            continue
        if type(value) is bool:
            target[key].bool_param = value
        elif type(value) is int and value in _INT64:
            target[key].int64_param = value
        elif type(value) is float:
            target[key].double_param = value
        elif type(value) is str:
            target[key].string_param = value
        else:
            raise InvalidInput("parameters", "has a value that is not a string, number or boolean")


def _output_values(response: pb.ModelInferResponse, index: int) -> np.ndarray[Any, Any]:
    tensor = response.outputs[index]
    wire = OUTPUTS[tensor.name].wire
    if response.raw_output_contents:
        return np.frombuffer(response.raw_output_contents[index], wire)
    contents = tensor.contents
    return np.array(contents.fp32_contents or contents.int64_contents, wire)


def to_json(message: Any) -> dict[str, Any]:
    """Convert a protobuf message to JSON as Triton does: field names of the proto, integers as numbers."""
    return {field.name: _convert(getattr(message, field.name), field) for field in message.DESCRIPTOR.fields}


def _convert(value: Any, field: Any) -> Any:
    if isinstance(value, MutableMapping):
        of_value = field.message_type.fields_by_name["value"]
        return {key: _convert(value[key], of_value) for key in value}
    if isinstance(value, MutableSequence):
        return [_convert(item, field) for item in value]
    if field.message_type is not None:
        return to_json(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return value
