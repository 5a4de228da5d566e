"""How the ink lies on the page: one digit, several side by side, or none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from digitserve_client.components import Part, grown, label, to_mask, without_specks
from digitserve_client.uncertainty import Inspection

__all__ = ["inspect", "separate"]

Grey = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_INKED = 0.4
_LEAST_HEIGHT = 0.45
"""Share of the highest part's height that another digit has; less is a dot, a comma or the sign between two."""

_OVERLAP = 0.2
"""Share of the narrower part's columns that another part shares, if both are strokes of one digit."""

_WIDEST = 1.5
"""Largest width over height of one digit."""

_MOST_PARTS = 5
"""Largest number of parts of one digit."""

_SOLID, _SLENDER = 0.75, 2.0
"""Share of its box that a solid shape fills. Height over width of a 1, which may fill its box."""

_SMALLEST_HOLE = 1 / 400
"""Share of the digit's larger side, squared."""


def separate(ink: Grey) -> list[Grey]:
    """Return the ink of each digit, from left to right. Omit parts too small for a digit if there are several."""
    groups = _groups(_parts(ink))
    if len(groups) == 1:
        return [ink]
    return [np.where(grown(to_mask(group, ink.shape)), ink, 0.0) for group in groups]


def inspect(ink: Grey) -> Inspection:
    """Inspect the ink of one digit, (height, width) 0..1."""
    rows, columns = (np.flatnonzero((ink > _INKED * ink.max()).any(axis=axis)) for axis in (1, 0))
    digit = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inked = digit > _INKED * ink.max()
    return Inspection(_describe(digit), _count_holes(inked), _waist(inked))


def _describe(ink: Grey) -> tuple[str, ...]:
    """List the evidence against one digit, as messages."""
    parts = _parts(ink)
    groups = _groups(parts)
    if len(groups) > 1:
        return (f"picture: {len(groups)} digits side by side; expected one, or --each",)
    top, left = (min(getattr(part, side) for part in parts) for side in ("top", "left"))
    bottom, right = (max(getattr(part, side) for part in parts) for side in ("bottom", "right"))
    height, width = bottom - top, right - left
    warnings = []
    if width > _WIDEST * height:
        warnings.append("picture: the ink is much wider than high; expected one digit")
    if len(parts) > _MOST_PARTS:
        warnings.append(f"picture: {len(parts)} separate parts; expected one digit")
    if sum(part.area for part in parts) > _SOLID * height * width and height < _SLENDER * width:
        warnings.append("picture: a solid shape; expected the lines of a digit")
    return tuple(warnings)


def _count_holes(digit: Mask) -> int:
    """Count the areas of paper that the ink encloses: 1 in a 0, 6 and 9, 2 in an 8."""
    outside = np.pad(~digit, 1, constant_values=True)
    enough = _SMALLEST_HOLE * max(digit.shape) ** 2
    # Ink is connected over corners too, paper over sides only: double the pixels, and thin the paper.
    doubled = outside.repeat(2, axis=0).repeat(2, axis=1)
    doubled[:-1] &= doubled[1:]
    doubled[:, :-1] &= doubled[:, 1:]
    return sum(1 for part in label(doubled) if part.top > 0 and part.area > 4 * enough)


def _waist(digit: Mask) -> float:
    """Measure how far the left or right outline bends inwards between its bulges, as a share of the width."""
    rows = digit[digit.any(axis=1)]
    left, right = rows.argmax(axis=1), rows[:, ::-1].argmax(axis=1)
    return float(max(_deepest_hollow(-left), _deepest_hollow(-right)) / digit.shape[1])


def _deepest_hollow(outline: npt.NDArray[np.int64]) -> float:
    """Measure the largest distance of an outline, in pixels, below the upper half of its convex hull."""
    hull: list[tuple[int, int]] = []
    for row, at in enumerate(outline.tolist()):
        while len(hull) > 1 and _bends_up(hull[-2], hull[-1], (row, at)):
            hull.pop()
        hull.append((row, at))
    rows, peaks = zip(*hull, strict=True)
    return float((np.interp(np.arange(len(outline)), rows, peaks) - outline).max())


def _bends_up(first: tuple[int, int], second: tuple[int, int], third: tuple[int, int]) -> bool:
    return (second[1] - first[1]) * (third[0] - first[0]) <= (third[1] - first[1]) * (second[0] - first[0])


def _parts(ink: Grey) -> list[Part]:
    return without_specks(label(ink > _INKED * ink.max()))


def _groups(parts: list[Part]) -> list[list[Part]]:
    """Group the parts by digit, from left to right."""
    groups: list[list[Part]] = []
    for part in sorted(parts, key=lambda each: each.left):
        if groups and _share_columns(groups[-1], part):
            groups[-1].append(part)
        else:
            groups.append([part])
    enough = _LEAST_HEIGHT * max(map(_height, groups))
    return [group for group in groups if _height(group) >= enough]


def _height(group: list[Part]) -> int:
    return max(part.bottom for part in group) - min(part.top for part in group)


def _share_columns(group: list[Part], part: Part) -> bool:
    left, right = min(each.left for each in group), max(each.right for each in group)
    shared = min(right, part.right) - part.left
    return shared > _OVERLAP * min(right - left, part.width)
