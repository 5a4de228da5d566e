"""Files -> pixels as the network knows them: an IDX file as it is; a photograph or drawing brought into MNIST's form.

MNIST's page (LeCun, Cortes, Burges: "The MNIST database of handwritten digits") says how: the digit is scaled into
20x20 pixels with its proportions kept, and put into 28x28 so that its centre of mass is in the middle.
"""

from __future__ import annotations

import gzip
import io
import math
import warnings
import zlib
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

from digitserve_client import segmentation
from digitserve_client.pixels import SIDE, ImageError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, BinaryIO

__all__ = [
    "FORMATS",
    "LARGEST_FILE",
    "ImageError",
    "Pixels",
    "from_array",
    "read",
    "read_bytes",
    "read_file",
    "read_image",
    "to_mnist",
]

BOX = 20
WORKING_SIDE = 256
"""Pixels of the longer side while the ink is looked for: a photograph has more than that takes."""

LARGEST_FILE = 64 * 2**20
LARGEST_IMAGE = 100_000_000  # pixels: more than any camera, less than a decompression bomb
MOST_IMAGES = 100_000

SMALLEST_DRAWING = 1 / 7
"""Share of a drawing's side; anything smaller is the first dot of a stroke."""

THINNEST_STROKE = 2.0
"""Pixels in the 20x20 box: MNIST's pens are this broad, and a hairline would vanish when it is scaled down."""

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""What is opened: of all that Pillow knows, not what starts other programs (EPS) or is seldom met and less tested."""

_IDX_IMAGES = b"\x00\x00\x08\x03"

Pixels = npt.NDArray[np.uint8]
Grey = npt.NDArray[np.float64]


class NoDigitError(ImageError):
    """The picture is a sound one, but blank, or nearly so."""


def read(path: Path) -> Pixels:
    """The images of a PNG, JPEG or other picture (1), or of an IDX file, plain or gzipped (n): uint8 (n, 784)."""
    try:
        with path.open("rb") as file:
            return read_open(file)
    except ImageError as e:
        raise ImageError(f"{path}: {e}") from None
    except (OSError, ValueError) as e:  # ValueError: a zero byte in the path
        raise ImageError(f"{path}: cannot be read: {getattr(e, 'strerror', e)}") from None


def read_open(file: BinaryIO) -> Pixels:
    """As `read`, for a file that is open; the text of an ImageError names none."""
    return read_bytes(_content(file))


def read_file(file: BinaryIO) -> Pixels:
    """As `read`, for an open binary file, from where it stands."""
    name = getattr(file, "name", "the file")
    try:
        return read_open(file)
    except ImageError as e:
        raise ImageError(f"{name}: {e}") from None
    except (OSError, ValueError) as e:  # ValueError: it is closed
        raise ImageError(f"{name}: cannot be read: {getattr(e, 'strerror', None) or e}") from None


def read_image(picture: Image.Image) -> Pixels:
    """As `read`, for an image of Pillow's, whose file may be damaged or closed: it is read when it is needed."""
    try:
        picture.load()
    except Exception as e:  # noqa: BLE001 (Pillow's decoders raise whatever the damage leads them to)
        raise ImageError(f"the picture cannot be read: {str(e) or 'it is closed'}") from None
    try:
        return to_mnist(picture)[None]
    except ImageError as e:
        raise ImageError(f"the picture {e}") from None


def from_array(array: npt.NDArray[Any]) -> Pixels:
    """As `read`, for uint8 (height, width) or (height, width, 3 or 4): uint8 (1, 784)."""
    return read_image(Image.fromarray(array))


def read_bytes(content: bytes, *, light_on_black: bool = False) -> Pixels:
    """As `read`, for the content of such a file, unpacked; `light_on_black` as for `to_mnist`."""
    if content.startswith(_IDX_IMAGES):
        return _idx_images(content)
    return to_mnist(_picture(content), light_on_black=light_on_black)[None]


def to_mnist(picture: Image.Image, *, light_on_black: bool = False) -> Pixels:
    """One digit, dark on light or light on dark, as uint8 (784,): 0 background, 255 ink.

    A 28x28 picture with light ink on black is taken to be in MNIST's form already and comes back unchanged.
    With `light_on_black` the picture is known to be a drawing: the brightness of each pixel is its ink, however much
    of the picture is inked. So is the opacity of a drawing on a transparent ground.
    """
    upright = _upright(picture)
    grey = _grey(upright)
    if grey.size == (SIDE, SIDE) and (light_on_black or np.median(np.asarray(grey)) == 0):
        return np.asarray(grey).reshape(-1)
    drawing = grey if light_on_black else _cut_out(upright)
    if drawing is not None:
        found = _drawn(drawing, SMALLEST_DRAWING if light_on_black else 0)
    else:
        found = segmentation.find(_working(grey))
    if found is None:
        raise NoDigitError("shows no digit: nothing on it is darker or lighter than the rest")
    return _placed(_cropped(found)).reshape(-1)


