"""The same model.onnx as a KServe model, raw contents in and out.

python server.py GRPC-PORT HTTP-PORT
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import onnxruntime as ort
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

OUTPUTS = {"digit": "INT64", "activations": "FP32"}


class Digits(Model):
    """The model of KServe's server."""

    def __init__(self) -> None:
        super().__init__("digits")
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])
        self.ready = True

    async def predict(self, payload: InferRequest, *_: Any, **__: Any) -> InferResponse:
        """Answer one request."""
        results = self.session.run(list(OUTPUTS), {"pixels": payload.inputs[0].as_numpy()})
        outputs = []
        for (name, datatype), values in zip(OUTPUTS.items(), results, strict=True):
            output = InferOutput(name, list(values.shape), datatype)
            output.set_data_from_numpy(values, binary_data=True)
            outputs.append(output)
        return InferResponse(
            payload.id or "1",
            self.name,
            outputs,
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


server = ModelServer(http_port=int(sys.argv[2]), grpc_port=int(sys.argv[1]), enable_docs_url=False)
for name in ("uvicorn.access", "kserve.trace"):  # 3 lines a request over HTTP; the other servers log none
    logging.getLogger(name).setLevel(logging.WARNING)
server.start([Digits()])
