"""The readers of foreign bytes, each as a function that only raises an exception if a guarantee is broken."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from digitserve_client import image
from google.rpc import code_pb2
from prometheus_client import CollectorRegistry
from structlog.testing import CapturingLogger

from export import checkpoint, graph, mnist
from service.batching.batcher import Batcher
from service.config import Settings, SettingsError, load
from service.errors import CredentialsError, ModelFileError, Unauthenticated
from service.handlers.digits import DigitsHandler
from service.handlers.inference import InferenceHandler
from service.handlers.metadata import MetadataHandler
from service.handlers.predictor import Predictor
from service.inference.model import Model
from service.observability.metrics import Metrics
from service.observability.statistics import Statistics
from service.security.tokens import Tokens
from service.transports.status import to_status

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.handlers import MessageHandler

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
_MARK = b"\x0a\x0econtent_sha256\x12\x40"
MOST_IMAGES = 8


class BrokenPromise(AssertionError):
    """An input broke a guarantee of its reader."""


def model_file() -> bytes:
    """Return a valid model.onnx as a seed."""
    return graph.build(checkpoint.load(checkpoint.committed("sigmoid")), version="1")


class Messages:
    """Any message to any RPC: a reply, or a status other than INTERNAL with a short text of one line.

    The first byte chooses the RPC.
    """

    def __init__(self) -> None:
        path = FOLDER / "served.onnx"
        path.write_bytes(model_file())
        metrics = Metrics(CollectorRegistry())
        limits = {"max_batch_size": MOST_IMAGES, "max_queued_images": 64, "inline": MOST_IMAGES}
        self._runner = asyncio.Runner()
        self._batcher = Batcher(Model(path), metrics, Statistics(), **limits)
        predictor = Predictor(self._batcher, max_batch_size=MOST_IMAGES)
        metadata = MetadataHandler(predictor, is_serving=lambda: True, server_version="0")
        services = (DigitsHandler(predictor), InferenceHandler(predictor, metadata))
        self._answers: list[MessageHandler] = [
            answer for one in services for _, answer in sorted({**one.unary, **one.streams}.items())
        ]

    def __call__(self, data: bytes) -> None:
        """Let the RPC answer the message."""
        if not data:
            return
        answer = self._answers[data[0] % len(self._answers)]
        try:
            self._runner.get_loop().run_until_complete(answer(data[1:], float("inf")))
        except Exception as error:
            status = to_status(error)
            if status.code == code_pb2.INTERNAL:
                raise
            if len(status.message) > 600 or not status.message.isprintable():
                raise BrokenPromise(f"the client would receive {status.message!r}") from error

    def close(self) -> None:
        """Close the batcher and the event loop."""
        self._runner.run(self._batcher.close())
        self._runner.close()


def any_model_file(data: bytes) -> None:
    """Any file as a model: a valid one, or ModelFileError; also with a corrected digest, so that parsers run."""
    for content in (data, sealed(data)):
        path = FOLDER / "model.onnx"
        path.write_bytes(content)
        try:
            Model(path)
        except ModelFileError as e:
            _one_line(e)


def sealed(data: bytes) -> bytes:
    """Return the file with the correct digest of its content, as an attacker would write it."""
    start = data.find(_MARK) + len(_MARK)
    if start < len(_MARK) or len(data) < start + 64:
        return data
    blanked = data[:start] + b"0" * 64 + data[start + 64 :]
    return data[:start] + hashlib.sha256(blanked).hexdigest().encode() + data[start + 64 :]


def any_image(data: bytes) -> None:
    """Any file as a picture or IDX file, as `digitserve predict` reads it: pixels, or ImageError."""
    try:
        pixels = image.read_bytes(data)
    except image.ImageError as e:
        _one_line(e)
    else:
        if pixels.ndim != 2 or pixels.shape[1] != 784 or pixels.dtype != "uint8":
            raise BrokenPromise(f"pixels of shape {pixels.shape}, {pixels.dtype}")


def any_idx(data: bytes) -> None:
    """Any file as training data: an array, or DataError."""
    try:
        mnist.parse_idx(data, Path("file"))
    except mnist.DataError as e:
        _one_line(e)


def any_options(data: bytes) -> None:
    """Any text in any option: settings, or an error that names it. The first byte chooses the option."""
    names = sorted(Settings.model_fields)
    value = data[1:].decode(errors="replace").replace("\0", "")
    flag = f"--{names[data[0] % len(names)].replace('_', '-')}" if data else "--model"
    try:
        load([f"{flag}={value}"])
    except SettingsError as e:
        if not str(e).startswith(flag):
            raise BrokenPromise(f"{flag}={value!r} is rejected with {str(e)!r}") from e
    except SystemExit as e:  # argparse, for a switch without a valid value
        if e.code != 2:
            raise BrokenPromise(f"{flag}={value!r} ends with status {e.code}") from e


def any_tokens(data: bytes) -> None:
    """Any token file: it only admits its own tokens, or is rejected with CredentialsError."""
    path = FOLDER / "tokens"
    path.write_bytes(data)
    try:
        tokens = Tokens(path, Metrics(CollectorRegistry()), _log())
    except CredentialsError as e:
        _one_line(e)
        return
    try:
        tokens.check([("authorization", "Bearer nobody-has-this-token")])
    except Unauthenticated:
        return
    if b"nobody-has-this-token" not in data:
        raise BrokenPromise("a token that is not in the file was accepted")


def _one_line(error: Exception) -> None:
    if "\n" in str(error) or len(str(error)) > 2000:
        raise BrokenPromise(f"{str(error)[:200]!r} is not a short message of one line") from error


def _log() -> Any:
    return CapturingLogger()


def targets() -> dict[str, Callable[[], Callable[[bytes], None]]]:
    """The targets by name; each is created on demand."""
    return {
        "messages": Messages,
        "http": _http_requests,
        "model": lambda: any_model_file,
        "image": lambda: any_image,
        "idx": lambda: any_idx,
        "options": lambda: any_options,
        "tokens": lambda: any_tokens,
    }


def _http_requests() -> Callable[[bytes], None]:
    from fuzz.http_requests import HttpRequests  # noqa: PLC0415 (it imports this module)

    return HttpRequests()


def no_environment() -> None:
    """Remove the options of the environment, so that only the input sets options."""
    for name in [name for name in os.environ if name.startswith("DIGITS_")]:
        del os.environ[name]
