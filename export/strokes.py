"""Synthetic digits drawn from stroke templates, in forms that are rare in MNIST: serifs, crossed 7, curved-tail 9."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from export.mnist import Examples

if TYPE_CHECKING:
    from export.mnist import Bytes
    from export.recipe import Handwriting

_SIDE = 28
_BOX = 20.0
"""Pixels of the longer side, pen included, as MNIST and the client scale a digit."""

_SEGMENTS_PER_POINT = 3
"""Straight segments between two points of a template."""

_SEGMENTS = 42
"""Straight segments of a digit, at most; zero-length segments fill up the rest."""

_BATCH = 500

TEMPLATES: dict[int, tuple[str, ...]] = {
    0: (
        "50,0 15,18 0,50 15,84 50,100 85,84 100,50 85,18 50,0",
        "62,4 20,14 2,50 18,88 50,100 84,84 96,46 80,12 50,0 34,10",  # the ends cross
        "70,6 30,6 4,40 10,80 46,100 84,84 98,44 82,14 58,8",  # open at the top
        "40,0 12,24 6,60 30,98 56,92 74,50 66,12 40,0",
    ),
    1: (
        "50,0 50,100",
        "58,0 42,100",
        "15,28 55,0 / 55,0 55,100",  # flag
        "5,45 60,0 / 60,0 58,100",  # long flag
        "20,25 55,0 / 55,0 55,100 / 22,100 88,100",  # flag and base
        "50,0 50,100 / 20,100 80,100",  # base
        "32,12 50,0 / 50,0 50,100 / 32,100 68,100",
        "0,50 30,26 52,0 / 52,0 50,50 46,100",
        "10,30 50,0 / 50,0 50,100 / 0,100 100,100",
        "20,28 70,0 / 70,0 36,100",
    ),
    2: (
        "5,25 25,4 55,0 85,12 88,36 60,66 0,100 / 0,100 100,100",
        "8,22 40,0 80,10 84,38 48,74 10,98 / 10,98 55,92 100,100",
        "6,28 30,2 72,4 84,32 52,70 18,94 4,90 14,78 44,88 74,98 100,90",  # loop
        "4,8 50,0 92,8 / 92,8 46,54 4,98 / 4,98 100,98",  # as a z
        "0,20 46,0 88,22 68,56 10,86 0,100 24,92 60,98 96,94",
        "10,30 40,0 72,14 60,50 16,92 / 16,92 46,80 100,96",
    ),
    3: (
        "8,14 45,0 84,14 80,38 42,48 / 42,48 88,56 96,80 60,100 4,88",
        "4,4 90,2 / 90,2 44,40 / 44,40 86,50 92,80 54,100 4,90",  # flat top
        "10,12 50,0 84,18 68,42 40,48 34,44 48,42 88,58 86,88 46,100 6,86",  # loop in the middle
        "0,16 30,0 74,6 80,32 40,46 / 40,46 70,48 96,70 74,96 30,100 0,84",
        "14,4 60,0 86,20 60,42 30,46 / 30,46 76,50 84,74 60,92 10,100",
    ),
    4: (
        "20,0 4,56 / 4,56 100,56 / 70,18 66,100",  # open
        "64,0 0,66 / 0,66 100,66 / 64,0 64,100",  # closed
        "70,0 40,34 4,64 / 4,64 92,64 / 70,0 68,50 66,100",  # closed
        "10,0 8,30 22,48 60,46 88,38 / 90,0 84,50 76,100",  # open and round
        "82,100 78,50 80,0 / 80,0 36,30 2,60 / 2,60 40,66 100,60",
        "16,4 8,50 / 8,50 86,46 / 84,4 78,50 74,100",
        "56,0 22,30 0,56 / 0,56 80,54 / 56,0 60,50 58,100",
        "40,0 0,56 / 0,56 100,66 / 74,36 50,100",
        "50,0 10,40 0,62 30,66 100,58 / 66,40 48,100",
    ),
    5: (
        "20,2 14,44 / 14,44 50,36 88,50 90,80 52,100 4,90 / 20,2 88,0",
        "86,0 24,4 / 24,4 16,46 / 16,46 60,38 92,60 80,92 40,100 4,88",
        "90,4 54,0 24,12 14,34 36,46 72,56 84,80 54,98 6,92",  # as an S
        "16,12 14,48 / 14,48 60,42 88,66 70,96 8,98 / 26,0 92,2",  # bar apart
        "76,0 26,0 / 26,0 22,40 / 22,40 64,46 78,74 56,96 16,100",
        "96,0 20,6 / 20,6 10,40 / 10,40 60,34 100,58 70,92 0,100",
    ),
    6: (
        "74,0 34,22 6,60 20,94 58,100 86,78 70,54 34,58 10,76",
        "50,0 20,40 4,74 24,98 66,96 84,72 58,54 24,62 6,76",
        "88,8 56,0 18,26 2,66 26,98 70,96 92,68 64,46 26,54 6,74",
        "34,0 12,40 4,78 26,100 60,96 72,78 52,66 22,74 6,84",  # small loop
        "24,0 8,50 10,86 40,100 76,92 84,66 60,50 26,58 10,72",
    ),
    7: (
        "0,4 96,2 / 96,2 54,50 36,100",
        "0,4 94,2 / 94,2 34,100 / 24,50 88,48",  # crossed
        "4,20 6,2 / 6,2 96,4 / 96,4 50,48 36,100",  # serif
        "4,18 8,4 / 8,4 92,2 / 92,2 60,44 44,100 / 30,52 86,46",  # both
        "0,12 30,2 60,8 92,2 / 92,2 62,50 54,100",
        "2,2 76,0 / 76,0 66,50 60,100",
        "0,8 40,0 84,4 72,40 44,100 / 28,54 84,50",
    ),
    8: (
        "76,10 46,0 18,14 26,36 56,50 84,72 76,94 46,100 16,90 14,70 44,50 76,30 76,10",
        "50,0 24,10 22,34 50,46 78,34 76,10 50,0 / 50,46 12,62 12,90 50,100 88,90 88,62 50,46",  # two rings
        "88,8 50,0 18,20 40,44 78,66 74,94 40,100 12,82 36,52 70,34 92,10",  # open at the top
        "30,8 62,0 80,16 60,40 26,64 18,90 46,100 76,86 68,60 36,42 18,20 34,4",
        "44,0 18,18 44,46 80,74 56,100 22,84 44,50 74,20 44,0",
        "50,46 10,30 30,2 80,8 86,30 50,46 4,70 20,98 84,96 96,72 50,46",
    ),
    9: (
        "84,16 52,0 14,14 8,40 40,54 78,38 / 84,16 80,54 74,100",  # straight leg
        "86,20 54,0 12,12 8,42 46,52 84,26 / 86,20 86,64 66,94 30,100 4,88",  # curved tail
        "80,14 44,0 10,22 28,50 66,42 82,12 / 80,14 88,54 78,88 44,100 14,92",
        "90,16 60,0 18,6 4,32 30,52 74,42 90,16 84,60 40,100",
        "78,22 56,2 22,4 10,30 34,48 66,40 78,22 84,60 70,90 36,100 4,92 0,80",  # hooked
        "88,4 40,0 8,24 30,48 74,34 88,4 / 88,4 60,100",
        "70,10 34,0 6,20 26,46 62,40 72,10 70,56 72,100",
        "80,20 44,0 10,22 30,44 80,24 / 80,20 82,70 64,100 0,96",
        "70,12 30,0 4,24 30,46 74,30 72,12 76,80 64,98 30,98 10,90",
    ),
}
"""Ways to write each digit: points in percent of its box, x to the right and y down; a slash lifts the pen."""


class Segments(NamedTuple):
    """Straight segments of n digits, in pixels: start and end (n, segments, 2), half the pen's width (n, segments)."""

    start: npt.NDArray[np.float32]
    end: npt.NDArray[np.float32]
    radius: npt.NDArray[np.float32]


