"""Triton's own example of system shared memory, with this model; prints its results as JSON.

python triton_shared_memory.py ADDRESS PIXELS.npy
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shm
from tritonclient import utils

address, path = sys.argv[1:]
pixels = np.load(path)
client = triton.InferenceServerClient(address)
client.unregister_system_shared_memory()
client.unregister_cuda_shared_memory()

images, name = len(pixels), f"/digits-{os.getpid()}"
target = shm.create_shared_memory_region("output_data", f"{name}-output", 48 * images)
client.register_system_shared_memory("output_data", f"{name}-output", 48 * images)
source = shm.create_shared_memory_region("input_data", f"{name}-input", pixels.nbytes)
shm.set_shared_memory_region(source, [pixels])
client.register_system_shared_memory("input_data", f"{name}-input", pixels.nbytes)

tensor = triton.InferInput("pixels", pixels.shape, "UINT8")
tensor.set_shared_memory("input_data", pixels.nbytes)
outputs = [triton.InferRequestedOutput("digit"), triton.InferRequestedOutput("activations")]
outputs[0].set_shared_memory("output_data", 8 * images)
outputs[1].set_shared_memory("output_data", 40 * images, offset=8 * images)
results = client.infer("digits", [tensor], outputs=outputs)

arrays = {}
for output, offset in (("digit", 0), ("activations", 8 * images)):
    found = results.get_output(output)
    datatype = utils.triton_to_np_dtype(found.datatype)
    arrays[output] = shm.get_contents_as_numpy(target, datatype, found.shape, offset=offset).copy()

status = client.get_system_shared_memory_status(as_json=True)
client.unregister_system_shared_memory()
left = client.get_system_shared_memory_status(as_json=True)
shm.destroy_shared_memory_region(source)
shm.destroy_shared_memory_region(target)
print(
    json.dumps(
        {
            "digits": arrays["digit"].tolist(),
            "argmax": arrays["activations"].argmax(axis=1).tolist(),
            "regions": sorted(status["regions"]),
            "left": left.get("regions", {}),
            "mapped": len(shm.mapped_shared_memory_regions()),
        }
    )
)
