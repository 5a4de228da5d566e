"""A digit of any size, place, pen and contrast is converted to MNIST's form without loss of ink."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from digitserve_client.components import digit_mask, label
from digitserve_client.image import NoDigitError, to_mnist
from digitserve_client.preparation import is_in_mnist_form, pen_width
from PIL import Image, ImageDraw, ImageOps

from export import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable


def shifted(digit: np.ndarray) -> np.ndarray:
    return np.roll(digit.reshape(28, 28), (-3, 3), (0, 1))


def shrunk(digit: np.ndarray) -> np.ndarray:
    small = Image.fromarray(digit.reshape(28, 28)).resize((20, 20), Image.Resampling.BOX)
    return np.asarray(ImageOps.expand(small, 4))


def filling(digit: np.ndarray) -> np.ndarray:
    large = Image.fromarray(digit.reshape(28, 28)).resize((38, 38), Image.Resampling.BICUBIC)
    return np.asarray(large)[5:33, 5:33]


def dim(digit: np.ndarray) -> np.ndarray:
    return (digit.reshape(28, 28) * 0.35).astype(np.uint8)


def skeleton(digit: np.ndarray) -> np.ndarray:
    """Return the digit's upper and left edges: lines of one pixel, as from the pencil of a paint program."""
    inked = digit.reshape(28, 28) > 127
    inner = inked & np.roll(inked, 1, 0) & np.roll(inked, 1, 1)
    return np.where(inked & ~inner, 255, 0).astype(np.uint8)


