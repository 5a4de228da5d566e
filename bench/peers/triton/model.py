"""The same model.onnx behind Triton's Python backend: each batch of the server is one run of ONNX Runtime."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as backend

OUTPUTS = ("digit", "activations")


class TritonPythonModel:
    """The class that Triton loads, by this name."""

    def initialize(self, _: Any) -> None:
        """Load the model, with the options that digitserve uses."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request."""
        inputs = [backend.get_input_tensor_by_name(request, "pixels").as_numpy() for request in requests]
        results = self.session.run(OUTPUTS, {"pixels": inputs[0] if len(inputs) == 1 else np.concatenate(inputs)})
        responses, start = [], 0
        for pixels in inputs:
            stop = start + len(pixels)
            tensors = [backend.Tensor(name, of[start:stop]) for name, of in zip(OUTPUTS, results, strict=True)]
            responses.append(backend.InferenceResponse(tensors))
            start = stop
        return responses