def draw(n: int, handwriting: Handwriting, seed: int) -> Examples:
    """Draw n digits in MNIST's form: every digit equally likely, and every template of a digit.

    The same arguments give the same images, in the same order.
    """
    rng = np.random.default_rng(seed)
    splines = [(digit, _spline(template)) for digit, templates in TEMPLATES.items() for template in templates]
    weights = np.array([1 / len(TEMPLATES[digit]) for digit, _ in splines])
    chosen = rng.choice(len(splines), n, p=weights / weights.sum())
    parts = [_trace(spline, int((chosen == i).sum()), handwriting, rng) for i, (_, spline) in enumerate(splines)]
    order = rng.permutation(n)
    segments = Segments(*(np.concatenate(arrays)[order] for arrays in zip(*parts, strict=True)))
    labels = np.array([digit for digit, _ in splines], np.uint8)[np.sort(chosen)][order]
    return Examples(_render(segments, handwriting, rng), labels)


class Spline(NamedTuple):
    """A template's points (points, 2) in 0..1, and the matrices (segments, points) that interpolate them."""

    points: npt.NDArray[np.float64]
    start: npt.NDArray[np.float64]
    end: npt.NDArray[np.float64]


def _spline(template: str) -> Spline:
    """Parse a template into Catmull-Rom splines; equal coordinates are one point, so that strokes stay connected."""
    names: list[str] = list(dict.fromkeys(template.replace("/", " ").split()))
    strokes = [_catmull_rom(np.eye(len(names))[[names.index(name) for name in s.split()]]) for s in template.split("/")]
    start, end = np.vstack([stroke[:-1] for stroke in strokes]), np.vstack([stroke[1:] for stroke in strokes])
    padding = np.repeat(end[-1:], _SEGMENTS - len(end), axis=0)  # of zero length
    points = np.array([name.split(",") for name in names], np.float64) / 100
    return Spline(points, np.vstack([start, padding]), np.vstack([end, padding]))


