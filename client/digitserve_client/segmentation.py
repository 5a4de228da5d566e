"""Find the ink of a grey picture: subtract paper and light; omit frames, edges and specks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageFilter

from digitserve_client import rulings
from digitserve_client.components import (
    Mask,
    digit_mask,
    digit_parts,
    grown,
    is_box,
    is_frame,
    label,
    to_mask,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FAINTEST_INK = 25.0
"""Grey levels, of 255, between ink and paper. A page with less contrast is blank."""

_FAINTEST_OUTLINE = 0.2
"""Share of the pen's rise over the paper."""

_FAINTER, _LEAST_DARK = 0.6, 0.3
"""Share of the threshold for the faint ends of strokes, and the share of a stroke that must exceed the threshold."""

_SMALLEST_OUTLINE = 0.15
"""Share of the picture's longer side."""

_LEAST_IN_BOX = 0.3
"""Share of a box's height that a digit in it has. If less remains, the box was the digit."""

_FAINTEST_OF_PEAK = 0.06
"""Share of the darkest ink below which a drawing's pixel is noise, such as JPEG's."""

_MOST_SHADOW = 0.2
"""Share of a picture that may be a little darker than white before it is a photograph, over-exposed."""

_UNEVEN = 3.0
"""Ratio of the darkest ink to Otsu's level, from which that level separates the paper's own light and dark areas."""

_COARSE = 64
"""Pixels of the longer side on which light and paper are judged: they change slowly."""

_WIDER_THAN_A_STROKE = 25
"""Coarse pixels. A dark area narrower than this is ink, not shadow."""

_MOST_GAIN = 3.0
"""Largest factor by which ink in a shadow is amplified."""

Grey = npt.NDArray[np.float64]
Levels = npt.NDArray[np.uint8]


def find(grey: Grey) -> Grey | None:
    """The ink of each pixel, 0..1, independent of colours and light; None for a blank page."""
    drawn = _on_clean_ground(grey)
    if drawn is not None:
        return drawn
    rise = _without_outlines(rulings.erase(_over_paper(grey)))
    inked = rise > _ink_level(rise)
    if not inked.any() or rise[inked].mean() - np.median(rise[~inked]) < FAINTEST_INK:
        return None
    soft, threshold = _soft(rise)
    mask = digit_mask(_with_fainter_ends(rise, threshold))
    if not mask.any():
        return None
    return np.where(grown(mask), soft, 0.0)


def _without_outlines(rise: Grey) -> Grey:
    """Erase boxes and circles around the digit, also those fainter than the pen or touched by it."""
    pen = float(np.percentile(rise, 99.5))
    rise = rise.copy()
    for part in label(rise > _FAINTEST_OUTLINE * pen):
        if max(part.height, part.width) < _SMALLEST_OUTLINE * max(rise.shape):
            continue
        outline = to_mask([part], rise.shape)
        if is_frame(part, label((rise > pen / 2) & ~outline)):
            rise[grown(outline)] = 0
        elif is_box(part, rise.shape):
            box = slice(part.top, part.bottom), slice(part.left, part.right)
            within = rulings.erase_box(rise[box], pen)
            if any(each.height >= _LEAST_IN_BOX * part.height for each in label(within > pen / 2)):
                rise[box] = within
    return rise


def _with_fainter_ends(rise: Grey, threshold: float) -> Mask:
    """Mask the ink over the threshold, and fainter ink connected to it, as at the end of a stroke."""
    inked = rise > threshold
    noise = 1.4826 * float(np.median(np.abs(rise - np.median(rise))))  # its standard deviation, were it Gaussian
    fainter = max(_FAINTER * threshold, 4 * noise)
    if fainter >= threshold:
        return inked
    parts = label(rise > fainter)
    dark = [sum(np.count_nonzero(inked[row, start:end]) for row, start, end in part.runs) for part in parts]
    mask = [part for part, n in zip(parts, dark, strict=True) if n >= _LEAST_DARK * part.area]
    return to_mask(mask, rise.shape) | inked


def _soft(rise: Grey) -> tuple[Grey, float]:
    """The rise as ink 0..1, and the rise from which a pixel is more ink than paper."""
    threshold = _ink_level(rise)
    full = float(np.percentile(rise[rise > threshold], 75))
    # The printed lines of an exercise book are ink too, but fainter than the pen.
    threshold = max(threshold, 0.4 * full)
    return np.clip((rise - threshold / 2) / max(full - threshold / 2, 1), 0, 1), threshold


