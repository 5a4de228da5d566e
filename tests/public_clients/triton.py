"""A program of a user of tritonclient; prints its results as JSON. It needs tritonclient.

python triton.py ADDRESS PIXELS.npy
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

address, path = sys.argv[1:]
pixels = np.load(path)
found: dict[str, object] = {}
client = triton.InferenceServerClient(address)


def given(array: np.ndarray, datatype: str = "UINT8", name: str = "pixels") -> list[triton.InferInput]:
    tensor = triton.InferInput(name, array.shape, datatype)
    tensor.set_data_from_numpy(array)
    return [tensor]


def wanted(*names: str) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name) for name in names]


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
found["server_metadata"] = client.get_server_metadata(as_json=True)
found["metadata"] = client.get_model_metadata("digits", as_json=True)
found["config"] = client.get_model_config("digits", as_json=True)
found["index"] = client.get_model_repository_index(as_json=True)

result = client.infer("digits", given(pixels), request_id="r1", outputs=wanted("digit", "activations"))
found["infer"] = result.as_numpy("digit").tolist()
found["activations_shape"] = result.as_numpy("activations").shape
found["id"] = result.get_response().id
found["all_outputs"] = sorted(
    output.name for output in client.infer("digits", given(pixels[:1])).get_response().outputs
)
floats = (pixels / np.float32(255)).astype(np.float32)
found["infer_fp32"] = client.infer("digits", given(floats, "FP32")).as_numpy("digit").tolist()
found["infer_timeout"] = (
    client.infer("digits", given(pixels[:1]), timeout=5_000_000, client_timeout=5.0, priority=1)
    .as_numpy("digit")
    .tolist()
)
found["infer_compressed"] = (
    client.infer("digits", given(pixels), compression_algorithm="gzip").as_numpy("digit").tolist()
)

answers: queue.Queue[tuple[object, object]] = queue.Queue()
client.async_infer("digits", given(pixels[:2]), lambda result, error: answers.put((result, error)))
result, error = answers.get(timeout=10)
found["async"] = None if error else result.as_numpy("digit").tolist()

client.start_stream(lambda result, error: answers.put((result, error)))
for i in range(5):
    client.async_stream_infer("digits", given(pixels[i : i + 1]), request_id=str(i))
client.async_stream_infer("digits", given(pixels[:1], name="picture"))
client.async_stream_infer("digits", given(pixels[5:6]), request_id="5")
streamed: list[object] = []
for _ in range(7):
    result, error = answers.get(timeout=10)
    streamed.append(error.message() if error else [result.get_response().id, int(result.as_numpy("digit")[0])])
client.stop_stream()
found["stream"] = streamed


# A client of decoupled models waits for the final response to each request.
client.start_stream(lambda result, error: answers.put((result, error)))
client.async_stream_infer("digits", given(pixels[:1]), request_id="f", enable_empty_final_response=True)
result, _ = answers.get(timeout=10)
client.stop_stream()
found["final"] = [result.get_response().id, result.get_response().parameters["triton_final_response"].bool_param]

client.start_stream(lambda result, error: answers.put((result, error)), headers={"triton_grpc_error": "true"})
client.async_stream_infer("digits", given(pixels[:1], name="picture"))
_, error = answers.get(timeout=10)
client.stop_stream()
found["stream_status"] = [str(error.status()), error.message()]

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
    "cuda_shared_memory": refusal(client.register_cuda_shared_memory, "r", b"aGFuZGxl", 0, 8),
    "trace": refusal(client.get_trace_settings),
    "log": refusal(client.get_log_settings),
}
found["statistics"] = client.get_inference_statistics("digits", as_json=True)
client.close()


async def asynchronous() -> list[int]:
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_ready()
        return list((await client.infer("digits", given(pixels))).as_numpy("digit").tolist())


found["aio"] = asyncio.run(asynchronous())
json.dump(found, sys.stdout, default=list)
