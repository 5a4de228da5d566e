"""The output in a terminal at every width: lines fit, the picture is complete, and bars are visible."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, SAMPLES
from digitserve_client.image import read
from digitserve_client.messages import Explanation, Predictions
from rich.console import Console
from rich.text import Text

from digitserve import demo, render

DIGITS = SAMPLES / "digits-100-images-idx3-ubyte"
WIDTHS = (30, 40, 60, 80, 100, 120, 160, 240)

FULL = np.full(784, 255, np.uint8)
"""A picture with ink in every column: 28 characters "@" per line."""

BRIGHT = Predictions(
    np.array([8]), np.ones((1, 10), np.float32), np.ones((1, 16), np.float32), np.ones((1, 16), np.float32), "1", "id"
)


def terminal(width: int, **given: Any) -> Console:
    return Console(width=width, file=io.StringIO(), **given)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def bars(shown: list[str]) -> list[str]:
    return [word for line in shown for word in line.split() if set(word) <= set(render._EIGHTHS)]


@pytest.mark.parametrize("width", WIDTHS)
def test_ten_cards_fit_the_width_with_the_whole_picture_and_bars(width: int) -> None:
    console = terminal(width)
    cards = [demo._shown(FULL, BRIGHT, row, 8, console) for row in range(10)]
    console.print(render.side_by_side(cards, console))
    shown = lines(console)
    assert max(map(len, shown)) <= width
    assert "\n".join(shown).count("…") == 0
    if width >= 28:
        assert sum(line.count("@" * 28) for line in shown) == 10 * 14
    assert len(bars(shown)) == 100
    assert {len(bar) for bar in bars(shown)} <= set(range(render.SHORTEST, render.LONGEST + 1))
    assert "\n".join(shown).count("an 8") == 10


@pytest.mark.parametrize(("width", "columns"), [(40, 1), (60, 1), (80, 2), (100, 2), (120, 2), (160, 3)])
def test_a_wide_terminal_is_used(width: int, columns: int) -> None:
    console = terminal(width)
    console.print(render.side_by_side([demo._shown(FULL, BRIGHT, 0, 8, console)] * 10, console))
    assert max(line.count("image 0") for line in lines(console)) == columns


@pytest.mark.parametrize("width", WIDTHS)
def test_one_card_fits_the_width_with_the_numbers_and_the_hidden_layers(width: int) -> None:
    console = terminal(width)
    console.print(render.card(FULL, BRIGHT, 0, title="a picture", console=console))
    console.print(render.layers(BRIGHT, 0))
    shown = lines(console)
    assert max(map(len, shown)) <= width
    assert sum(line.count("@" * 28) for line in shown) == 14
    assert sum(line.endswith(" 1.0") and "█" * render.SHORTEST in line for line in shown) == 10
    assert " ".join(shown).count(" 1.0") == 10 + 2 * 16


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("colours", ["truecolor", None])
def test_an_explanation_fits_the_width(width: int, colours: str | None) -> None:
    ones = np.ones(784, np.float32)
    console = terminal(width, color_system=colours, force_terminal=True)
    console.print(render.explained(FULL, Explanation(3, 3, 0.0, ones, ones), console))
    plain = [Text.from_ansi(line).plain for line in lines(console)]
    assert max(map(len, plain)) <= width
    assert sum(line.count(("▀" if colours else "+") * 28) for line in plain) == (28 if colours else 14)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_commands_to_try_next_fit_the_width_and_are_commands_still(width: int) -> None:
    images = DIGITS.relative_to(ROOT)
    text = demo.next_steps("127.0.0.1:50061", images, width).plain
    longest = max(map(len, text.split()))  # which is never wrapped
    assert max(map(len, text.splitlines())) <= max(width, len("--address ") + longest + len("      " + " \\"))
    _, *commands = text.replace(" \\\n      ", " ").splitlines()  # as a shell joins them
    program = commands[0].split()[0]
    assert Path(shutil.which(program) or program).resolve() == Path(sys.executable).with_name("digitserve").resolve()
    assert [" ".join(command.split()[1:]) for command in commands] == [
        f"predict {images} --limit 3 --address 127.0.0.1:50061",
        "predict YOUR-OWN-DIGIT.jpg --json --address 127.0.0.1:50061",
        f"-s localhost:{os.environ.get('DIGITS_METRICS_PORT', '9464')}/metrics | grep digits_",
    ]


def test_piped_output_has_eighty_columns_and_no_colour() -> None:
    console = Console(file=io.StringIO(), _environ={})
    assert console.width == 80
    images = read(DIGITS)
    console.print(
        render.side_by_side([demo._shown(images[row], BRIGHT, row, 8, console) for row in range(10)], console)
    )
    assert max(map(len, lines(console))) <= 80
    assert "\x1b" not in "\n".join(lines(console))


def test_make_alone_lists_every_target_in_eighty_columns() -> None:
    listed = subprocess.run(["/usr/bin/env", "make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "make run " in listed
    assert [line for line in listed.splitlines() if len(line) > 80] == []
