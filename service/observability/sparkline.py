"""A small line chart as inline SVG."""

from __future__ import annotations

from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT = 180, 40
ALONE = 3  # width of a value between gaps


def sparkline(series: Sequence[float | None], capacity: int, label: str) -> str:
    """Draw the values from 0 to their maximum, the last one at the right edge; None is a gap.

    The width stands for `capacity` values, so that a short series fills its share of it.
    """
    top = max((value for value in series if value is not None), default=0.0) or 1.0
    step = WIDTH / max(capacity - 1, 1)
    first = WIDTH - step * (len(series) - 1)
    points = [
        None if value is None else (first + step * place, HEIGHT - 1 - value / top * (HEIGHT - 3))
        for place, value in enumerate(series)
    ]
    lines = "".join(
        _line([point for point in group if point is not None])
        for is_known, group in groupby(points, key=lambda point: point is not None)
        if is_known
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f'<path class="base" d="M0 {HEIGHT - 1}H{WIDTH}"/>{lines}</svg>'
    )


def _line(points: Sequence[tuple[float, float]]) -> str:
    if len(points) == 1:
        ((x, y),) = points
        left = min(max(x - ALONE / 2, 0), WIDTH - ALONE)
        points = [(left, y), (left + ALONE, y)]
    line = " ".join(f"{x:.1f} {y:.1f}" for x, y in points)
    area = f"M{points[0][0]:.1f} {HEIGHT}L{line}L{points[-1][0]:.1f} {HEIGHT}Z"
    return f'<path class="area" d="{area}"/><path class="line" d="M{line}"/>'