def _catmull_rom(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Interpolate points (n, k). Rows of a unit matrix give the matrix that interpolates any n points."""
    before, after = np.vstack([points[:1], points]), np.vstack([points, points[-1:]])
    slopes = (after[1:] - before[:-1]) / 2
    t = (np.arange(_SEGMENTS_PER_POINT) / _SEGMENTS_PER_POINT)[None, :, None]
    p, q, m, k = (a[:, None] for a in (points[:-1], points[1:], slopes[:-1], slopes[1:]))
    curve = (2 * t**3 - 3 * t**2 + 1) * p + (t**3 - 2 * t**2 + t) * m + (3 * t**2 - 2 * t**3) * q + (t**3 - t**2) * k
    return np.vstack([curve.reshape(-1, points.shape[1]), points[-1:]])


def _trace(spline: Spline, n: int, handwriting: Handwriting, rng: np.random.Generator) -> Segments:
    """Write a template n times, scale it with its pen into the box, and centre it by mass."""
    wobble = handwriting.wobble * np.exp(rng.normal(0, handwriting.wobble_spread, (n, 1, 1)))
    points = spline.points + wobble * rng.normal(0, 1, (n, *spline.points.shape))
    points = (points - 0.5) @ _affine(n, handwriting, rng)
    start, end = spline.start @ points, spline.end @ points
    pen = np.exp(rng.normal(np.log(handwriting.pen), handwriting.pen_spread, (n, 1))).clip(*handwriting.pen_limits)
    radius = pen / 2 * np.exp(rng.normal(0, handwriting.pressure, (n, _SEGMENTS)).cumsum(axis=1) / np.sqrt(_SEGMENTS))
    extent = np.ptp(np.concatenate([start, end], axis=1), axis=1).max(axis=1)[:, None, None]
    scale = (_BOX - pen[:, :, None]) / extent
    length = np.linalg.norm(end - start, axis=2)[:, :, None] + 1e-9
    middle = ((start + end) / 2 * length).sum(axis=1, keepdims=True) / length.sum(axis=1, keepdims=True)
    start, end = ((place - middle) * scale + (_SIDE - 1) / 2 for place in (start, end))
    return Segments(*(array.astype(np.float32) for array in (start, end, radius)))


def _affine(n: int, handwriting: Handwriting, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw matrices (n, 2, 2) that scale, slant and rotate row vectors (x, y)."""
    wide = np.exp(rng.normal(np.log(handwriting.width), handwriting.width_spread, n))
    slant = rng.normal(handwriting.slant, handwriting.slant_spread, n)
    angle = rng.normal(0, np.deg2rad(handwriting.rotation), n)
    sin, cos, zero, one = np.sin(angle), np.cos(angle), np.zeros(n), np.ones(n)
    stretch = np.array([[wide, zero], [-slant, one]]).transpose(2, 0, 1)
    turn: npt.NDArray[np.float64] = np.array([[cos, sin], [-sin, cos]]).transpose(2, 0, 1)
    return stretch @ turn


def _render(segments: Segments, handwriting: Handwriting, rng: np.random.Generator) -> Bytes:
    """Render segments as images (n, 784); the softness of the edges is drawn for each."""
    soft = rng.uniform(*handwriting.softness, len(segments.start)).astype(np.float32)
    parts = []
    for at in range(0, len(soft), _BATCH):
        some = slice(at, at + _BATCH)
        ink = _coverage(segments.start[some], segments.end[some], segments.radius[some], soft[some])
        parts.append(np.rint(255 * np.asarray(ink)).astype(np.uint8))
    return np.concatenate(parts)


@jax.jit
def _coverage(start: jax.Array, end: jax.Array, radius: jax.Array, soft: jax.Array) -> jax.Array:
    """Compute the ink of each pixel, (n, 784) in 0..1, from its distance to the nearest segment's edge."""
    x, y = (axis.reshape(-1) for axis in jnp.meshgrid(jnp.arange(_SIDE), jnp.arange(_SIDE)))
    along = end - start
    px, py = x - start[:, :, :1], y - start[:, :, 1:]
    square = (along**2).sum(axis=2, keepdims=True) + 1e-6
    t = jnp.clip((px * along[:, :, :1] + py * along[:, :, 1:]) / square, 0, 1)
    from_line = jnp.hypot(px - t * along[:, :, :1], py - t * along[:, :, 1:])
    outside = (from_line - radius[:, :, None]).min(axis=1)
    ink = jnp.clip(0.5 - outside / soft[:, None], 0, 1)
    return ink / ink.max(axis=1, keepdims=True)
