"""The messages that are sent and how their replies are read, by each protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from service.pb.digits.v1.digits_pb2 import PredictRequest, PredictResponse
from service.pb.inference.open_inference_pb2 import ModelInferRequest, ModelInferResponse

if TYPE_CHECKING:
    import numpy.typing as npt

SAMPLES = Path(__file__).parent.parent / "samples"
PREDICT = "/digits.v1.DigitService/Predict"
PREDICT_STREAM = "/digits.v1.DigitService/PredictStream"
INFER = "/inference.GRPCInferenceService/ModelInfer"


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
    for name in ("digit", "activations"):
        request.outputs.add(name=name)
    return request.SerializeToString()


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


def framed(message: bytes) -> bytes:
    """A message as gRPC sends it over HTTP/2: a byte for compression, four for its length, and itself."""
    return b"\0" + len(message).to_bytes(4) + message
