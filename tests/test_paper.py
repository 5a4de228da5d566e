"""Lines, boxes and shadows on the paper are not the digit's ink."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from digitserve_client.image import NoDigitError, to_mnist
from drawings import draw_digits, draw_over
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 400
Y, X = np.mgrid[:SIZE, :SIZE]


def ruled(pitch: int, width: int, tilt: float) -> np.ndarray:
    return np.asarray((Y + tilt * X + pitch / 3) % pitch < width)


def squared(pitch: int, width: int, tilt: float) -> np.ndarray:
    return ruled(pitch, width, tilt) | np.asarray((X - tilt * Y + pitch / 3) % pitch < width)


def box(top: int, left: int, bottom: int, right: int, width: int = 4) -> np.ndarray:
    outer = (top <= Y) & (bottom > Y) & (left <= X) & (right > X)
    inner = (top + width <= Y) & (bottom - width > Y) & (left + width <= X) & (right - width > X)
    return np.asarray(outer & ~inner)


def difference(picture: Image.Image, digit: int) -> float:
    """Return the mean difference of the pixels from those of the digit alone, of 255."""
    plain = to_mnist(draw_digits([digit])).astype(int)
    return float(np.abs(to_mnist(picture) - plain).mean())


@pytest.mark.parametrize("digit", [0, 4, 7])
@pytest.mark.parametrize("tilt", [0.0, 0.04])
@pytest.mark.parametrize("lines", [ruled, squared])
def test_printed_lines_are_left_out(lines: Callable[..., np.ndarray], tilt: float, digit: int) -> None:
    for pitch, width in ((50, 3), (20, 2)):
        assert difference(draw_over(draw_digits([digit]), lines(pitch, width, tilt), 0.45), digit) < 8


@pytest.mark.parametrize("digit", [0, 4, 7])
def test_several_lines_as_dark_as_the_pen_are_left_out(digit: int) -> None:
    assert difference(draw_over(draw_digits([digit]), ruled(70, 3, 0), 1), digit) < 16


def test_a_stroke_from_edge_to_edge_stays() -> None:
    """The bar of a closely cropped 7 is one line, as dark as the pen."""
    tight = draw_digits([7]).crop((140, 105, 260, 290))
    placed = to_mnist(tight).reshape(28, 28)
    assert (placed[:8] > 127).any(axis=0).sum() >= 10


@pytest.mark.parametrize("contrast", [0.45, 1.0])
@pytest.mark.parametrize(("digit", "margin"), [(4, 30), (7, 30), (0, 30), (4, 3)])
def test_a_box_is_left_out_though_the_digit_touches_it(digit: int, margin: int, contrast: float) -> None:
    rows, columns = np.nonzero(np.asarray(draw_digits([digit])) < 100)
    outline = box(rows.min() - margin, columns.min() - margin, rows.max() + margin, columns.max() + margin)
    assert difference(draw_over(draw_digits([digit]), outline, contrast), digit) < 12


def test_an_empty_frame_shows_no_digit() -> None:
    paper = Image.new("L", (SIZE, SIZE), 225)
    with pytest.raises(NoDigitError, match="shows no digit"):
        to_mnist(draw_over(paper, box(0, 0, SIZE, SIZE), 1.0).point(lambda v: v if v > 100 else 40))
    framed = np.where(box(0, 0, SIZE, SIZE), 40, 225).astype(np.uint8)
    with pytest.raises(NoDigitError, match="shows no digit"):
        to_mnist(Image.fromarray(framed))


@pytest.mark.parametrize("digit", [0, 4, 7])
def test_the_ink_in_a_hard_shadow_counts_as_much_as_in_the_light(digit: int) -> None:
    levels = np.asarray(draw_digits([digit]), float)
    for shadow in (X > 210, 0.4 * X + Y > 270, (X > 280) & (Y > 280)):
        assert difference(Image.fromarray(np.where(shadow, 0.55 * levels, levels).astype(np.uint8)), digit) < 14


@pytest.mark.parametrize("ground", [225, 255])
@pytest.mark.parametrize("digit", [0, 1, 4, 7])
def test_an_underline_is_left_out(digit: int, ground: int) -> None:
    levels = np.where(np.asarray(draw_digits([digit])) > 200, ground, 40).astype(np.uint8)
    bottom = np.nonzero(levels < 100)[0].max()
    underlined = np.where((bottom + 25 < Y) & (bottom + 35 > Y) & (X > 140) & (X < 260), 40, levels)
    plain = to_mnist(Image.fromarray(levels)).astype(int)
    assert np.abs(to_mnist(Image.fromarray(underlined.astype(np.uint8))) - plain).mean() < 2


@pytest.mark.parametrize("digit", [4, 7])
def test_a_small_digit_stands_out_from_uneven_paper(digit: int) -> None:
    small = draw_digits([digit]).resize((SIZE // 3, SIZE // 3), Image.Resampling.BOX)
    page = Image.new("L", (SIZE, SIZE), 225)
    page.paste(small, (SIZE // 3, SIZE // 3))
    waves = 22 * np.sin(X / 9) * np.sin(Y / 11)
    crumpled = (np.asarray(page, float) * 0.8 + waves).clip(0, 255).astype(np.uint8)
    assert difference(Image.fromarray(crumpled), digit) < 14
