"""10 real digits through gRPC, shown with their answers and the latency of a call."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from digitserve_client.image import ImageError, read
from rich.text import Text

from digitserve import render

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from digitserve_client.client import DigitsClient
    from digitserve_client.messages import Predictions
    from rich.console import Console, RenderableType

CALLS = 1000
_WARM_UP = 100
_IDX_LABELS = b"\x00\x00\x08\x01"


def run(client: DigitsClient, address: str, images: Path, labels: Path, console: Console) -> None:
    """Show one digit of each kind, the latency of one image, and the next commands."""
    pixels, truth = read(images), read_labels(labels)
    if len(pixels) != len(truth):
        raise ImageError(f"{images} holds {len(pixels)} images and {labels} {len(truth)} labels")
    rows = [int(np.flatnonzero(truth == digit)[0]) for digit in range(10) if digit in truth]
    shown = [_shown(pixels[row], client.predict(pixels[row]), row, int(truth[row]), console) for row in rows]
    console.print(f"10 handwritten digits, sent to {address} over gRPC:\n", highlight=False, markup=False)
    console.print(render.side_by_side(shown, console))
    console.print(latency(client, pixels))
    console.print(next_steps(address, images, console.width), soft_wrap=True)


def _shown(
    image: npt.NDArray[np.uint8], answer: Predictions, row: int, label: int, console: Console
) -> Callable[[int], RenderableType]:
    return lambda width: render.card(image, answer, 0, title=f"image {row}", console=console, width=width, label=label)


def read_labels(path: Path) -> npt.NDArray[np.uint8]:
    """The labels of an IDX file, (n,)."""
    try:
        content = path.read_bytes()
    except OSError as e:
        raise ImageError(f"{path}: cannot be read: {e.strerror}") from None
    if not content.startswith(_IDX_LABELS) or len(content) - 8 != int.from_bytes(content[4:8]):
        raise ImageError(f"{path}: is no IDX file of labels")
    return np.frombuffer(content, dtype=np.uint8, offset=8)


def latency(client: DigitsClient, pixels: npt.NDArray[np.uint8]) -> Text:
    """Return the latency of sequential calls with one image, as this client measures it."""
    times = []
    for i in range(_WARM_UP + CALLS):
        began = time.perf_counter()
        client.predict(pixels[i % len(pixels)])
        times.append(time.perf_counter() - began)
    p50, p99 = np.percentile(times[_WARM_UP:], (50, 99)) * 1e3
    text = Text(f"{CALLS:,} calls of one image, one after the other: ")
    text.append(f"p50 {p50:.2f} ms, p99 {p99:.2f} ms\n", "bold")
    return text


def next_steps(address: str, images: Path, width: int) -> Text:
    """Return three commands that work in the current folder, in lines of `width`."""
    at = "" if address in ("localhost:50051", "127.0.0.1:50051") else f" --address\N{NO-BREAK SPACE}{address}"
    program = _program()
    text = Text("Try next, in another terminal:\n")
    for command in (
        f"{program} predict {images} --limit 3{at}",
        f"{program} predict YOUR-OWN-DIGIT.jpg --json{at}",
        f"curl -s localhost:{os.environ.get('DIGITS_METRICS_PORT', '9464')}/metrics | grep digits_",
    ):
        text.append(f"{_folded(command, width)}\n", "cyan")
    text.right_crop(1)
    return text


def _program() -> str:
    """Digitserve as this environment's user types it in this folder."""
    script, folder = Path(sys.executable).with_name("digitserve"), Path.cwd()
    if script.exists() and shutil.which("digitserve") == str(script):
        return "digitserve"
    program = script if script.exists() else Path(sys.executable)
    shown = program.relative_to(folder) if program.is_relative_to(folder) else program
    return f"{shown}" if script.exists() else f"{shown} -m digitserve"


def _folded(command: str, width: int) -> str:
    """A command in lines as a shell takes them: all but the last end with a backslash; a no-break space stays whole."""
    lines = textwrap.wrap(
        command,
        width - len(" \\"),
        initial_indent="  ",
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return " \\\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")
