"""A program of a user of KServe's HTTP client; prints its results as JSON. It needs kserve.

python kserve_http.py URL PIXELS.npy
"""

from __future__ import annotations

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

url, path = sys.argv[1:]
pixels = np.load(path)


def request(array: np.ndarray, datatype: str, *, binary: bool) -> InferRequest:
    tensor = InferInput("pixels", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return InferRequest(model_name="digits", infer_inputs=[tensor], request_id="k1")


async def main() -> dict[str, object]:
    floats = (pixels / np.float32(255)).astype(np.float32)
    client = InferenceRESTClient(RESTConfig(protocol="v2"))

    async def digits(array: np.ndarray, datatype: str = "UINT8", *, binary: bool) -> list[int]:
        response = await client.infer(url, request(array, datatype, binary=binary), model_name="digits")
        [output] = [output for output in response.outputs if output.name == "digit"]
        return [int(digit) for digit in output.as_numpy()]

    refused = ""
    try:
        await digits(pixels.reshape(-1, 28, 28), binary=True)
    except Exception as e:  # noqa: BLE001 (users see every exception of the client)
        refused = repr(e)
    found = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, "digits"),
        "binary": await digits(pixels, binary=True),
        "json": await digits(pixels, binary=False),
        "binary fp32": await digits(floats, "FP32", binary=True),
        "json fp32": await digits(floats, "FP32", binary=False),
        "refused": refused,
    }
    await client.close()
    return found


json.dump(asyncio.run(main()), sys.stdout)
