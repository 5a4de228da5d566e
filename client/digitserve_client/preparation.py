"""Convert the ink of one digit to 28x28 pixels in MNIST's form.

MNIST's page defines the form (LeCun, Cortes, Burges: "The MNIST database of handwritten digits"). The digit is scaled
into 20x20 pixels, and placed in 28x28 with its centre of mass in the middle.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from digitserve_client.pixels import SIDE

__all__ = ["BOX", "is_in_mnist_form", "normalize"]

BOX = 20
"""Pixels of the longer side of the digit."""

ENLARGEMENT = 8
"""Pixels for each of the 28x28, at which the pen is measured and changed in fractions of a pixel."""

PEN, BROADEST_PEN = 2.3, 3.0
"""Pixels in the 20x20 box. The first is the median of MNIST's pens; a thinner pen is broadened to it. A pen broader
than the second is thinned to it, so that the digit's holes stay open."""

WIDEST = 0.9
"""Largest width over height. A wider digit is compressed to it: the network reads it more often."""

PRESSURE_REACH = 2
"""Pixels of the 28x28 around a pixel. The fullest ink among them becomes full."""

FAINTEST_STROKE = 0.15
"""Share of the fullest ink. A stroke below it stays fainter than the others."""

_EDGE = 0.3
"""Share of the fullest ink from which a pixel is the digit's: the blur of a lens around it would make it smaller."""

_LARGEST_SIDES = range(18, 22)
_FARTHEST_FROM_MIDDLE = 1.1
_LEAST_PEAK = 200
"""The limits of MNIST's test digits: longer side, distance of the centre of mass in pixels, brightest level."""

Levels = npt.NDArray[np.uint8]
Grey = npt.NDArray[np.float64]


def is_in_mnist_form(levels: Levels) -> bool:
    """Whether a picture, light on black, has the size, place and contrast of MNIST's digits."""
    if levels.shape != (SIDE, SIDE) or np.median(levels) > 0 or levels.max() < _LEAST_PEAK:
        return False
    rows, columns = _extent(levels > 0)
    if max(rows.stop - rows.start, columns.stop - columns.start) not in _LARGEST_SIDES:
        return False
    middle = (SIDE - 1) / 2
    return all(abs(centre - middle) <= _FARTHEST_FROM_MIDDLE for centre in _centre_of_mass(levels))


def normalize(ink: Grey) -> Levels:
    """The ink of one digit, (height, width) 0..1 and not all 0, in MNIST's form: uint8 (28, 28)."""
    rows, columns = _extent(ink > _EDGE * ink.max())
    return _placed(_with_a_pen_like_mnists(_enlarged(ink[rows, columns])))


def _extent(inked: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(inked.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _enlarged(digit: Grey) -> Grey:
    """The digit with its longer side of 20 x `ENLARGEMENT`, at most `WIDEST`."""
    height, width = digit.shape
    compressed = min(width, WIDEST * height)
    scale = BOX * ENLARGEMENT / max(height, compressed)
    height, width = (max(1, round(n * scale)) for n in (height, compressed))
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    picture = Image.fromarray(digit.astype(np.float32)).resize((width, height), method)
    return np.asarray(picture, np.float64).clip(0, 1)


def _with_a_pen_like_mnists(digit: Grey) -> Grey:
    pen = pen_width(digit) / ENLARGEMENT
    target = min(max(pen, PEN), BROADEST_PEN)
    # A changed outline changes the scale of the digit, and of its pen.
    by = round((target - pen) * BOX / (BOX - target) * ENLARGEMENT / 2)
    return _grown(digit, by) if by >= 0 else _thinned(digit, -by)


def _thinned(digit: Grey, by: int) -> Grey:
    """Thin the digit by this number of pixels on all sides; strokes that would vanish keep their width."""
    padded = np.pad(digit, 2 * by)
    eroded = 1 - _grown(1 - padded, by)[by:-by, by:-by]
    opened = _grown(eroded, by)[by:-by, by:-by]
    thinned = np.maximum(eroded, padded - np.minimum(padded, opened))
    rows, columns = _extent(thinned > _EDGE * thinned.max())
    return np.asarray(thinned[rows, columns])


def pen_width(digit: Grey) -> float:
    """Pixels across the pen's line: the area over half the length of its outline."""
    inked = np.pad(digit > 0.5 * digit.max(), 1)
    outline = np.count_nonzero(inked[1:] != inked[:-1]) + np.count_nonzero(inked[:, 1:] != inked[:, :-1])
    # A slanting outline is counted along both axes: 4 / pi too long on average over all directions.
    return float(2 * np.count_nonzero(inked) / (outline * math.pi / 4))


def _grown(digit: Grey, by: int) -> Grey:
    """Grow the digit by this number of pixels on all sides, by crosses and squares in turn, which form octagons."""
    grown = np.pad(digit, by)
    for step in range(by):
        around = np.pad(grown, 1)
        rows = np.maximum(np.maximum(around[:-2], around[2:]), around[1:-1])
        if step % 2:
            grown = np.maximum(np.maximum(rows[:, :-2], rows[:, 2:]), rows[:, 1:-1])
        else:
            grown = np.maximum(np.maximum(around[1:-1, :-2], around[1:-1, 2:]), rows[:, 1:-1])
    return grown


def _placed(digit: Grey) -> Levels:
    """Scale the enlarged digit into 20x20, and place it in 28x28 by its centre of mass."""
    scale = BOX / max(digit.shape)
    height, width = (max(1, round(n * scale)) for n in digit.shape)
    small = np.asarray(Image.fromarray(digit.astype(np.float32)).resize((width, height), Image.Resampling.BOX))
    small = _with_even_pressure(small.astype(np.float64) / small.max()) * 255
    placed = np.zeros((SIDE, SIDE), np.uint8)
    top, left = (round((SIDE - 1) / 2 - centre) for centre in _centre_of_mass(small))
    top, left = (min(max(at, 0), SIDE - n) for at, n in zip((top, left), small.shape, strict=True))
    placed[top : top + height, left : left + width] = small.round()
    return placed


def _with_even_pressure(digit: Grey) -> Grey:
    """Raise faint strokes to full ink: MNIST's digits were black and white before they were scaled."""
    around = _grown(digit, PRESSURE_REACH)[PRESSURE_REACH:-PRESSURE_REACH, PRESSURE_REACH:-PRESSURE_REACH]
    return np.asarray(digit / np.maximum(around, FAINTEST_STROKE))


def _centre_of_mass(levels: npt.NDArray[np.floating | np.uint8]) -> tuple[float, float]:
    mass = levels.astype(np.float64)
    y, x = (float((np.arange(n) * mass.sum(axis=1 - axis)).sum() / mass.sum()) for axis, n in enumerate(mass.shape))
    return y, x
