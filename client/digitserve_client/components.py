"""Find the connected parts of the ink, and select the digit: no table, frame or specks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterable

Mask = npt.NDArray[np.bool_]

_LEAST_INSIDE = 0.3
"""Share of the ink inside, weighted towards the middle, from which parts on the edge are omitted."""

_LEAST_ON_EDGE = 0.1
"""Share of the heaviest part's weight that a part on the edge needs, if the digit itself crosses the edge."""

_BORDER = 0.1
"""Mean weight, 0..1, of a part that crosses the edge; a part along the edge has less."""

_SPECK = 1 / 20
"""Share of the largest part's area below which a part is a speck."""


_LEAST_ENCLOSED = 0.15
"""Share of a frame's height that a digit in it has. A smaller part is the dot in a 0, or dust."""

_NEARLY_ALL = 0.9

_FLATTEST, _LEAST_GAP = 0.35, 0.08
"""Largest height over width of an underline; its smallest distance from the digit, as a share of the digit's height."""

_SMALLEST_BOX = 24
"""Pixels of a box's shorter side. A smaller box has no room for a digit."""


class Part(NamedTuple):
    """A connected part of the ink: its runs (row, first column, column after the last), its area and its box."""

    runs: list[tuple[int, int, int]]
    area: int
    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """Rows of its box."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns of its box."""
        return self.right - self.left

    def touches_edge(self, shape: tuple[int, ...]) -> bool:
        """Whether it runs off a picture of that shape."""
        return self.top == 0 or self.left == 0 or self.bottom == shape[0] or self.right == shape[1]

    def encloses(self, other: Part) -> bool:
        """Whether it has ink on all four sides of nearly every row and column of the other's box."""
        if not (
            self.top < other.top and self.left < other.left and self.bottom > other.bottom and self.right > other.right
        ):
            return False
        rows = np.zeros((2, other.height), np.bool_)
        columns = np.zeros((2, other.width), np.bool_)
        for row, start, end in self.runs:
            if other.top <= row < other.bottom:
                rows[0, row - other.top] |= start < other.left
                rows[1, row - other.top] |= end > other.right
            else:
                columns[int(row >= other.bottom), max(start - other.left, 0) : max(end - other.left, 0)] = True
        return bool(rows.mean(axis=1).min() > _NEARLY_ALL and columns.mean(axis=1).min() > _NEARLY_ALL)


def digit_mask(inked: Mask) -> Mask:
    """The ink of the digit alone."""
    return to_mask(digit_parts(without_edges(label(inked), inked.shape)), inked.shape)


def digit_parts(parts: list[Part]) -> list[Part]:
    """Omit frames, specks and an underline."""
    return without_underline(without_specks(without_frames(parts)))


def to_mask(parts: Iterable[Part], shape: tuple[int, ...]) -> Mask:
    """The parts painted into a picture of that shape."""
    mask = np.zeros(shape, np.bool_)
    for part in parts:
        for row, start, end in part.runs:
            mask[row, start:end] = True
    return mask


def grown(mask: Mask) -> Mask:
    """The mask grown by a pixel on all sides and corners, to keep the ink's soft edges."""
    around = np.pad(mask, 1)
    rows = around[:-2] | around[1:-1] | around[2:]
    return np.asarray(rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:])


def without_edges(parts: list[Part], shape: tuple[int, ...]) -> list[Part]:
    """Omit parts that cross the edge, such as a table next to the page, unless they are the digit; maybe all."""
    rows, columns = (np.sin(np.pi * (np.arange(n) + 0.5) / n) for n in shape)
    along = np.concatenate([[0], np.cumsum(columns)])

    def weight(part: Part) -> float:
        return float(sum(rows[row] * (along[end] - along[start]) for row, start, end in part.runs))

    weights = [weight(part) for part in parts]
    inside = [not part.touches_edge(shape) for part in parts]
    if sum(w for w, within in zip(weights, inside, strict=True) if within) >= _LEAST_INSIDE * sum(weights):
        return [part for part, within in zip(parts, inside, strict=True) if within]
    enough = _LEAST_ON_EDGE * max(weights)
    return [
        part
        for part, within, w in zip(parts, inside, weights, strict=True)
        if within or w >= max(enough, _BORDER * part.area)
    ]


def without_frames(parts: list[Part]) -> list[Part]:
    """Omit lines around the other parts: a box, or a circle."""
    return [part for part in parts if not is_frame(part, parts)]


def is_frame(part: Part, others: list[Part]) -> bool:
    """Whether it is drawn around one of the others, which is large enough for a digit."""
    enough = _SPECK * max((other.area for other in others), default=0)
    return any(
        other.height >= _LEAST_ENCLOSED * part.height and other.area > enough and part.encloses(other)
        for other in others
    )


def is_box(part: Part, shape: tuple[int, ...]) -> bool:
    """Whether its ink lies along all four sides of its own box, as a rectangle's does and a 0's does not."""
    if part.touches_edge(shape) or min(part.height, part.width) < _SMALLEST_BOX:
        return False
    mask = to_mask([part], shape)[part.top : part.bottom, part.left : part.right]
    near = max(1, round(0.1 * min(mask.shape)))
    sides = (mask[:near].any(0), mask[-near:].any(0), mask[:, :near].any(1), mask[:, -near:].any(1))
    return min(float(side.mean()) for side in sides) > _NEARLY_ALL


def without_underline(parts: list[Part]) -> list[Part]:
    """Omit a flat line below the digit, as under a 6 or a 9."""
    lowest = max(parts, key=lambda part: part.bottom, default=None)
    above = [part for part in parts if part is not lowest]
    if lowest is None or not above:
        return parts
    top, bottom = min(part.top for part in above), max(part.bottom for part in above)
    is_flat = lowest.height < _FLATTEST * lowest.width and lowest.width > _FLATTEST * (bottom - top)
    return above if is_flat and lowest.top - bottom >= _LEAST_GAP * (bottom - top) else parts


def without_specks(parts: list[Part]) -> list[Part]:
    """Omit dust: parts much smaller than the largest."""
    enough = _SPECK * max((part.area for part in parts), default=0)
    return [part for part in parts if part.area >= enough]


def label(inked: Mask) -> list[Part]:
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
    by_label: dict[int, list[tuple[int, int, int]]] = {}
    for i, run in enumerate(runs):
        by_label.setdefault(root(i), []).append(run)
    return [_part(runs) for runs in by_label.values()]


def _part(runs: list[tuple[int, int, int]]) -> Part:
    rows, starts, ends = zip(*runs, strict=True)
    return Part(runs, sum(ends) - sum(starts), min(rows), min(starts), max(rows) + 1, max(ends))
