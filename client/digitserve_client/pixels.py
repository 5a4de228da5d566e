"""Convert arrays, tensors, lists, pictures and files to the bytes of a request; reject ambiguous input."""

from __future__ import annotations

import functools
import itertools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from digitserve_client.uncertainty import Inspection

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from PIL.Image import Image

    from digitserve_client.image import Prepared

PIXELS = 784
SIDE = 28

Levels = npt.NDArray[np.uint8]
Picture: TypeAlias = "str | os.PathLike[str] | BinaryIO | Image"
Pixels: TypeAlias = "npt.ArrayLike | bytearray | Picture | Sequence[Picture]"
"""Input of `to_bytes`; also any object with `__array__`, `__array_interface__`, `__dlpack__` or a buffer."""

_OVERSHOOT = 0.3
"""By how much scaling with a bicubic filter, or the rounding of floats, goes beyond 0 and 1."""

_UINT8 = np.dtype(np.uint8)
_BACKGROUND_TO_INK = "expected uint8 from 0, background, to 255, ink; or bool; or floats from 0 to 1"
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1", b"GIF87a", b"GIF89a")
_SHORT_SIGNATURES = (b"\xff\xd8\xff", b"BM", b"RIFF", b"II*\0", b"MM\0*", b"P5", b"P6", b"\x1f\x8b", b"\0\0\x08\x03")
"""How the files begin that `to_mnist` reads, gzip and IDX among them."""
_SHAPES = f"expected [n, {PIXELS}], [n, {SIDE}, {SIDE}] or one image of these"


class ImageError(ValueError):
    """Input without a readable digit; the text has the input and the reason."""