@pytest.mark.parametrize("change", [shifted, shrunk, filling, dim])
def test_light_on_black_of_28x28_is_prepared_unless_in_mnists_form(
    digits: np.ndarray, labels: np.ndarray, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    network = checkpoint.load(checkpoint.committed("sigmoid")).network
    pixels = np.stack([to_mnist(Image.fromarray(change(digit))) for digit in digits])
    right = int((network.forward(pixels).digit == labels).sum())
    assert right >= 90, f"{right} of 100"
    sides = [max(np.ptp(np.argwhere(image.reshape(28, 28)), axis=0)) + 1 for image in pixels]
    assert set(sides) <= {18, 19, 20, 21}
    assert pixels.max(axis=1).min() == 255


def test_pixels_in_another_form_are_not_accepted_as_mnist(digits: np.ndarray) -> None:
    assert all(is_in_mnist_form(digit.reshape(28, 28)) for digit in digits)
    for change in (shifted, shrunk, filling, dim):
        assert not any(is_in_mnist_form(change(digit)) for digit in digits)
    assert not is_in_mnist_form(np.zeros((28, 28), np.uint8))


def test_a_black_picture_of_28x28_shows_no_digit() -> None:
    with pytest.raises(NoDigitError, match="shows no digit"):
        to_mnist(Image.new("L", (28, 28)))


@pytest.mark.parametrize("side", [28, 64, 300, 1500])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_thin_pen_becomes_as_broad_as_mnists_at_any_size(side: int, width: int) -> None:
    picture = Image.new("L", (side, side), 255)
    points = [(0.3, 0.2), (0.7, 0.2), (0.4, 0.8)]
    ImageDraw.Draw(picture).line([(x * side, y * side) for x, y in points], 0, width, joint="curve")
    placed = to_mnist(picture).reshape(28, 28)
    large = np.asarray(Image.fromarray(placed).resize((224, 224), Image.Resampling.BICUBIC), np.float64)
    assert 1.8 <= pen_width(large) / 8 <= 3.0 or width / side > 1 / 28


@pytest.mark.parametrize("side", [64, 300])
@pytest.mark.parametrize("pen", [0.14, 0.17])
def test_a_broad_pen_becomes_thin_enough_for_the_holes_of_an_eight(side: int, pen: float) -> None:
    picture = Image.new("L", (side, side), 255)
    draw = ImageDraw.Draw(picture)
    for top, bottom, half in ((0.1, 0.53, 0.19), (0.47, 0.9, 0.22)):
        box = ((0.5 - half) * side, top * side, (0.5 + half) * side, bottom * side)
        draw.ellipse(box, outline=0, width=round(pen * side))
    placed = to_mnist(picture).reshape(28, 28)
    large = np.asarray(Image.fromarray(placed).resize((224, 224), Image.Resampling.BICUBIC), np.float64)
    assert pen_width(large) / 8 <= 3.4
    assert max(np.ptp(np.argwhere(placed > 76), axis=0)) + 1 >= 18


@pytest.mark.parametrize("side", [28, 64, 300])
def test_a_faint_stroke_becomes_as_dark_as_the_others(side: int) -> None:
    picture = Image.new("L", (side, side), 255)
    draw = ImageDraw.Draw(picture)
    draw.line([(0.3 * side, 0.15 * side), (0.7 * side, 0.15 * side)], 0, max(1, side // 14))
    draw.line([(0.7 * side, 0.15 * side), (0.7 * side, 0.85 * side)], 120, max(1, side // 14))
    rows = to_mnist(picture).reshape(28, 28).max(axis=1)
    assert rows[14:25].min() >= 230, rows


def test_a_digit_wider_than_high_becomes_narrower_than_high() -> None:
    picture = Image.new("L", (300, 300), 255)
    ImageDraw.Draw(picture).line([(60, 90), (240, 90), (150, 210)], 0, 14, joint="curve")
    rows, columns = np.nonzero(to_mnist(picture).reshape(28, 28) > 76)
    assert np.ptp(rows) + 1 >= 19
    assert 16 <= np.ptp(columns) + 1 <= 19


def test_a_thin_stroke_between_broad_ones_outlasts_their_thinning() -> None:
    picture = Image.new("L", (300, 300), 255)
    draw = ImageDraw.Draw(picture)
    draw.line([(100, 30), (100, 130)], 0, 60)
    draw.line([(100, 130), (200, 200)], 0, 6)
    draw.line([(200, 200), (200, 270)], 0, 60)
    assert len(label(to_mnist(picture).reshape(28, 28) > 40)) == 1


def test_a_digit_that_runs_off_the_edge_keeps_its_ink() -> None:
    """Most of the ink is on the edge; a small spot inside is not the digit."""
    picture = Image.new("L", (32, 32))
    draw = ImageDraw.Draw(picture)
    draw.line([(2, 0), (29, 0), (12, 31)], 255, 3)
    draw.line([(10, 16), (13, 16)], 255, 2)
    placed = to_mnist(picture).reshape(28, 28)
    rows, columns = np.nonzero(placed > 127)
    assert np.ptp(rows) + 1 >= 19
    assert np.ptp(columns) + 1 >= 15


def test_a_table_at_the_edge_is_not_the_digit() -> None:
    mask = np.zeros((100, 100), np.bool_)
    mask[30:70, 45:55] = mask[:, :4] = mask[96:] = True
    np.testing.assert_array_equal(np.argwhere(digit_mask(mask)).min(axis=0), (30, 45))
    np.testing.assert_array_equal(np.argwhere(digit_mask(mask)).max(axis=0), (69, 54))


@pytest.mark.parametrize("shape", ["rectangle", "ellipse"])
@pytest.mark.parametrize("margin", [12, 40])
def test_a_box_or_circle_around_the_digit_is_left_out(shape: str, margin: int) -> None:
    picture = Image.new("L", (300, 300), 240)
    draw = ImageDraw.Draw(picture)
    draw.line([(130, 110), (170, 110), (145, 190)], 20, 8, joint="curve")
    alone = to_mnist(picture)
    around = (110 - 2 * margin, 90 - 2 * margin, 190 + 2 * margin, 210 + 2 * margin)
    getattr(draw, shape)(around, outline=20, width=6)
    assert np.abs(to_mnist(picture).astype(int) - alone).mean() < 3


def test_the_hole_of_a_digit_may_hold_a_dot() -> None:
    picture = Image.new("L", (300, 300), 240)
    draw = ImageDraw.Draw(picture)
    draw.ellipse((100, 60, 200, 240), outline=20, width=12)
    zero = to_mnist(picture)
    draw.ellipse((142, 142, 158, 158), fill=20)
    assert np.abs(to_mnist(picture).astype(int) - zero).mean() < 8
