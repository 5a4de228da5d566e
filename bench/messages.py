"""The messages that are sent and how their replies are read, by each protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service.pb.digits.v1.digits_pb2 import PredictRequest, PredictResponse
from service.pb.inference.open_inference_pb2 import ModelInferRequest, ModelInferResponse

if TYPE_CHECKING:
    import numpy.typing as npt

SAMPLES = Path(__file__).parent.parent / "samples"
PREDICT = "/digits.v1.DigitService/Predict"
PREDICT_STREAM = "/digits.v1.DigitService/PredictStream"
INFER = "/inference.GRPCInferenceService/ModelInfer"
HTTP_INFER = "/v2/models/digits/infer"
OUTPUTS = ("digit", "activations")
"""Those of Predict."""


def sample_images(count: int) -> npt.NDArray[np.uint8]:
    """So many real digits (count, 784), the 100 samples repeated."""
    pixels = np.frombuffer((SAMPLES / "digits-100-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    return np.resize(pixels.reshape(-1, 784), (count, 784))


def predict_request(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A digits.v1.PredictRequest for images (n, 784)."""
    return PredictRequest(pixels=pixels.tobytes()).SerializeToString()


def infer_request(pixels: npt.NDArray[np.uint8]) -> bytes:
    """The same images as tritonclient would send them, with the outputs of Predict."""
    request = ModelInferRequest(model_name="digits", raw_input_contents=[pixels.tobytes()])
    request.inputs.add(name="pixels", datatype="UINT8", shape=pixels.shape)
    for name in OUTPUTS:
        request.outputs.add(name=name)
    return request.SerializeToString()


def http_infer_request(pixels: npt.NDArray[np.uint8]) -> bytes:
    """The same over HTTP, as the binary tensor extension has it: JSON, then the pixels."""
    parameters = {"binary_data_size": pixels.nbytes}
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": pixels.shape, "parameters": parameters}
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in OUTPUTS]
    return json.dumps({"inputs": [tensor], "outputs": outputs}).encode() + pixels.tobytes()


def http_infer_headers(request: bytes) -> dict[str, str]:
    """The headers that this request needs."""
    length = str(_json_and_length(request)[1])
    return {"content-type": "application/octet-stream", "inference-header-content-length": length}


def read_predict(reply: bytes) -> int:
    """The first digit of a PredictResponse."""
    return int(PredictResponse.FromString(reply).digits[0])


def read_infer(reply: bytes) -> int:
    """The first digit of a ModelInferResponse, raw or typed."""
    message = ModelInferResponse.FromString(reply)
    index = next(i for i, output in enumerate(message.outputs) if output.name == "digit")
    if message.raw_output_contents:
        return int.from_bytes(message.raw_output_contents[index][:8], "little")
    return int(message.outputs[index].contents.int64_contents[0])


def read_http_infer(reply: bytes) -> int:
    """The first digit of a reply over HTTP, binary or JSON."""
    document, start = _json_and_length(reply)
    for output in document["outputs"]:
        size = (output.get("parameters") or {}).get("binary_data_size", 0)
        if output["name"] == "digit":
            return int.from_bytes(reply[start : start + 8], "little") if size else int(output["data"][0])
        start += size
    raise ValueError(f"no output 'digit' in {document}")


def _json_and_length(body: bytes) -> tuple[dict[str, Any], int]:
    """The JSON at the start of a body, and its length: one byte is one character, for all of it is ASCII."""
    document, length = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    return document, length


def framed(message: bytes) -> bytes:
    """A message as gRPC sends it over HTTP/2: a byte for compression, four for its length, and itself."""
    return b"\0" + len(message).to_bytes(4) + message
