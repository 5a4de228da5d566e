"""Record the requests and replies of the real tritonclient, so that tests/test_golden.py can replay them.

    python tests/public_clients/record.py PYTHON-WITH-TRITONCLIENT

It runs triton.py against a real server, through a proxy that forwards bytes unchanged and records them.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import SAMPLES, serving  # noqa: E402

from export import checkpoint, graph, mnist  # noqa: E402

GOLDEN = ROOT / "tests" / "golden" / "tritonclient.json"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


class Proxy(grpc.GenericRpcHandler):
    """A proxy that forwards every call to a server and records request, reply and status."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self.calls: list[dict[str, Any]] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Return a handler for the called method."""
        method = details.method
        if method == STREAM:
            return grpc.stream_stream_rpc_method_handler(partial(self._stream, method))
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self._unary(method, request, context))

    def _unary(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        kept = {"method": method, "requests": [_text(request)]}
        self.calls.append(kept)
        try:
            reply = self._channel.unary_unary(method)(request, timeout=10)
        except grpc.RpcError as e:
            kept |= {"code": e.code().name, "sentence": e.details(), "replies": []}
            context.abort(e.code(), e.details())
        kept |= {"code": "OK", "sentence": "", "replies": [_text(reply)]}
        return bytes(reply)

    def _stream(self, method: str, requests: Any, context: grpc.ServicerContext) -> Any:
        kept: dict[str, Any] = {"method": method, "requests": [], "replies": [], "code": "OK", "sentence": ""}
        metadata = [(key, value) for key, value in context.invocation_metadata() if key.startswith("triton_")]
        if metadata:
            kept["metadata"] = metadata
        self.calls.append(kept)

        def sent() -> Any:
            for request in requests:
                kept["requests"].append(_text(request))
                yield request

        try:
            for reply in self._channel.stream_stream(method)(sent(), timeout=30, metadata=metadata):
                kept["replies"].append(_text(reply))
                yield reply
        except grpc.RpcError as e:
            kept |= {"code": e.code().name, "sentence": e.details()}
            context.abort(e.code(), e.details())


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def main() -> None:
    """Run the program through the proxy and write the file."""
    with tempfile.TemporaryDirectory() as scratch:
        pixels, model = Path(scratch) / "pixels.npy", Path(scratch) / "model.onnx"
        np.save(pixels, mnist.read_idx(SAMPLES / "digits-100-images-idx3-ubyte").reshape(-1, 784)[::10])
        graph.write(graph.build(checkpoint.load(checkpoint.committed("sigmoid")), version="1"), model)
        with serving(model) as service, grpc.insecure_channel(service.address) as channel:
            proxy, server = Proxy(channel), grpc.server(futures.ThreadPoolExecutor(8))
            server.add_generic_rpc_handlers((proxy,))
            address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            server.start()
            program = ROOT / "tests" / "public_clients" / "triton.py"
            subprocess.run([sys.argv[1], program, address, pixels], check=True, stdout=subprocess.DEVNULL)
            server.stop(0).wait()
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(proxy.calls, indent=1) + "\n")
    print(f"wrote {GOLDEN}: {len(proxy.calls)} calls")


if __name__ == "__main__":
    main()
