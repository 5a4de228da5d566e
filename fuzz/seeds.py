"""Valid inputs as seeds, and damaged variants of them.

python -m fuzz.seeds TARGET FOLDER writes them for a fuzzer of another language.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from fuzz.targets import model_file
from service.pb.digits.v1.digits_pb2 import ExplainRequest, PredictRequest
from service.pb.inference import open_inference_pb2 as pb

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

INTERESTING = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)


def seeds(target: str) -> list[bytes]:
    """Return valid inputs of a target."""
    made: dict[str, Callable[[], list[bytes]]] = {
        "messages": _messages,
        "http": _http_bodies,
        "requests": _bodies,
        "model": lambda: [model_file()],
        "image": _pictures,
        "idx": lambda: [_idx(2, 28, 28), _idx(1, 3, 3), b"\0\0\x08\x01\0\0\0\x03\1\2\3"],
        "options": lambda: [bytes([n]) + value for n in range(40) for value in (b"1", b"true", b"a.pem", b"0.5", b"")],
        "tokens": lambda: [b"a-token-of-16-chars\n", b"# none\nsha256:" + b"0" * 64, b"x" * 15, b"a b\n"],
    }
    return made[target]()


def damaged(rng: random.Random, good: bytes, other: bytes) -> bytes:
    """Change, remove, repeat or insert bytes, or join the front of one input to the end of another."""
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(6)
        if kind < 2 and at < len(data):
            data[at] = rng.choice((*INTERESTING, rng.randrange(256)))
        elif kind == 2:
            del data[at : at + rng.choice((1, 2, 8, len(data)))]
        elif kind == 3:
            data[at:at] = data[at : at + rng.randrange(1, 32)]
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.randrange(1, 16))
        else:
            data[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(data)


def _messages() -> list[bytes]:
    infer = pb.ModelInferRequest(model_name="digits", id="1", raw_input_contents=[bytes(784)])
    infer.inputs.add(name="pixels", datatype="UINT8", shape=[1, 784])
    infer.outputs.add(name="digit")
    infer.parameters["timeout"].int64_param = 10**9
    typed = pb.ModelInferRequest(model_name="digits", model_version="1")
    tensor = typed.inputs.add(name="pixels", datatype="FP32", shape=[1, 784])
    tensor.contents.fp32_contents.extend([0.5] * 784)
    requests = [
        PredictRequest(pixels=bytes(784), model_version="1", include_hidden_layers=True, include_reliability=True),
        ExplainRequest(pixels=bytes(784)),
        pb.ModelReadyRequest(name="digits", version="1"),
        infer,
        typed,
    ]
    return [bytes([rpc]) + message.SerializeToString() for rpc in range(20) for message in requests]


def _http_bodies() -> list[bytes]:
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, 784], "data": [7] * 784}
    binary = {**tensor, "data": None, "parameters": {"binary_data_size": 784}}
    output = {"name": "digit", "parameters": {"binary_data": True, "classification": 1}}
    infer = json.dumps({"id": "1", "inputs": [tensor], "outputs": [output], "parameters": {"timeout": 10**9}}).encode()
    text = json.dumps({"inputs": [binary], "parameters": {"binary_data_output": True}}).encode().ljust(200)
    rows = json.dumps({"pixels": [[7] * 784], "include_hidden_layers": True, "model_version": "1"}).encode()
    picture = _pictures()[0]
    part = b'--XX\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + picture + b"\r\n--XX--\r\n"
    explain = json.dumps({"pixels": [[7] * 784], "neurons": [{"layer": 3, "index": 9}, {"layer": 1}]}).encode()
    bodies = (infer, text + bytes(784), gzip.compress(infer), rows, part, picture, b"{}", explain, picture)
    return [bytes([form]) + body for form, body in enumerate(bodies)]


def _bodies() -> list[bytes]:
    """Yield seeds for native/fuzz: the compression of a body, its frames, and a body of one or two messages."""
    messages = [message[1:] for message in _messages()[:5]]
    packed = ((1, gzip.compress), (2, zlib.compress))
    seeds = [bytes([0, 4]) + _framed(0, message) + _framed(0, message) for message in messages]
    return seeds + [bytes([how, 4]) + _framed(1, pack(message)) for how, pack in packed for message in messages]


def _framed(compressed: int, message: bytes) -> bytes:
    return bytes([compressed]) + len(message).to_bytes(4) + message


def _pictures() -> list[bytes]:
    seeds = [_idx(1, 28, 28)]
    for mode in ("L", "RGB", "RGBA", "P", "I;16"):
        picture = Image.fromarray((np.indices((40, 30)).sum(0) * 3).astype(np.uint8)).convert("L")
        picture = picture.convert(mode) if mode != "I;16" else Image.fromarray(np.asarray(picture).astype(np.uint16))
        for form in ("PNG", "GIF", "TIFF", "BMP", "PPM", "JPEG", "WEBP"):
            written = io.BytesIO()
            exif = Image.Exif()
            exif[0x0112] = 6  # rotated
            try:
                picture.save(written, form, exif=exif) if form in ("JPEG", "WEBP", "PNG") else picture.save(
                    written, form
                )
            except (OSError, ValueError):  # a format without this mode
                continue
            seeds.append(written.getvalue())
    return seeds


def _idx(n: int, rows: int, columns: int) -> bytes:
    sizes = b"".join(size.to_bytes(4) for size in (n, rows, columns))
    return b"\0\0\x08\x03" + sizes + bytes(range(256)) * (n * rows * columns // 256) + bytes(n * rows * columns % 256)


if __name__ == "__main__":
    target, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(target)):
        (folder / f"seed-{number}").write_bytes(seed)
