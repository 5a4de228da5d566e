"""Warnings of an answer: an unclear result, or a picture of several digits or of none."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import ROOT
from digitserve_client import AsyncDigitsClient, DigitsClient
from digitserve_client.image import prepare_bytes, prepare_picture, to_mnist
from digitserve_client.messages import Predictions
from digitserve_client.uncertainty import HIGHEST_SECOND, LOWEST_TOP, Inspection, doubts
from drawings import STROKES, draw_digits
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from conftest import ServiceProcess


def activations(**digits: float) -> np.ndarray:
    row = np.zeros(10, np.float32)
    for name, value in digits.items():
        row[int(name[1:])] = value
    return row


CLEAR = activations(d6=0.95, d1=0.1)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (CLEAR, ()),
        (activations(d6=LOWEST_TOP - 0.01), "answer: 6, perhaps 0; expected one clear digit"),
        (activations(d6=0.9, d1=HIGHEST_SECOND + 0.01), "answer: 6, perhaps 1; expected one clear digit"),
    ],
)
def test_an_unclear_answer_names_the_second(row: np.ndarray, said: tuple[str, ...] | str) -> None:
    assert doubts(row, Inspection()) == (said if isinstance(said, tuple) else (said,))


@pytest.mark.parametrize(("digit", "holes", "sure"), [(3, 0, True), (3, 1, False), (8, 2, True), (8, 0, False)])
def test_an_answer_that_contradicts_the_holes_of_its_ink_has_a_warning(digit: int, holes: int, sure: bool) -> None:
    said = doubts(activations(**{f"d{digit}": 0.99}), Inspection((), holes))
    assert (not said) is sure
    assert sure or f"the ink encloses {holes} area" in said[0]


def ring(*, bar: bool = False, tilt: float = 0) -> Image.Image:
    picture = Image.new("L", (300, 300), 230)
    draw = ImageDraw.Draw(picture)
    draw.ellipse((95, 50, 205, 250), outline=30, width=12)
    if bar:
        draw.line([(105, 160), (195, 155)], 30, 12)
    return picture.rotate(tilt, fillcolor=230)


def eight(tilt: float) -> Image.Image:
    picture = Image.new("L", (300, 300), 230)
    draw = ImageDraw.Draw(picture)
    draw.ellipse((105, 40, 195, 145), outline=30, width=12)
    draw.ellipse((95, 135, 205, 250), outline=30, width=12)
    return picture.rotate(tilt, fillcolor=230)


NO_WAIST = "answer: 8, but the outline has no waist; expected two loops"


@pytest.mark.parametrize("tilt", [-10, 0, 10])
def test_a_ring_with_a_bar_is_not_a_sure_eight(tilt: float) -> None:
    (inspection,) = prepare_picture(ring(bar=True, tilt=tilt)).inspections
    assert doubts(activations(d8=0.95), inspection) == (NO_WAIST,)
    (inspection,) = prepare_picture(eight(tilt)).inspections
    assert doubts(activations(d8=0.95), inspection) == ()


def test_a_zero_is_not_warned_of_its_missing_waist() -> None:
    (inspection,) = prepare_picture(ring()).inspections
    assert doubts(activations(d0=0.95), inspection) == ()


def test_the_eights_of_mnist_have_a_waist(digits: np.ndarray, labels: np.ndarray) -> None:
    for digit in digits[labels == 8]:
        (inspection,) = prepare_picture(Image.fromarray(digit.reshape(28, 28))).inspections
        assert NO_WAIST not in doubts(activations(d8=0.95), inspection)


def test_predictions_contain_second_sure_and_warnings_of_each_image() -> None:
    rows = np.stack([CLEAR, activations(d3=0.5, d5=0.45)])
    found = Predictions(rows.argmax(axis=1), rows, None, None, "1", "id", (Inspection(("picture: odd",)), Inspection()))
    assert found.second.tolist() == [1, 5]
    assert found.sure.tolist() == [False, False]
    assert found.warnings == (("picture: odd",), ("answer: 3, perhaps 5; expected one clear digit",))
    assert found[0].warnings == (("picture: odd",),)
    assert [each.sure.tolist() for each in found] == [[False], [False]]


@pytest.mark.parametrize("digit", [0, 1, 4, 7])
@pytest.mark.parametrize("pen", [3, 12, 40])
def test_one_digit_is_not_warned_of(digit: int, pen: int) -> None:
    assert prepare_picture(draw_digits([digit], pen=pen)).inspections[0].warnings == ()


def solid() -> Image.Image:
    picture = Image.new("L", (200, 200), 230)
    ImageDraw.Draw(picture).ellipse((50, 50, 150, 150), fill=30)
    return picture


def scattered() -> Image.Image:
    picture = Image.new("L", (200, 200), 230)
    for x in range(40, 160, 30):
        for y in range(40, 160, 30):
            ImageDraw.Draw(picture).line([(x, y), (x + 15, y + 10)], 30, 5)
    return picture


def dash() -> Image.Image:
    picture = Image.new("L", (300, 200), 230)
    ImageDraw.Draw(picture).line([(40, 100), (260, 105)], 30, 12)
    return picture


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (draw_digits([1, 0]), "picture: 2 digits side by side; expected one, or --each"),
        (draw_digits([4, 7, 1, 0]), "picture: 4 digits side by side; expected one, or --each"),
        (solid(), "picture: a solid shape; expected the lines of a digit"),
        (dash(), "picture: the ink is much wider than high; expected one digit"),
    ],
)
def test_a_picture_without_a_single_digit_has_a_warning(picture: Image.Image, said: str) -> None:
    assert said in prepare_picture(picture).inspections[0].warnings


def test_many_parts_are_warned_of() -> None:
    (said,) = prepare_picture(scattered()).inspections[0].warnings
    assert "side by side" in said or "separate parts" in said


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_each_cuts_a_picture_into_its_digits_from_left_to_right() -> None:
    digits = [7, 1, 0, 4]
    found = prepare_bytes(png(draw_digits(digits)), each=True)
    assert [each.warnings for each in found.inspections] == [()] * 4
    for pixels, digit in zip(found.pixels, digits, strict=True):
        assert np.abs(pixels.astype(int) - to_mnist(draw_digits([digit]))).mean() < 6


@pytest.mark.parametrize("digit", STROKES)
def test_each_leaves_a_single_digit_whole(digit: int) -> None:
    picture = draw_digits([digit])
    np.testing.assert_array_equal(prepare_bytes(png(picture), each=True).pixels, to_mnist(picture)[None])


def test_each_leaves_out_the_sign_between_two_digits() -> None:
    picture = draw_digits([4, 7], gap=0.9)
    ImageDraw.Draw(picture).line([(275, 200), (315, 200)], 40, 12)
    assert len(prepare_bytes(png(picture), each=True).pixels) == 2


async def test_every_call_returns_the_warnings_of_its_answers(server: ServiceProcess) -> None:
    async def batches() -> AsyncIterator[Image.Image]:
        for digits in ([1, 0], [7]):
            yield draw_digits(digits)

    with DigitsClient(server.address) as client:
        found = client.predict([draw_digits([1, 0]), draw_digits([7])])
        assert "2 digits side by side" in found.warnings[0][0]
        assert "2 digits side by side" in client.explain(draw_digits([1, 0])).answers.warnings[0][0]
        streamed = list(client.predict_stream(draw_digits(digits) for digits in ([1, 0], [7])))
        assert [each.warnings[0] for each in streamed] == list(found.warnings)
    async with AsyncDigitsClient(server.address) as asynchronous:
        assert (await asynchronous.predict(draw_digits([1, 0]))).warnings[0] == found.warnings[0]
        assert [each.warnings[0] async for each in asynchronous.predict_stream(batches())] == list(found.warnings)


def run(server: ServiceProcess, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "digitserve", "predict", "--address", server.address, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_predict_prints_warnings_reads_each_digit_and_saves_the_sent_pixels(
    server: ServiceProcess, tmp_path: Path
) -> None:
    draw_digits([7, 1]).save(tmp_path / "two.png")
    (whole,) = json.loads(run(server, "--json", tmp_path / "two.png").stdout)
    assert whole["warnings"][0] == "picture: 2 digits side by side; expected one, or --each"
    assert whole["sure"] is False
    assert whole["second"] != whole["digit"]
    assert whole["warnings"][0] in run(server, tmp_path / "two.png").stdout
    folder = tmp_path / "sent"
    done = run(server, "--json", "--each", "--save-png", folder, tmp_path / "two.png")
    assert [each["digit"] for each in json.loads(done.stdout)] == [7, 1]
    sent = [np.asarray(Image.open(folder / f"two-{row}.png")) for row in (0, 1)]
    np.testing.assert_array_equal(
        np.reshape(sent, (2, 784)), prepare_bytes((tmp_path / "two.png").read_bytes(), each=True).pixels
    )


def test_an_unwritable_folder_is_a_one_line_error(server: ServiceProcess, tmp_path: Path) -> None:
    draw_digits([7]).save(tmp_path / "seven.png")
    done = run(server, "--json", "--save-png", tmp_path / "seven.png" / "folder", tmp_path / "seven.png")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
