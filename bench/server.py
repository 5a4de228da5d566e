"""A server under test: its name, its command, its protocols."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.messages import HTTP_INFER, INFER

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "model.onnx"
LARGEST_BATCH = 4096
LOG = ROOT / "build" / "bench"


ABOUT = {
    "noop": "a server of grpcio as it comes that answers every message with the same bytes",
    "noop-tuned": "the same with connections read as this server has them read",
    "grpcio": "this server, --transport grpcio",
    "http": "the HTTP port of the same",
    "noop-native": "the native transport with a model that answers zeros",
    "native": "this server, --transport native",
    "mlserver": "MLServer with a runtime of our own around ONNX Runtime, no worker processes",
    "kserve": "KServe's Python server with a model of our own around ONNX Runtime",
    "triton": "Triton, the server binary of the nvidia-pytriton wheel, with a model for its Python backend",
    "triton-onnxruntime": "the same binary with its C++ ONNX Runtime backend, in the folder TRITON_BACKENDS",
    "triton-onnxruntime-batching": "the same with Triton's dynamic batching",
}
"""The servers by name, with their descriptions."""


class ServerUnavailable(Exception):
    """A server is unavailable on this machine; the text has the reason."""


@dataclass(frozen=True)
class Server:
    """A server under test: `command` takes two free ports (gRPC, HTTP) and returns the command line."""

    name: str
    about: str
    command: Callable[[int, int], list[str]]
    protocols: tuple[str, ...] = (INFER, HTTP_INFER)
    answers: bool = True
    """False for a no-op server, whose replies are not checked."""
    environment: dict[str, str] = field(default_factory=dict)

    def with_options(self, *options: str) -> Server:
        """Return the same server with more options at the end of its command line."""
        return replace(self, command=lambda port, http: [*self.command(port, http), *options])