def to_bytes(pixels: Pixels) -> bytes:
    """Images as n x 784 bytes: 0 is background and 255 ink.

    Accepts raw bytes except those of a PNG, JPEG or GIF, pictures as in `to_mnist`, and lists of pictures. Accepts
    arrays of [n, 784], [n, 28, 28] or one image, with axes of length 1 anywhere. Values are uint8, bool, other
    integers from 0 to 255, or floats from 0 to 1.
    Raises ImageError, a ValueError, for other input, for a mask of 0 and 1, and for ink that is dark on light.
    """
    if type(pixels) is np.ndarray:
        array = pixels
    elif isinstance(pixels, bytes):
        return _raw(pixels)
    elif isinstance(pixels, bytearray | memoryview) and memoryview(pixels).format == "B":
        return _raw(bytes(pixels))
    else:
        array = _array(pixels)
    if not _is_images(array.shape):
        raise ImageError(_misshapen(array))
    raw = array.tobytes() if array.dtype is _UINT8 else _levels(array).tobytes()
    # Digits have ink over 127 and black corners; two are seen in a fifth of a microsecond. Others are looked at.
    if raw.isascii():
        _check_mask(raw)
    if raw[::PIXELS].count(0) + raw[PIXELS - 1 :: PIXELS].count(0) < 2 * (len(raw) // PIXELS):
        _check_polarity(raw)
    return raw


def inspect(pixels: Pixels) -> tuple[Pixels, tuple[Inspection, ...]]:
    """Return the images for `to_bytes`, with pictures prepared, and the findings on each picture; () for arrays."""
    if type(pixels) is np.ndarray or not _holds_pictures(pixels):
        return pixels, ()
    prepared = _read_all(pixels)
    return prepared.pixels, prepared.inspections


def to_mnist(picture: Pixels) -> Levels:
    """A photograph or drawing of one digit in MNIST's form, or the images of an IDX file: uint8 (n, 784).

    Accepts a path, an open binary file, a PIL image, or a list of these. Accepts one array of any (height, width), or
    (height, width, 3 or 4) with colours. Ink is dark on light or light on dark. Raises ImageError without a digit, and
    ImportError without Pillow.
    """
    if _holds_pictures(picture):
        return _read_all(picture).pixels
    array = _array(picture)
    shape = array.squeeze().shape
    if shape == (PIXELS,):
        shape = (SIDE, SIDE)
    in_colour = len(shape) == 3 and shape[2] in (3, 4)
    if not shape or 0 in shape or not (len(shape) == 2 or in_colour) or _are_rows(shape):
        raise ImageError(
            f"picture is {_described(array)}; expected one picture, [height, width] or with 3 or 4 colours"
        )
    prepared: Levels = _reader().from_array(_levels(array).reshape(shape)).pixels
    return prepared


def _are_rows(shape: tuple[int, ...]) -> bool:
    """Whether a shape is that of images in rows rather than of a photograph 784 pixels wide."""
    return shape[1:] == (PIXELS,) and not PIXELS / 8 < shape[0] < PIXELS * 8


def _raw(pixels: bytes) -> bytes:
    # Short signatures may be pixels: those of 2 bytes only explain a wrong length.
    if pixels.startswith(_SIGNATURES) or (len(pixels) % PIXELS and pixels.startswith(_SHORT_SIGNATURES)):
        raise ImageError("pixels holds the bytes of a picture's file; expected the file: pass io.BytesIO(pixels)")
    if not pixels or len(pixels) % PIXELS:
        raise ImageError(f"pixels holds {len(pixels)} bytes; expected n x {PIXELS}, n at least 1")
    return pixels


@functools.lru_cache
def _is_images(shape: tuple[int, ...]) -> bool:
    squeezed = tuple(n for n in shape if n != 1)
    rows, squares = squeezed[-1:] == (PIXELS,), squeezed[-2:] == (SIDE, SIDE)
    return ((rows and len(squeezed) <= 2) or (squares and len(squeezed) <= 3)) and 0 not in squeezed


def _array(pixels: Any) -> npt.NDArray[Any]:
    """The numbers of anything that has some; pictures are prepared."""
    if _holds_pictures(pixels):
        return _read_all(pixels).pixels
    if isinstance(pixels, np.ma.MaskedArray) and np.ma.is_masked(pixels):
        raise ImageError("pixels is an array with masked values; expected all of them: pass pixels.filled(0)")
    only_dlpack = hasattr(pixels, "__dlpack__") and not hasattr(pixels, "__array__")
    try:
        array = np.from_dlpack(pixels) if only_dlpack else np.asarray(pixels)
    except (BufferError, RuntimeError, TypeError, ValueError) as e:
        # Such as a list of lists of several lengths, a tensor on a GPU, or one that needs its gradient.
        why = str(e).split("\n", 1)[0]
        hint = ": pass pixels.detach().cpu()" if hasattr(pixels, "detach") else ""
        raise ImageError(f"pixels is {type(pixels).__name__} and becomes no array ({why}){hint}") from None
    if array.dtype.kind not in "buif":
        raise ImageError(f"pixels is {type(pixels).__name__} of {array.dtype}; {_BACKGROUND_TO_INK}")
    return array


def _levels(array: npt.NDArray[Any]) -> Levels:
    """Bool, integers and floats as uint8."""
    kind = array.dtype.kind
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if kind not in "uif":
        raise ImageError(f"pixels is {_described(array)}; {_BACKGROUND_TO_INK}")
    top = 1 if kind == "f" else 255
    outside = ~((array >= 0) & (array <= top))  # NaN is outside too
    if outside.any():
        raise ImageError(_out_of_range(array, outside, top))
    if kind == "f":
        array = np.rint(array.astype(np.float32) * np.float32(255))
    return array.astype(np.uint8)


def _out_of_range(array: npt.NDArray[Any], outside: npt.NDArray[np.bool_], top: int) -> str:
    at = int(np.argmax(outside))
    value, low, high = array.flat[at], array.min(), array.max()
    expected = "floats from 0, background, to 1, ink" if top == 1 else "integers from 0, background, to 255, ink"
    if top == 1:
        advice = _advice_on_floats(float(low), float(high))
    elif array.dtype == np.int8:
        advice = ": pass pixels.view(numpy.uint8)"
    elif low >= 0 and high < 2**16:
        advice = ": pass pixels >> 8 if they have 16 bits"
    else:
        advice = ""
    return f"{_place(at // PIXELS, array.size // PIXELS)} holds {value}; expected {expected}{advice}"


def _advice_on_floats(low: float, high: float) -> str:
    """Return advice for floats of that range; an empty string for NaN and infinity."""
    if low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT:
        return ": pass pixels.clip(0, 1)"
    if low < 0:
        return ": undo the normalisation"
    return ": divide by 255" if high <= 255 else ""


def _check_mask(raw: bytes) -> None:
    """Blank images are some; a brightest pixel of 1 is nearly always a mask, which would be read as blank."""
    if max(raw) == 1:
        raise ImageError("pixels holds 0 and 1 alone; expected 0 to 255: multiply by 255, or pass bool or floats")


def _check_polarity(raw: bytes) -> None:
    """Reject dark ink on light paper: its edge and most of the picture are lighter than the average."""
    images = np.frombuffer(raw, np.uint8).reshape(-1, SIDE, SIDE)
    border = np.concatenate([images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1]], axis=1)
    # Seven tenths of the border, since a stroke may run off the picture, or one side be cropped beyond the paper.
    paper = np.minimum(np.percentile(border, 30, axis=1), np.median(images, axis=(1, 2)))
    dark_on_light = paper > images.mean(axis=(1, 2))
    if dark_on_light.any():
        place = _place(int(np.argmax(dark_on_light)), len(images))
        raise ImageError(
            f"{place} is dark on light; expected light ink on 0, black: pass 255 - pixels, "
            "or to_mnist(pixels) for a photograph or drawing"
        )


