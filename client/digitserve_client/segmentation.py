"""A grey picture -> where its ink is: paper and light taken away, frames, edges and specks left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageFilter

if TYPE_CHECKING:
    from collections.abc import Callable

FAINTEST_INK = 25.0
"""Grey levels, of 255, between ink and paper below which a page is blank."""

_COARSE = 64
"""Pixels of the longer side on which light and paper are judged: they change slowly."""

_WIDER_THAN_A_STROKE = 25
"""Coarse pixels: what is darker than its surroundings and narrower than this is ink, not shadow."""

Grey = npt.NDArray[np.float64]
Levels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


class Part(NamedTuple):
    """A connected part of the ink: its runs (row, first column, column after the last), its area and its box."""

    runs: list[tuple[int, int, int]]
    area: int
    top: int
    left: int
    bottom: int
    right: int


def find(grey: Grey) -> Grey | None:
    """How much ink each pixel has, 0..1, whatever the colours and the light; None for a blank page."""
    rise = _above_paper(grey if _is_light_on_dark(grey) else 255.0 - grey)
    threshold = _otsu(np.clip(rise, 0, 255))
    inked = rise > threshold
    if not inked.any() or rise[inked].mean() - np.median(rise[~inked]) < FAINTEST_INK:
        return None
    full = np.percentile(rise[inked], 75)
    # The printed lines of an exercise book are ink too, but fainter than the pen.
    threshold = max(threshold, 0.4 * full)
    soft = np.clip((rise - threshold / 2) / max(full - threshold / 2, 1), 0, 1)
    return np.where(_digit(rise > threshold), soft, 0.0)


def _is_light_on_dark(grey: Grey) -> bool:
    """Whether what stands out most from the median of its surroundings is the lighter."""
    coarse = _resized(grey, _COARSE // 2)
    surroundings = np.asarray(_image(coarse).filter(ImageFilter.MedianFilter(_COARSE // 4 + 1)), dtype=np.float64)
    off = grey - _resized(surroundings, max(grey.shape), grey.shape)
    rows, columns = (np.sin(np.pi * (np.arange(n) + 0.5) / n) for n in grey.shape)
    # Cubes, so that little ink outweighs much noise; less towards the edges, where a table beside the page may show.
    return float(rows @ off**3 @ columns) > 0


def _above_paper(rise: Grey) -> Grey:
    """The rise of each pixel over the paper around it: a morphological opening, which keeps the edges of shadows."""
    coarse = np.asarray(_image(_resized(rise, _COARSE)))
    margin = _WIDER_THAN_A_STROKE
    padded = np.pad(coarse, margin, mode="edge")
    # A pixel more is added than was taken, so that no line is left where page and table, or light and shadow, meet.
    opened = _over_squares(np.max, margin + 2, _over_squares(np.min, margin, padded))
    paper = opened[margin:-margin, margin:-margin].astype(np.float64)
    return rise - _resized(paper, max(rise.shape), rise.shape)


def _over_squares(extreme: Callable[..., Levels], side: int, values: Levels) -> Levels:
    """The least or the greatest of the square around each value, along one axis and then the other.

    Pillow's rank filter does the same in fifty times the time, which a person who is drawing would feel.
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


def _otsu(values: Grey) -> float:
    """The level that best parts the values in two: largest variance between the parts (Otsu, 1979)."""
    counts, edges = np.histogram(values, bins=256, range=(0, 256))
    weight = np.cumsum(counts)
    mean = np.cumsum(counts * edges[:-1])
    rest = weight[-1] - weight
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean[-1] * weight - mean * weight[-1]) ** 2 / (weight * rest)
    return float(edges[int(np.nanargmax(np.where(rest > 0, between, -1)))])


def _digit(inked: Mask) -> Mask:
    """The ink of the digit alone, grown by a pixel to keep its soft edges."""
    kept = np.zeros_like(inked)
    for part in _without_specks(_without_frames(_without_edges(_parts(inked), inked.shape), inked.shape)):
        for row, start, end in part.runs:
            kept[row, start:end] = True
    grown = Image.fromarray(kept).convert("L").filter(ImageFilter.MaxFilter(3))
    return np.asarray(grown) > 0


def _without_edges(parts: list[Part], shape: tuple[int, ...]) -> list[Part]:
    """Without what runs off the picture, such as a table beside the page, unless that is all there is."""
    enough = max(part.area for part in parts) / 50
    whole = [p for p in parts if p.top > 0 and p.left > 0 and p.bottom < shape[0] and p.right < shape[1]]
    return whole if any(part.area >= enough for part in whole) else parts


def _without_frames(parts: list[Part], shape: tuple[int, ...]) -> list[Part]:
    """Without a line drawn around everything else."""

    def is_frame(part: Part) -> bool:
        high, wide = part.bottom - part.top, part.right - part.left
        return high > 0.6 * shape[0] and wide > 0.6 * shape[1] and part.area < 0.15 * high * wide

    inside = [part for part in parts if not is_frame(part)]
    enough = max(part.area for part in parts) / 20
    return inside if any(part.area >= enough for part in inside) else parts


def _without_specks(parts: list[Part]) -> list[Part]:
    enough = max(part.area for part in parts) / 20
    return [part for part in parts if part.area >= enough]


def _parts(inked: Mask) -> list[Part]:
    """The connected parts (eight neighbours)."""
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
    found: dict[int, list[tuple[int, int, int]]] = {}
    for i, run in enumerate(runs):
        found.setdefault(root(i), []).append(run)
    return [_part(runs) for runs in found.values()]


def _part(runs: list[tuple[int, int, int]]) -> Part:
    rows, starts, ends = zip(*runs, strict=True)
    return Part(runs, sum(ends) - sum(starts), min(rows), min(starts), max(rows) + 1, max(ends))
