"""Files -> pixels as the network knows them: an IDX file as it is, a photograph or drawing in MNIST's form."""

from __future__ import annotations

import gzip
import io
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from digitserve_client import layout, preparation, segmentation
from digitserve_client.formats import FORMATS, LARGEST_IMAGE, cut_out, decode, to_grey, upright
from digitserve_client.pixels import SIDE, ImageError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from digitserve_client.uncertainty import Inspection

__all__ = [
    "FORMATS",
    "LARGEST_FILE",
    "LARGEST_IMAGE",
    "ImageError",
    "Pixels",
    "Polarity",
    "Prepared",
    "from_array",
    "prepare_bytes",
    "prepare_file",
    "prepare_open",
    "prepare_path",
    "prepare_picture",
    "read",
    "read_bytes",
    "to_mnist",
]

WORKING_SIDE = 256
"""Pixels of the longer side during segmentation; a photograph has more than it needs."""

LARGEST_FILE = 64 * 2**20

SMALLEST_DRAWING = 1 / 7
"""Share of a drawing's side; anything smaller is the first dot of a stroke."""

_IDX_IMAGES = b"\x00\x00\x08\x03"

Pixels = npt.NDArray[np.uint8]
Grey = npt.NDArray[np.float64]
Polarity: TypeAlias = Literal["unknown", "light-on-dark"]
"""The polarity of a picture's ink; a drawing on black is light on dark."""


class NoDigitError(ImageError):
    """The picture is a sound one, but blank, or nearly so."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Images in MNIST's form, (n, 784), and the inspection of each; no `inspections` for an IDX file."""

    pixels: Pixels
    inspections: tuple[Inspection, ...] = ()


def prepare_path(path: Path, *, each: bool = False) -> Prepared:
    """The images of a PNG, JPEG or other picture (1), or of an IDX file, plain or gzipped (n).

    With `each` a picture of several digits side by side gives one image a digit, from left to right.
    """
    try:
        with path.open("rb") as file:
            return prepare_open(file, each=each)
    except ImageError as e:
        raise ImageError(f"{path}: {e}") from None
    except (OSError, ValueError) as e:  # ValueError: a zero byte in the path
        raise ImageError(f"{path}: cannot be read: {getattr(e, 'strerror', e)}") from None


def prepare_open(file: BinaryIO, *, each: bool = False) -> Prepared:
    """As `prepare_path`, for a file that is open; the text of an ImageError names none."""
    return prepare_bytes(_content(file), each=each)


def prepare_file(file: BinaryIO) -> Prepared:
    """As `prepare_path`, for an open binary file, from its current position."""
    name = getattr(file, "name", "the file")
    try:
        return prepare_open(file)
    except ImageError as e:
        raise ImageError(f"{name}: {e}") from None
    except (OSError, ValueError) as e:  # ValueError: it is closed
        raise ImageError(f"{name}: cannot be read: {getattr(e, 'strerror', None) or e}") from None


def prepare_picture(picture: Image.Image) -> Prepared:
    """As `prepare_path`, for an image of Pillow's, which is read from its file only now and may prove damaged."""
    try:
        picture.load()
    except Exception as e:  # noqa: BLE001 (Pillow's decoders raise errors of every kind)
        raise ImageError(f"the picture cannot be read: {str(e) or 'it is closed'}") from None
    try:
        return _prepare(picture, "unknown", each=False)
    except ImageError as e:
        raise ImageError(f"the picture {e}") from None


def prepare_bytes(content: bytes, *, polarity: Polarity = "unknown", each: bool = False) -> Prepared:
    """As `prepare_path`, for the content of such a file, unpacked; `polarity` as for `to_mnist`."""
    if content.startswith(_IDX_IMAGES):
        return Prepared(_idx_images(content))
    return _prepare(decode(content), polarity, each=each)


def read(path: Path) -> Pixels:
    """The pixels alone of `prepare_path`: uint8 (n, 784)."""
    return prepare_path(path).pixels


