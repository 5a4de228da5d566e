"""The same model.onnx as an MLServer runtime, raw contents in and out."""

from __future__ import annotations

import os

import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

OUTPUTS = ("digit", "activations")


class Digits(MLModel):
    """The model of MLServer, by the name in model-settings.json."""

    async def load(self) -> bool:
        """Load the model, with the options that digitserve uses."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer one request."""
        pixels = NumpyCodec.decode_input(payload.inputs[0])
        results = self.session.run(OUTPUTS, {"pixels": pixels})
        outputs = [NumpyCodec.encode_output(name, of) for name, of in zip(OUTPUTS, results, strict=True)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