def _on_clean_ground(grey: Grey) -> Grey | None:
    """The ink of a drawing or a binarized scan, on all black or all white ground, else None.

    There is no light to even out, and ink that crosses the edge is the digit's.
    """
    ground = float(np.median(grey))
    if ground not in (0, 255):
        return None
    rise = np.abs(grey - ground)
    peak = float(rise.max())
    shadow = (rise > _FAINTEST_OF_PEAK * peak) & (rise < 0.4 * peak)
    if peak < FAINTEST_INK or shadow.mean() > _MOST_SHADOW:
        return None
    soft, _ = _soft(rise)
    return np.where(to_mask(digit_parts(label(grown(soft > 0))), grey.shape), soft, 0.0)


def _is_light_on_dark(grey: Grey) -> bool:
    """Whether the strongest deviations from the median of their surroundings are lighter."""
    coarse = _resized(grey, _COARSE // 2)
    surroundings = np.asarray(_image(coarse).filter(ImageFilter.MedianFilter(_COARSE // 4 + 1)), dtype=np.float64)
    off = grey - _resized(surroundings, max(grey.shape), grey.shape)
    rows, columns = (np.sin(np.pi * (np.arange(n) + 0.5) / n) for n in grey.shape)
    # Cubes, so that little ink outweighs much noise; less near the edges, as they may show a table next to the page.
    return float(rows @ off**3 @ columns) > 0


def _over_paper(grey: Grey) -> Grey:
    """The rise of each pixel's ink over the paper around it, in grey levels; in shadow as many as in the light."""
    if _is_light_on_dark(grey):
        return grey - _paper(grey)
    darkness = 255.0 - grey
    paper = _paper(darkness)
    light = 255.0 - paper  # the ink receives the same light as the paper
    return (darkness - paper) * np.clip(np.percentile(light, 90) / np.maximum(light, 1), 1, _MOST_GAIN)


def _paper(rise: Grey) -> Grey:
    """The paper under the ink: a morphological opening, which keeps the edges of shadows."""
    coarse = np.asarray(_image(_resized(rise, _COARSE)))
    margin = _WIDER_THAN_A_STROKE
    padded = np.pad(coarse, margin, mode="edge")
    # A pixel more is added than was taken: no line remains between page and table, or light and shadow.
    opened = _over_squares(np.max, margin + 2, _over_squares(np.min, margin, padded))
    return _resized(opened[margin:-margin, margin:-margin].astype(np.float64), max(rise.shape), rise.shape)


def _over_squares(extreme: Callable[..., Levels], side: int, values: Levels) -> Levels:
    """The minimum or maximum of the square around each value, along one axis and then the other.

    Pillow's rank filter computes the same in 50 times the time, a visible delay while drawing.
    """
    padded = np.pad(values, side // 2, mode="edge")
    rows = extreme(sliding_window_view(padded, side, axis=0), axis=-1)
    return extreme(sliding_window_view(rows, side, axis=1), axis=-1)


def _resized(values: Grey, side: int, shape: tuple[int, ...] | None = None) -> Grey:
    """The picture with its longer side of at most that many pixels, or of exactly that shape."""
    scale = min(1.0, side / max(values.shape))
    height, width = shape or (max(1, round(n * scale)) for n in values.shape)
    method = Image.Resampling.BILINEAR if shape else Image.Resampling.BOX
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((width, height), method), dtype=np.float64)


def _image(values: Grey) -> Image.Image:
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def _ink_level(rise: Grey) -> float:
    """The rise between paper and ink; a small digit on uneven paper has much darker ink than Otsu's level."""
    level = _otsu(rise)
    darker = rise[rise > level]
    if not darker.size:
        return level
    second = _otsu(darker)
    ink = darker[darker > second]
    return second if ink.size and ink.mean() > _UNEVEN * max(level, 1) else level


def _otsu(values: Grey) -> float:
    """The level with the largest variance between the values below and above it (Otsu, 1979)."""
    counts, edges = np.histogram(np.clip(values, 0, 255), bins=256, range=(0, 256))
    weight = np.cumsum(counts)
    mean = np.cumsum(counts * edges[:-1])
    rest = weight[-1] - weight
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean[-1] * weight - mean * weight[-1]) ** 2 / (weight * rest)
    return float(edges[int(np.nanargmax(np.where(rest > 0, between, -1)))])