def _working(grey: Image.Image) -> Grey:
    grey.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(grey, dtype=np.float64)


def _drawn(grey: Image.Image, smallest: float) -> Grey | None:
    """The ink of a drawing, 0..1; None where it is all blank or smaller than that share of the side."""
    levels = _working(grey)
    inked = np.argwhere(levels >= segmentation.FAINTEST_INK)
    if not inked.size or np.ptp(inked, axis=0).max() + 1 < smallest * max(levels.shape):
        return None
    return np.where(levels >= segmentation.FAINTEST_INK, levels / 255, 0.0)


def _cut_out(upright: Image.Image) -> Image.Image | None:
    """The opacity of a picture whose opaque part is all of one brightness, so that only its shape can be the digit."""
    if not upright.has_transparency_data:
        return None
    light, alpha = upright.convert("LA").split()
    opaque = np.asarray(light)[np.asarray(alpha) > 127]
    flat = opaque.size and int(opaque.max()) - int(opaque.min()) < segmentation.FAINTEST_INK
    return alpha if flat and opaque.size < np.asarray(alpha).size else None


def _content(file: BinaryIO) -> bytes:
    try:
        content = file.read(LARGEST_FILE + 1)  # not by its size, which a device or a pipe does not tell
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


def _picture(content: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the next lines set our own limit
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
        too_large = picture.width * picture.height > LARGEST_IMAGE
        picture.draft("L", (2 * WORKING_SIDE, 2 * WORKING_SIDE))  # a JPEG is decoded no larger than needed
        if not too_large:
            picture.load()
    except Image.DecompressionBombError:
        raise ImageError(f"has more pixels than the {LARGEST_IMAGE:,} that are read") from None
    except UnidentifiedImageError:
        raise ImageError(f"is no picture ({', '.join(FORMATS)}) and no IDX file of images") from None
    except Exception:  # noqa: BLE001 (Pillow's decoders raise whatever the damage leads them to)
        raise ImageError("is a damaged picture") from None
    if too_large:
        raise ImageError(f"has more pixels than the {LARGEST_IMAGE:,} that are read")
    return picture


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # noqa: BLE001 (as above; what is damaged is its EXIF, which says how the camera was held)
        return picture


def _grey(upright: Image.Image) -> Image.Image:
    """Grey; what is transparent takes the opposite of the drawing's own brightness."""
    if upright.mode.startswith("I"):  # 16 bits a pixel, which `convert` would clip to white
        return Image.fromarray((np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if not upright.has_transparency_data:
        return upright.convert("L")
    layers = upright.convert("LA")
    light, alpha = (np.asarray(layer, dtype=np.float64) for layer in layers.split())
    drawn = float((light * alpha).sum() / max(alpha.sum(), 1))
    paper = Image.new("LA", layers.size, (255 if drawn < 128 else 0, 255))
    return Image.alpha_composite(paper.convert("RGBA"), layers.convert("RGBA")).convert("L")


def _cropped(found: Grey) -> Image.Image:
    """The digit alone, its pen as broad as MNIST's."""
    rows, columns = np.flatnonzero(found.max(axis=1)), np.flatnonzero(found.max(axis=0))
    digit = found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    picture = Image.fromarray((digit * 255).round().astype(np.uint8))
    scale = max(picture.size) / BOX
    missing = THINNEST_STROKE * scale - _stroke(digit)
    if missing > 1:
        margin = math.ceil(missing / 2)
        picture = ImageOps.expand(picture, margin).filter(ImageFilter.MaxFilter(2 * margin + 1))
    return picture


def _stroke(digit: Grey) -> float:
    """Pixels across the pen's line: the area over half the length of its outline."""
    area = digit.sum()
    padded = np.pad(digit, 1)
    outline = np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
    # A slanting outline is counted along both axes: 4 / pi too long on average over all directions.
    return float(2 * area / (outline * math.pi / 4))


def _placed(picture: Image.Image) -> Pixels:
    scale = BOX / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    digit = np.asarray(
        picture.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC), np.float64
    )
    digit *= 255 / max(digit.max(), 1)
    y, x = (float((np.arange(n) * digit.sum(axis=1 - axis)).sum() / digit.sum()) for axis, n in enumerate(digit.shape))
    top, left = (round((SIDE - 1) / 2 - centre) for centre in (y, x))
    top, left = (min(max(at, 0), SIDE - n) for at, n in zip((top, left), digit.shape, strict=True))
    placed = np.zeros((SIDE, SIDE), np.uint8)
    placed[top : top + digit.shape[0], left : left + digit.shape[1]] = digit.round()
    return placed