def read_bytes(content: bytes, *, polarity: Polarity = "unknown") -> Pixels:
    """The pixels alone of `prepare_bytes`."""
    return prepare_bytes(content, polarity=polarity).pixels


def from_array(array: npt.NDArray[Any]) -> Prepared:
    """As `prepare_path`, for uint8 (height, width) or (height, width, 3 or 4)."""
    return prepare_picture(Image.fromarray(array))


def to_mnist(picture: Image.Image, *, polarity: Polarity = "unknown") -> Pixels:
    """One digit, dark on light or light on dark, as uint8 (784,): 0 background, 255 ink.

    A digit in MNIST's own form, 28x28 with light ink on black, comes back unchanged. With `polarity` the picture is
    known to be a drawing: the brightness of each pixel is its ink, however much of the picture is inked. So is the
    opacity of a drawing on a transparent ground.
    """
    pixels: Pixels = _prepare(picture, polarity, each=False).pixels[0]
    return pixels


def _prepare(picture: Image.Image, polarity: Polarity, *, each: bool) -> Prepared:
    turned = upright(picture)
    grey = to_grey(turned)
    levels = np.asarray(grey)
    if preparation.is_in_mnist_form(levels) and not (each and len(layout.separate(levels / 255)) > 1):
        return Prepared(levels.reshape(1, -1), (layout.inspect(levels / 255),))
    drawing = grey if polarity == "light-on-dark" else cut_out(turned)
    if drawing is not None:
        ink = _drawn(drawing, SMALLEST_DRAWING if polarity == "light-on-dark" else 0)
    else:
        ink = segmentation.find(_working(grey))
    if ink is None:
        raise NoDigitError("shows no digit: no part of it is darker or lighter than the rest")
    digits = layout.separate(ink) if each else [ink]
    pixels = np.stack([preparation.normalize(digit).reshape(-1) for digit in digits])
    return Prepared(pixels, tuple(layout.inspect(digit) for digit in digits))


def _working(grey: Image.Image) -> Grey:
    grey.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(grey, dtype=np.float64)


def _drawn(grey: Image.Image, smallest: float) -> Grey | None:
    """The ink of a drawing, 0..1; None if it is blank or smaller than that share of the side."""
    levels = _working(grey)
    inked = levels >= segmentation.FAINTEST_INK
    if not inked.any() or np.ptp(np.argwhere(inked), axis=0).max() + 1 < smallest * max(levels.shape):
        return None
    return np.where(inked, levels / 255, 0.0)


def _content(file: BinaryIO) -> bytes:
    try:
        content = file.read(LARGEST_FILE + 1)  # not by its size, which a device or a pipe does not have
    except UnicodeDecodeError:
        content = None
    if not isinstance(content, bytes):
        raise ImageError("is open as text; expected a binary file, open(path, 'rb')")
    try:
        if len(content) > LARGEST_FILE:
            raise ImageError(f"is larger than the {LARGEST_FILE:,} bytes that are read")
        if content.startswith(b"\x1f\x8b"):
            with gzip.open(io.BytesIO(content)) as packed:
                content = packed.read(LARGEST_FILE + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise ImageError("is a damaged gzip file") from None
    if not content:
        raise ImageError("is empty")
    if len(content) > LARGEST_FILE:
        raise ImageError(f"unpacks to more than {LARGEST_FILE:,} bytes")
    return content


def _idx_images(content: bytes) -> Pixels:
    if len(content) < 16:
        raise ImageError("is an IDX file cut short in its header")
    n, rows, columns = (int.from_bytes(content[i : i + 4]) for i in (4, 8, 12))
    if (rows, columns) != (SIDE, SIDE):
        raise ImageError(f"is an IDX file of {rows}x{columns} images; expected 28x28")
    if len(content) - 16 != n * SIDE * SIDE or not n:
        raise ImageError(
            f"is an IDX file of {n} images with {len(content) - 16} bytes of them; expected n x 784, n > 0"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=16).reshape(n, SIDE * SIDE)
