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
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from pathlib import Path

SIDE = 28
BOX = 20
WORKING_SIDE = 256
"""Pixels of the longer side while the ink is looked for: a photograph has more than that takes."""

LARGEST_FILE = 64 * 2**20
LARGEST_IMAGE = 100_000_000  # pixels: more than any camera, less than a decompression bomb
MOST_IMAGES = 100_000

FAINTEST_INK = 25.0
"""Grey levels, of 255, between ink and paper below which a page is blank."""

THINNEST_STROKE = 2.0
"""Pixels in the 20x20 box: MNIST's pens are this broad, and a hairline would vanish when it is scaled down."""

_IDX_IMAGES = b"\x00\x00\x08\x03"

Pixels = npt.NDArray[np.uint8]
Grey = npt.NDArray[np.float64]


class ImageError(Exception):
    """The file holds no digit that can be read; the text says which file and why."""


def read(path: Path) -> Pixels:
    """The images of a PNG, JPEG or other picture (1), or of an IDX file, plain or gzipped (n): uint8 (n, 784)."""
    try:
        content = _content(path)
        if content.startswith(_IDX_IMAGES):
            return _idx_images(content)
        return to_mnist(_picture(content))[None]
    except ImageError as e:
        raise ImageError(f"{path}: {e}") from None


