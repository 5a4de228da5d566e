"""The results of `predict`: each shown on the terminal, or all collected for one JSON document."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from digitserve_client.image import ImageError, prepare_open, prepare_path
from digitserve_client.messages import DigitsError
from digitserve_client.pixels import SIDE
from PIL import Image

from digitserve import render

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    from digitserve_client.client import DigitsClient
    from digitserve_client.image import Prepared
    from digitserve_client.messages import Predictions
    from rich.console import Console

IN_ONE_CALL = 256
"""Images: an IDX file of 60,000 needs many calls, each well within the server's limit."""

STANDARD_INPUT = "-"


class Reading:
    """One run of `predict`. Without a console it shows no output, and `results` is the output of `--json`."""

    def __init__(
        self,
        client: DigitsClient,
        console: Console | None,
        limit: int,
        *,
        hidden: bool,
        explain: bool,
        each: bool = False,
        save_to: Path | None = None,
    ) -> None:
        self._client = client
        self._console = console
        self._limit = limit
        self._hidden = hidden
        self._explain = explain
        self._each = each
        self._save_to = save_to
        self.results: list[dict[str, Any]] = []
        self.maps: list[Image.Image] = []
        self.unreadable = False

    def read(self, files: Sequence[Path]) -> None:
        """Read each file, and continue after one that is no image.

        Raises DigitsError if the server fails; this file and those after it are errors in `results`.
        """
        for number, path in enumerate(files):
            try:
                self._read(path, _prepared(path, each=self._each))
            except ImageError as e:
                print(e, file=sys.stderr)
                self.unreadable = True
                self._record_error(path, str(e).removeprefix(f"{_name(path)}: "))
            except DigitsError as e:
                self._record_error(path, described(e))
                for later in files[number + 1 :]:
                    self._record_error(later, "not sent: the call for an earlier file failed")
                raise

    def _read(self, path: Path, prepared: Prepared) -> None:
        pixels = prepared.pixels
        if self._save_to:
            _save(pixels[: self._limit], self._save_to, path)
        for row, image, answer in self._answers(pixels[: self._limit], prepared):
            self.results.append(_as_dict(path, row, answer))
            if self._console:
                title = _name(path) if len(pixels) == 1 else f"{_name(path)}, image {row}"
                self._show(self._console, image, answer, title)
            if self._explain:
                self._ask_why(image)
        if self._console and len(pixels) > self._limit:
            rest = f"{len(pixels) - self._limit:,} more images in {_name(path)}; --limit {len(pixels)} reads them all"
            self._console.print(rest, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def _answers(
        self, pixels: npt.NDArray[np.uint8], prepared: Prepared
    ) -> Iterator[tuple[int, npt.NDArray[np.uint8], Predictions]]:
        """The number of each image, the image, and the answer to it alone."""
        for first in range(0, len(pixels), IN_ONE_CALL):
            batch = pixels[first : first + IN_ONE_CALL]
            answers = self._client.predict(batch, include_hidden_layers=self._hidden)
            answers = dataclasses.replace(answers, inspections=prepared.inspections[first : first + IN_ONE_CALL])
            for row, image in enumerate(batch):
                yield first + row, image, answers[row]

    def _show(self, console: Console, image: npt.NDArray[np.uint8], answer: Predictions, title: str) -> None:
        console.print(render.card(image, answer, 0, title=title, console=console))
        for warning in answer.warnings[0]:
            console.print(warning, style="yellow", markup=False, highlight=False)
        if answer.layer1 is not None:
            console.print(render.layers(answer, 0))

    def _ask_why(self, image: npt.NDArray[np.uint8]) -> None:
        """Explain the answer for the image; show it, and keep it as a picture."""
        why = self._client.explain(image).explanations[0][0]
        if self._console:
            self._console.print(render.explained(image, why, self._console))
        self.maps.append(render.explained_png(image, why))

    def _record_error(self, path: Path, reason: str) -> None:
        self.results.append({"file": str(path), "error": reason})


def described(error: DigitsError) -> str:
    """A failed call as one sentence, with the id by which the server's log has it."""
    return f"{error} (request id {error.request_id})" if error.request_id else str(error)


def _prepared(path: Path, *, each: bool) -> Prepared:
    if str(path) != STANDARD_INPUT:
        return prepare_path(path, each=each)
    if sys.stdin is None:
        raise ImageError(f"{_name(path)}: is closed; expected a picture or an IDX file")
    try:
        return prepare_open(sys.stdin.buffer, each=each)
    except ImageError as e:
        raise ImageError(f"{_name(path)}: {e}") from None


def _name(path: Path) -> str:
    return "standard input" if str(path) == STANDARD_INPUT else str(path)


def _save(pixels: npt.NDArray[np.uint8], folder: Path, path: Path) -> None:
    """Write each image as it is sent, 28x28; ImageError, with the file's name, if that fails."""
    stem = "standard-input" if str(path) == STANDARD_INPUT else path.stem
    for row, image in enumerate(pixels):
        name = folder / (f"{stem}.png" if len(pixels) == 1 else f"{stem}-{row}.png")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.reshape(SIDE, SIDE)).save(name)
        except OSError as e:
            raise ImageError(f"{_name(path)}: {name} cannot be written: {e.strerror}") from None


def _as_dict(path: Path, row: int, answer: Predictions) -> dict[str, Any]:
    layers = {"layer1": answer.layer1, "layer2": answer.layer2}
    return {
        "file": str(path),
        "image": row,
        "digit": int(answer.digits[0]),
        "second": int(answer.second[0]),
        "sure": bool(answer.sure[0]),
        "warnings": list(answer.warnings[0]),
        "activations": _rounded(answer.activations[0]),
        **{name: _rounded(layer[0]) for name, layer in layers.items() if layer is not None},
        "model_version": answer.model_version,
        "request_id": answer.request_id,
    }


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 6) for value in values]
