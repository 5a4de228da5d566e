"""Digits drawn with a pen, side by side, with the paper and contrast that a test needs."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

STROKES = {
    0: [[(0.5, 0.1), (0.2, 0.3), (0.2, 0.7), (0.5, 0.9), (0.8, 0.7), (0.8, 0.3), (0.5, 0.1)]],
    1: [[(0.5, 0.1), (0.5, 0.9)]],
    4: [[(0.3, 0.1), (0.2, 0.55), (0.8, 0.55)], [(0.65, 0.1), (0.65, 0.9)]],
    7: [[(0.2, 0.1), (0.8, 0.1), (0.4, 0.9)]],
}
"""Corners of each stroke, as fractions of a square."""


def draw_digits(digits: list[int], *, size: int = 200, pen: int = 12, gap: float = 0.2) -> Image.Image:
    """Draw dark digits side by side on light paper, each in a square of that size, with a margin of half a square."""
    step = round(size * (1 + gap))
    picture = Image.new("L", (step * (len(digits) - 1) + 2 * size, 2 * size), 225)
    pencil = ImageDraw.Draw(picture)
    for number, digit in enumerate(digits):
        left, top = size // 2 + number * step, size // 2
        for stroke in STROKES[digit]:
            corners = [(left + x * size, top + y * size) for x, y in stroke]
            pencil.line(corners, 40, pen, joint="curve")
            for x, y in corners:
                pencil.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=40)
    return picture


def draw_over(picture: Image.Image, mask: np.ndarray, contrast: float) -> Image.Image:
    """Darken the pixels of the mask by that fraction of the pen's contrast."""
    levels = np.asarray(picture, float)
    line = np.median(levels) - contrast * (np.median(levels) - levels.min())
    return Image.fromarray(np.where(mask, np.minimum(levels, line), levels).astype(np.uint8))