def to_mnist(picture: Image.Image) -> Pixels:
    """One digit, dark on light or light on dark, as uint8 (784,): 0 background, 255 ink.

    A 28x28 picture with light ink on black is taken to be in MNIST's form already and comes back unchanged.
    """
    grey = _grey(picture)
    if grey.size == (SIDE, SIDE) and np.median(np.asarray(grey)) == 0:
        return np.asarray(grey).reshape(-1)
    grey.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.LANCZOS)
    return _placed(_cropped(_ink(np.asarray(grey, dtype=np.float64)))).reshape(-1)


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ImageError(f"is {path.stat().st_size:,} bytes; at most {LARGEST_FILE:,} are read")
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            with gzip.open(io.BytesIO(content)) as file:
                content = file.read(LARGEST_FILE + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise ImageError("is a damaged gzip file") from None
    except OSError as e:
        raise ImageError(f"cannot be read: {e.strerror}") from None
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
            picture = Image.open(io.BytesIO(content))
        too_large = picture.width * picture.height > LARGEST_IMAGE
        picture.draft("L", (2 * WORKING_SIDE, 2 * WORKING_SIDE))  # a JPEG is decoded no larger than needed
        if not too_large:
            picture.load()
    except Image.DecompressionBombError:
        raise ImageError(f"has more pixels than the {LARGEST_IMAGE:,} that are read") from None
    except UnidentifiedImageError:
        raise ImageError("is no picture (PNG, JPEG, ...) and no IDX file of images") from None
    except Exception:  # noqa: BLE001 (Pillow's decoders raise whatever the damage leads them to)
        raise ImageError("is a damaged picture") from None
    if too_large:
        raise ImageError(f"has more pixels than the {LARGEST_IMAGE:,} that are read")
    return picture


def _grey(picture: Image.Image) -> Image.Image:
    """Upright and grey; what is transparent takes the opposite of the drawing's own brightness."""
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I"):  # 16 bits a pixel, which `convert` would clip to white
        return Image.fromarray((np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if not upright.has_transparency_data:
        return upright.convert("L")
    layers = upright.convert("LA")
    light, alpha = (np.asarray(layer, dtype=np.float64) for layer in layers.split())
    drawn = float((light * alpha).sum() / max(alpha.sum(), 1))
    paper = Image.new("LA", layers.size, (255 if drawn < 128 else 0, 255))
    return Image.alpha_composite(paper.convert("RGBA"), layers.convert("RGBA")).convert("L")


def _ink(grey: Grey) -> Grey:
    """How much ink each pixel has, 0..1, whatever the colours and the light; ImageError for a blank page."""
    middle = np.median(grey)
    low, high = np.percentile(grey, (1, 99))
    light_on_dark = high - middle > middle - low
    rise = grey if light_on_dark else 255.0 - grey
    rise = rise - _background(rise)
    threshold = _otsu(np.clip(rise, 0, 255))
    inked = rise > threshold
    if not inked.any() or rise[inked].mean() - np.median(rise[~inked]) < FAINTEST_INK:
        raise ImageError("shows no digit: nothing on it is darker or lighter than the rest")
    full = np.percentile(rise[inked], 75)
    soft = np.clip((rise - threshold / 2) / max(full - threshold / 2, 1), 0, 1)
    return np.where(_kept(inked), soft, 0.0)


def _background(rise: Grey) -> Grey:
    """The light that falls on the paper: a quadratic surface through all that is not ink, by three fits."""
    y, x = np.mgrid[-1 : 1 : rise.shape[0] * 1j, -1 : 1 : rise.shape[1] * 1j]
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    few = slice(None, None, 1 + min(rise.shape) // 64)  # light changes slowly: a coarse grid shows it
    some, values = terms[few, few].reshape(-1, 6), rise[few, few].ravel()
    light = np.array([np.median(values), 0, 0, 0, 0, 0])
    for _ in range(3):
        off = values - some @ light
        paper = off < max(2 * float(np.median(np.abs(off))), 8)
        light = np.linalg.lstsq(some[paper], values[paper], rcond=None)[0]
    surface: Grey = terms @ light
    return surface


def _otsu(values: Grey) -> float:
    """The level that best parts the values in two: largest variance between the parts (Otsu, 1979)."""
    counts, edges = np.histogram(values, bins=256, range=(0, 256))
    weight = np.cumsum(counts)
    mean = np.cumsum(counts * edges[:-1])
    rest = weight[-1] - weight
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean[-1] * weight - mean * weight[-1]) ** 2 / (weight * rest)
    return float(edges[int(np.nanargmax(np.where(rest > 0, between, -1)))])


def _kept(inked: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The ink without specks: parts of less than a twentieth of the largest one; grown to keep their soft edges."""
    parts = _parts(inked)
    area = {part: sum(end - start for _, start, end in runs) for part, runs in parts.items()}
    kept = np.zeros_like(inked)
    for part, runs in parts.items():
        if area[part] * 20 >= max(area.values()):
            for row, start, end in runs:
                kept[row, start:end] = True
    return _neighbours(kept).astype(bool)


def _parts(inked: npt.NDArray[np.bool_]) -> dict[int, list[tuple[int, int, int]]]:
    """The connected parts (eight neighbours), each as its runs of ink: row, first column, column after the last."""
    edges = np.diff(np.pad(inked, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    (rows, starts), (_, ends) = np.nonzero(edges == 1), np.nonzero(edges == -1)
    runs = list(zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True))
    parent = list(range(len(runs)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    above = 0  # the first run that may touch the present one from the row above
    for i, (row, start, end) in enumerate(runs):
        while runs[above][0] < row - 1 or (runs[above][0] == row - 1 and runs[above][2] < start):
            above += 1
        j = above
        while runs[j][0] == row - 1 and runs[j][1] <= end:
            parent[root(j)] = root(i)
            j += 1
    parts: dict[int, list[tuple[int, int, int]]] = {}
    for i, run in enumerate(runs):
        parts.setdefault(root(i), []).append(run)
    return parts


def _neighbours(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """The largest of each pixel and its eight neighbours."""
    padded = np.pad(values, 1)
    rows = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
    largest: npt.NDArray[np.generic] = np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])
    return largest


def _cropped(ink: Grey) -> Image.Image:
    """The digit alone, its pen as broad as MNIST's."""
    rows, columns = np.flatnonzero(ink.max(axis=1)), np.flatnonzero(ink.max(axis=0))
    digit = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
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
