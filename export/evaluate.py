"""Measure a model.onnx on labelled digits, through ONNX Runtime as the service runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from rich.table import Table

if TYPE_CHECKING:
    from pathlib import Path

    from export.mnist import Bytes, Examples

BRIGHT = 0.5
"""An output above this reads as lit: a sigmoid over one half."""

_BATCH = 1_000


class ModelError(Exception):
    """The file is no model of digits that ONNX Runtime can run; the text has the file and the reason."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """The answers to n labelled images: `confusion[d, r]` counts images of d that were read as r.

    `one_bright` is the share of images on which exactly one of the 10 outputs is over BRIGHT.
    """

    confusion: npt.NDArray[np.int64]
    one_bright: float

    @classmethod
    def of(cls, activations: npt.NDArray[np.floating[Any]], labels: Bytes) -> Measurement:
        """Measure activations (n, 10) in 0..1; the digit read is the brightest, the lowest on a tie."""
        confusion = np.zeros((10, 10), np.int64)
        np.add.at(confusion, (labels, activations.argmax(axis=1)), 1)
        return cls(confusion, float(((activations > BRIGHT).sum(axis=1) == 1).mean()))

    @property
    def images(self) -> int:
        """How many images were read."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """The share read correctly, 0 to 1."""
        return float(self.confusion.trace()) / self.images

    def by_digit(self) -> list[float]:
        """The share of each digit's images that were read correctly; 0 for a digit that does not occur."""
        counts = np.maximum(self.confusion.sum(axis=1), 1)
        return [float(share) for share in self.confusion.diagonal() / counts]

    def mistakes(self) -> list[tuple[int, int, int]]:
        """(digit, read as, times) of every confusion that occurred, the most frequent first."""
        wrong = [(d, r, int(self.confusion[d, r])) for d, r in np.argwhere(self.confusion).tolist() if d != r]
        return sorted(wrong, key=lambda mistake: -mistake[2])

    def to_json(self) -> dict[str, Any]:
        """The measurement in plain types, shares from 0 to 1."""
        return {
            "images": self.images,
            "accuracy": self.accuracy,
            "one_bright": self.one_bright,
            "accuracy_by_digit": self.by_digit(),
            "confusion": self.confusion.tolist(),
        }


def measure(model: Path, examples: Examples) -> Measurement:
    """Run every image through the file in ONNX Runtime; ModelError if that fails."""
    return Measurement.of(activations(model, examples.images), examples.labels)


def activations(model: Path, pixels: Bytes) -> npt.NDArray[np.float32]:
    """The outputs (n, 10) for images (n, 784), from the file in ONNX Runtime; ModelError if that fails."""
    session = _session(model)
    inputs: npt.NDArray[Any] = pixels
    if session.get_inputs()[0].type == "tensor(float)":
        inputs = (pixels / np.float32(255)).astype(np.float32)
    parts = np.split(inputs, range(_BATCH, len(inputs), _BATCH))
    return np.concatenate([session.run(["activations"], {"pixels": part})[0] for part in parts])


def tables(measurement: Measurement) -> list[Table]:
    """The measurement for the terminal: accuracy by digit, and the confusion matrix."""
    counts = Table(title="rows: the digit; columns: the answer", title_justify="left")
    for heading in ("", *map(str, range(10)), "right"):
        counts.add_column(heading, justify="right")
    for digit, (row, share) in enumerate(zip(measurement.confusion, measurement.by_digit(), strict=True)):
        cells = [_cell(int(n), right=read == digit) for read, n in enumerate(row)]
        counts.add_row(f"[bold]{digit}", *cells, f"{share:.2%}")
    worst = Table(title="most frequent mistakes", title_justify="left")
    for heading in ("digit", "read as", "times"):
        worst.add_column(heading, justify="right")
    for mistake in measurement.mistakes()[:5]:
        worst.add_row(*map(str, mistake))
    return [counts, worst]


def _cell(count: int, *, right: bool) -> str:
    if right:
        return f"[green]{count}"
    return f"[red]{count}" if count else "[dim]·"


def _session(model: Path) -> ort.InferenceSession:
    if not model.is_file():
        raise ModelError(f"{model}: there is no such file; `python -m export onnx` writes it")
    try:
        session = ort.InferenceSession(model.read_bytes(), providers=["CPUExecutionProvider"])
    except Exception as e:  # ONNX Runtime's exceptions share no base but Exception
        raise ModelError(f"{model}: ONNX Runtime cannot load it: {str(e).splitlines()[0]}") from e
    results = {node.name: node.shape[-1] for node in (*session.get_inputs(), *session.get_outputs()) if node.shape}
    if results.get("pixels") != 784 or results.get("activations") != 10:
        raise ModelError(f"{model}: has {results}; expected input pixels [.., 784], output activations [.., 10]")
    return session
