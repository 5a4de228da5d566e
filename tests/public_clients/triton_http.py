"""A program of a user of tritonclient's HTTP client; prints its results as JSON. It needs tritonclient.

python triton_http.py ADDRESS PIXELS.npy
"""

from __future__ import annotations

import asyncio
import json
import sys

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

address, path = sys.argv[1:]
pixels = np.load(path)
floats = (pixels / np.float32(255)).astype(np.float32)
found: dict[str, object] = {}
client = triton.InferenceServerClient(address, concurrency=4)


def given(array: np.ndarray, datatype: str = "UINT8", name: str = "pixels", *, binary: bool = True) -> list[object]:
    tensor = triton.InferInput(name, array.shape, datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return [tensor]


def wanted(*names: str, binary: bool = True) -> list[object]:
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]


def digits(result: object) -> list[int]:
    return result.as_numpy("digit").tolist()


def refusal(call: object, *arguments: object, **options: object) -> list[str]:
    try:
        call(*arguments, **options)
    except InferenceServerException as e:
        return [str(e.status()), str(e.message())]
    return ["OK", ""]


found["live"] = client.is_server_live()
found["ready"] = client.is_server_ready()
found["model_ready"] = client.is_model_ready("digits")
found["model_ready_version"] = client.is_model_ready("digits", "1")
found["unknown_model_ready"] = client.is_model_ready("letters")
found["server_metadata"] = client.get_server_metadata()
found["metadata"] = client.get_model_metadata("digits")
found["config"] = client.get_model_config("digits")
found["index"] = client.get_model_repository_index()
result = client.infer("digits", given(pixels), request_id="r1", outputs=wanted("digit", "activations"))
found["id"] = result.get_response()["id"]
found["activations_shape"] = result.as_numpy("activations").shape
found["all_outputs"] = sorted(
    output["name"] for output in client.infer("digits", given(pixels[:1])).get_response()["outputs"]
)
found["digits"] = {
    "binary": digits(result),
    "default outputs": digits(client.infer("digits", given(pixels))),
    "json": digits(client.infer("digits", given(pixels, binary=False), outputs=wanted("digit", binary=False))),
    "json in": digits(client.infer("digits", given(pixels, binary=False), outputs=wanted("digit"))),
    "json out": digits(client.infer("digits", given(pixels), outputs=wanted("digit", binary=False))),
    "fp32": digits(client.infer("digits", given(floats, "FP32"))),
    "fp32 json": digits(client.infer("digits", given(floats, "FP32", binary=False))),
    "gzip": digits(
        client.infer(
            "digits", given(pixels), request_compression_algorithm="gzip", response_compression_algorithm="gzip"
        )
    ),
    "deflate": digits(client.infer("digits", given(pixels), request_compression_algorithm="deflate")),
    "timeout": digits(client.infer("digits", given(pixels), timeout=5_000_000, priority=1)),
    "async": digits(client.async_infer("digits", given(pixels)).get_result()),
}
found["refused"] = {
    "name": refusal(client.infer, "mnist", given(pixels)),
    "version": refusal(client.infer, "digits", given(pixels), model_version="9"),
    "input": refusal(client.infer, "digits", given(pixels, name="picture")),
    "shape": refusal(client.infer, "digits", given(pixels.reshape(-1, 28, 28))),
    "type": refusal(client.infer, "digits", given(pixels.astype(np.int32), "INT32")),
    "output": refusal(client.infer, "digits", given(pixels), outputs=wanted("softmax")),
    "load": refusal(client.load_model, "digits"),
    "unload": refusal(client.unload_model, "digits"),
    "shared_memory": refusal(client.get_system_shared_memory_status),
}
found["statistics"] = client.get_inference_statistics("digits")
client.close()


async def asynchronous() -> list[int]:
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_ready()
        return digits(await client.infer("digits", given(pixels)))


found["digits"]["aio"] = asyncio.run(asynchronous())
json.dump(found, sys.stdout, default=list)
