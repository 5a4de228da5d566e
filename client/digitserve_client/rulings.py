"""Erase the lines of ruled and squared paper: straight lines from edge to edge of the picture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

Grey = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

SMALLEST_PICTURE = 64
"""Pixels of the shorter side below which lines and strokes look alike."""

_FAINTEST_LINE = 0.15
"""Share of the pen's rise over the paper; below it, the level alone distinguishes paper from ink."""

_AS_DARK_AS_PEN = 0.7
_FEWEST_DARK = 3
"""Lines as dark as the pen, from which they are paper. One may be a stroke, such as the base of a tightly cut 2."""

_STEEPEST = 0.12
_UNBROKEN = 0.9
_THICKEST = 1 / 24
"""Limits of a line: rows per column, share of its length with ink, thickness as a share of the picture's side."""


class Line(NamedTuple):
    """A line across the picture: its row in each column, its thickness in pixels and its rise over the paper."""

    rows: Grey
    thickness: float
    level: float


def erase(rise: Grey) -> Grey:
    """Erase such lines, rows and columns, from the rise over the paper; strokes that cross them stay whole."""
    if min(rise.shape) < SMALLEST_PICTURE:
        return rise
    pen = float(np.percentile(rise, 99.5))
    inset = max(1, max(rise.shape) // 64)
    return _without(rise, _paper_lines(rise, pen, inset), _paper_lines(rise.T, pen, inset), pen)


def erase_box(rise: Grey, pen: float) -> Grey:
    """Erase the four sides of a box from the rise within its outline; `pen` is the pen's rise."""
    inset = max(2, min(rise.shape) // 10)  # beyond the sides that are crossed

    def sides(values: Grey) -> list[Line]:
        near = 0.12 * len(values)
        return [e for e in _across(values, pen, inset) if not near < e.rows.mean() < len(values) - near]

    return _without(rise, sides(rise), sides(rise.T), pen)


def _without(rise: Grey, rows: list[Line], columns: list[Line], pen: float) -> Grey:
    if rows or columns:
        rise = _erased(_erased(rise, rows, pen).T, columns, pen).T
    return rise


def _paper_lines(rise: Grey, pen: float, inset: int) -> list[Line]:
    lines = _across(rise, pen, inset)
    faint = [line for line in lines if line.level < _AS_DARK_AS_PEN * pen]
    return lines if len(lines) - len(faint) >= _FEWEST_DARK else faint


def _across(rise: Grey, pen: float, inset: int) -> list[Line]:
    """The straight lines from the left edge to the right, each once."""
    lines: list[Line] = []
    for step in (1, 2, 3):  # a line from top to bottom hides those that cross it at one of these columns
        for line in _across_from(rise, pen, step * inset):
            if all(np.abs(line.rows - other.rows).mean() > line.thickness for other in lines):
                lines.append(line)
    return lines


def _across_from(rise: Grey, pen: float, inset: int) -> list[Line]:
    """The straight lines through the ink of two columns, as far from the left edge as from the right."""
    height, width = rise.shape
    if 2 * inset >= width - 1:
        return []
    inked = rise > _FAINTEST_LINE * pen
    left, right = (_runs(inked[:, column]) for column in (inset, width - 1 - inset))
    starts, ends = np.meshgrid([sum(run) / 2 for run in left], [sum(run) / 2 for run in right], indexing="ij")
    close = np.abs(starts - ends) <= _STEEPEST * width
    starts, ends = starts[close], ends[close]
    rows = starts[:, None] + (ends - starts)[:, None] * (np.arange(width) - inset) / (width - 1 - 2 * inset)
    nearest = np.rint(rows).astype(int)
    levels = np.max([rise[np.clip(nearest + by, 0, height - 1), np.arange(width)] for by in (-1, 0, 1)], axis=0)
    unbroken = (levels > _FAINTEST_LINE * pen).mean(axis=1) >= _UNBROKEN
    thickness = float(np.median([end - start + 1 for start, end in left + right])) if left and right else 0
    if thickness > _THICKEST * max(rise.shape):
        return []
    return [Line(r, thickness, float(np.median(v))) for r, v in zip(rows[unbroken], levels[unbroken], strict=True)]


def _runs(column: Mask) -> list[tuple[int, int]]:
    """First and last row of each run of ink."""
    edges = np.diff(np.pad(column, 1).astype(np.int8))
    return list(zip(np.flatnonzero(edges == 1).tolist(), (np.flatnonzero(edges == -1) - 1).tolist(), strict=True))


def _erased(rise: Grey, lines: list[Line], pen: float) -> Grey:
    """Erase the lines from the rise; a stroke that crosses a line stays connected."""
    erased = rise.copy()
    height, width = rise.shape
    row, columns = np.arange(height)[:, None], np.arange(width)
    for line in lines:
        reach = line.thickness / 2 + 1.5
        above, below = (
            _nearby(rise[np.clip(np.rint(line.rows + by).astype(int), 0, height - 1), columns])
            for by in (-reach - 1, reach + 1)
        )
        crossing = np.broadcast_to(np.minimum(above, below), rise.shape)
        is_darker = rise > (line.level + pen) / 2 if line.level < _AS_DARK_AS_PEN * pen else np.zeros_like(rise) > 0
        on_line = np.abs(row - line.rows) <= reach
        erased[on_line] = np.where(is_darker, rise, np.minimum(crossing, rise))[on_line]
    return erased


def _nearby(values: Grey) -> Grey:
    """The greatest within two columns: strokes cross at a slant."""
    return np.asarray(sliding_window_view(np.pad(values, 2, mode="edge"), 5).max(axis=1))
