"""Synthetic digits from strokes: reproducible, in MNIST's form, and diverse."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from export import strokes
from export.recipe import Handwriting

if TYPE_CHECKING:
    from export.mnist import Examples


@pytest.fixture(scope="module")
def digits() -> Examples:
    return strokes.draw(1_000, Handwriting(), seed=0)


def test_the_same_seed_draws_the_same_digits(digits: Examples) -> None:
    again = strokes.draw(1_000, Handwriting(), seed=0)
    np.testing.assert_array_equal(again.images, digits.images)
    np.testing.assert_array_equal(again.labels, digits.labels)
    assert not np.array_equal(strokes.draw(1_000, Handwriting(), seed=1).images, digits.images)


def test_draws_about_as_many_of_each_digit(digits: Examples) -> None:
    counts = np.bincount(digits.labels, minlength=10)
    assert counts.min() > 60
    assert counts.max() < 140


def test_digits_are_in_mnists_form(digits: Examples) -> None:
    images = digits.images.reshape(-1, 28, 28).astype(np.float64)
    assert (images.max(axis=(1, 2)) == 255).all()
    for axis in (1, 2):
        inked = images.max(axis=axis) > 127
        length = 28 - inked[:, ::-1].argmax(axis=1) - inked.argmax(axis=1)
        assert length.max() <= 22
        middle = images.sum(axis=axis) @ np.arange(28) / images.sum(axis=(1, 2))
        assert np.abs(middle - 13.5).max() < 2.5
        assert np.abs(middle - 13.5).mean() < 0.5


@pytest.mark.parametrize(
    ("digit", "template"), [(d, template) for d, templates in strokes.TEMPLATES.items() for template in templates]
)
def test_a_template_is_within_its_box_and_fits_the_segments(digit: int, template: str) -> None:
    spline = strokes._spline(template)
    assert 0 <= digit <= 9
    assert spline.points.min() >= 0
    assert spline.points.max() <= 1
    assert np.ptp(spline.points[:, 1]) >= 0.9, "a template has the height of its box"
    np.testing.assert_allclose(spline.start.sum(axis=1), 1)


def test_a_curve_passes_through_its_points() -> None:
    points = np.array([[0.0, 0.0], [1.0, 3.0], [2.0, 1.0]])
    curve = strokes._catmull_rom(points)
    for point in points:
        assert np.abs(curve - point).sum(axis=1).min() < 1e-12


def test_a_point_named_twice_is_moved_as_one() -> None:
    spline = strokes._spline("15,28 55,0 / 55,0 55,100")
    assert len(spline.points) == 3
    end_of_flag, start_of_stem = spline.end[strokes._SEGMENTS_PER_POINT - 1], spline.start[strokes._SEGMENTS_PER_POINT]
    np.testing.assert_array_equal(end_of_flag, start_of_stem)


def test_a_wider_pen_leaves_more_ink() -> None:
    ink = []
    for pen in (1.5, 3.0, 5.0):
        handwriting = replace(Handwriting(), pen=pen, pen_spread=0.0, pressure=0.0)
        ink.append(strokes.draw(200, handwriting, seed=0).images.mean())
    assert ink[0] * 1.5 < ink[1] < ink[2] / 1.2
