"""Thousands of damaged inputs, to the readers and over the socket; `make fuzz` continues with atheris."""

from __future__ import annotations

import gc
import io
import random
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from conftest import serving
from digitserve_client import image
from grpc import aio
from hostile import LONG, resident, still_serves
from PIL import Image

from export import mnist
from fuzz.seeds import damaged, seeds
from fuzz.targets import BrokenPromise, targets
from service.errors import ModelFileError
from service.inference.model import Model
from service.pb.inference import open_inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TRIES = {"messages": 20_000, "http": 5_000, "idx": 20_000, "image": 300, "options": 300, "tokens": 500, "model": 100}
LONG_TRIES = {
    "messages": 1_000_000,
    "http": 500_000,
    "idx": 1_000_000,
    "image": 50_000,
    "options": 20_000,
    "tokens": 100_000,
    "model": 20_000,
}
UNARY = (
    "/digits.v1.DigitService/Predict",
    "/digits.v1.DigitService/Explain",
    "/inference.GRPCInferenceService/ModelInfer",
)
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
ALLOWED = {
    *(grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED),
    *(grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.FAILED_PRECONDITION),
}


def spoiled(target: str, count: int, seed: int = 1) -> Iterator[bytes]:
    rng, good = random.Random(seed), seeds(target)
    return (damaged(rng, rng.choice(good), rng.choice(good)) for _ in range(count))


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("target", sorted(TRIES))
def test_damaged_inputs_are_read_or_rejected_by_name(
    target: str, tell: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DIGITS_TRANSPORT", raising=False)
    count = (LONG_TRIES if LONG else TRIES)[target]
    read = targets()[target]()
    for data in spoiled(target, count // 10):
        read(data)
    gc.collect()
    before = peak()
    for data in spoiled(target, count - count // 10, seed=2):
        read(data)
    getattr(read, "close", bool)()
    assert peak() < before + 30
    tell(f"{count} damaged inputs to {target}: each read or rejected; peak memory {before:.0f} -> {peak():.0f} MB")


async def test_damaged_messages_over_the_socket_get_a_client_error(
    model_path: Path, transport: str, tell: Callable[[str], None]
) -> None:
    """In a stream, in which an error is a reply, and as single calls: never INTERNAL, and no error in the log."""
    count = 1_000_000 if LONG else 4_000
    with serving(model_path, "--max-batch-size", "8") as service:
        still_serves(service)
        async with aio.insecure_channel(service.address) as channel:
            await converse(channel, spoiled("messages", count // 20, seed=3))
            level = resident(service)
            refused = await converse(channel, spoiled("messages", count - count // 20, seed=4))
            codes = await call_each(channel, spoiled("messages", count // 20, seed=5))
        assert codes <= ALLOWED
        series = service.series()
        faults = {
            labels[0]: n
            for (name, labels), n in series.items()
            if name == "grpc_server_handled_total" and labels[0] in ("Internal", "Unknown", "DataLoss") and n
        }
        assert faults == {}
        assert resident(service) < level * 1.05 + 10
        still_serves(service)
        told = resident(service)
        assert service.stop() == 0
        assert not [line for line in service.lines if line["event"] == "call failed"]
        tell(
            f"{transport}: {count} damaged messages in streams ({refused} rejected) and {count // 20} calls "
            f"({', '.join(sorted(code.name for code in codes))}); {level:.0f} -> {told:.0f} MB"
        )


async def converse(channel: aio.Channel, messages: Iterator[bytes]) -> int:
    """Send the messages in streams, each with an answer; return the number of rejected ones."""
    stream: Any = channel.stream_stream(STREAM, response_deserializer=pb.ModelStreamInferResponse.FromString)
    refused = 0
    async for reply in stream(message[1:] for message in messages):
        refused += bool(reply.error_message)
        if reply.error_message and not (len(reply.error_message) < 600 and reply.error_message.isprintable()):
            raise BrokenPromise(reply.error_message)
    return refused


async def call_each(channel: aio.Channel, messages: Iterator[bytes]) -> set[grpc.StatusCode]:
    codes = set()
    for number, message in enumerate(messages):
        call: Any = channel.unary_unary(UNARY[number % len(UNARY)])
        try:
            await call(message[1:], timeout=20)
        except aio.AioRpcError as e:
            codes.add(e.code())
            assert "Traceback" not in (e.details() or "")
    return codes


def test_a_picture_with_damaged_exif_is_read_without_rotation() -> None:
    picture, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.radial_gradient("L").resize((30, 40)).save(picture, "JPEG", exif=exif)
    broken = picture.getvalue().replace(b"Exif\0\0MM\0*", b"Exif\0\0MM\0\0")
    assert broken != picture.getvalue()
    assert image.read_bytes(broken).shape == (1, 784)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\0\0\x08\xff" + b"\xff" * 1100, "has 255 dimensions; expected 1 to 4"),
        (b"\0\0\x08\x00", "has 0 dimensions"),
        (b"\0\0\x08\x02" + b"\xff" * 4 + b"\0" * 4, "promises no values"),
    ],
)
def test_an_oversized_idx_header_is_rejected_in_a_short_message(content: bytes, sentence: str) -> None:
    with pytest.raises(mnist.DataError, match=sentence) as caught:
        mnist.parse_idx(content, Path("file"))
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(("good", "bad"), [(b"\x12\x07sigmoid", b"\x12\x07sigm\xc4id"), (b"layer2", b"\x80ayer2")])
def test_a_model_with_invalid_names_is_rejected_by_name(tmp_path: Path, good: bytes, bad: bytes) -> None:
    from fuzz.targets import model_file, sealed  # noqa: PLC0415

    (tmp_path / "model.onnx").write_bytes(sealed(model_file().replace(good, bad)))
    with pytest.raises(ModelFileError, match=r"model\.onnx: (its metadata or the name|ONNX Runtime .* cannot load it)"):
        Model(tmp_path / "model.onnx")