def _misshapen(array: npt.NDArray[Any]) -> str:
    coloured = array.ndim >= 3 and array.shape[-1] in (3, 4)
    advice = "; to_mnist(pixels) takes a picture in colour" if coloured else ""
    return f"pixels is {_described(array)}; {_SHAPES}{advice}"


def _described(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _place(row: int, rows: int) -> str:
    return "pixels" if rows == 1 else f"pixels[{row}]"


def _is_picture(value: Any) -> bool:
    pillow = sys.modules.get("PIL.Image")  # who has such an image has imported it
    return (
        isinstance(value, str | os.PathLike)
        or hasattr(value, "read")
        or (pillow is not None and isinstance(value, pillow.Image))
    )


def _holds_pictures(value: Any) -> bool:
    """Whether it is a picture, or a list that begins with one."""
    return _is_picture(value) or (isinstance(value, list | tuple) and bool(value) and _is_picture(value[0]))


def _read_all(pictures: Any) -> Prepared:
    if not isinstance(pictures, list | tuple):
        return _read(pictures)
    read = [_read(each) for each in pictures]
    inspections = [each.inspections or (Inspection(),) * len(each.pixels) for each in read]
    pixels = np.concatenate([each.pixels for each in read])
    combined: Prepared = _reader().Prepared(pixels, tuple(itertools.chain(*inspections)))
    return combined


def _read(picture: Any) -> Prepared:
    image = _reader()
    if isinstance(picture, str) and "://" in picture:
        raise ImageError(f"{picture}: is a URL; expected a path, or the result of urllib.request.urlopen(URL)")
    if isinstance(picture, str | os.PathLike):
        prepared: Prepared = image.prepare_path(Path(picture))
    elif hasattr(picture, "read"):
        prepared = image.prepare_file(picture)
    elif _is_picture(picture):
        prepared = image.prepare_picture(picture)
    else:
        raise ImageError(f"pixels holds {type(picture).__name__} among pictures; expected paths, files or PIL images")
    return prepared


def _reader() -> ModuleType:
    try:
        from digitserve_client import image  # noqa: PLC0415 (Pillow is an extra, and slow to import)
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] != "PIL":
            raise
        raise ImportError("pictures need Pillow: pip install 'digitserve-client[image]'") from None
    return image
