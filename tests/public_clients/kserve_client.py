"""A program of a user of KServe's gRPC client; prints its results as JSON. It needs kserve.

python kserve_client.py ADDRESS PIXELS.npy
"""

from __future__ import annotations

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest

address, path = sys.argv[1:]
pixels = np.load(path)


def request(array: np.ndarray, datatype: str, *, binary: bool) -> InferRequest:
    tensor = InferInput("pixels", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return InferRequest(model_name="digits", infer_inputs=[tensor], request_id="k1")


def digits(response: object) -> list[int]:
    [output] = [output for output in response.outputs if output.name == "digit"]
    return [int(digit) for digit in output.as_numpy()]


async def main() -> dict[str, object]:
    floats = (pixels / np.float32(255)).astype(np.float32)
    async with InferenceGRPCClient(address) as client:
        raw = await client.infer(request(pixels, "UINT8", binary=True))
        refused = ""
        try:
            await client.infer(request(pixels.reshape(-1, 28, 28), "UINT8", binary=True))
        except Exception as e:  # noqa: BLE001 (users see every exception of the client)
            refused = repr(e)
        return {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": await client.is_model_ready("digits"),
            "raw": digits(raw),
            "id": raw.id,
            "typed": digits(await client.infer(request(pixels, "UINT8", binary=False))),
            "raw_fp32": digits(await client.infer(request(floats, "FP32", binary=True))),
            "typed_fp32": digits(await client.infer(request(floats, "FP32", binary=False))),
            "refused": refused,
        }


json.dump(asyncio.run(main()), sys.stdout)
