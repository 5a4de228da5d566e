"""A digit and its ten activations in the terminal, as people would rather look at them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Group
from rich.style import Style
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from rich.console import Console, RenderableType

    from client.messages import Explanation, Predictions

SIDE = 28
NARROWEST = SIDE + 1 + 10  # characters of a card: a picture, a space, and bars of four
WIDEST = SIDE + 2 + 18
FOR, AGAINST = (88, 166, 255), (255, 96, 82)
"""Red, green and blue of what speaks for a neuron, and against it: the film's colours of weights."""

_GAP = 2
_SHADES = " .:-=+*#%@"
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def card(
    pixels: npt.NDArray[np.uint8],
    answers: Predictions,
    row: int,
    *,
    title: str,
    console: Console,
    width: int = WIDEST,
    label: int | None = None,
) -> RenderableType:
    """One image (784,) beside its answer: the picture left, the ten brightnesses as bars right.

    With `label`, what the digit really is, the answer is marked right or wrong.
    """
    table = Table.grid(padding=(0, 1))
    bar = min(width, WIDEST) - SIDE - 7
    ascii_only = console.options.ascii_only
    table.add_row(
        picture(pixels, colour=console.color_system is not None and not console.no_color and not ascii_only),
        bars(answers.activations[row], int(answers.digits[row]), bar, label, ascii_only=ascii_only),
    )
    return Group(Text(title, style="dim"), table)


def side_by_side(cards: list[Callable[[int], RenderableType]], console: Console) -> RenderableType:
    """Cards, each made for a width, two in a row where the terminal has room for that."""
    columns = 2 if console.width >= 2 * NARROWEST + _GAP else 1
    width = (console.width - _GAP * (columns - 1)) // columns
    table = Table.grid(padding=(0, _GAP, 1, 0))
    for i in range(0, len(cards), columns):
        table.add_row(*(make(width) for make in cards[i : i + columns]))
    return table


def picture(pixels: npt.NDArray[np.uint8], *, colour: bool) -> Text:
    """28x28 pixels in 14 lines: each character shows two pixels, one above the other."""
    image = pixels.reshape(SIDE, SIDE)
    text = Text(no_wrap=True)
    for upper, lower in zip(image[::2], image[1::2], strict=True):
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            if colour:
                text.append("▀", Style(color=_grey(above), bgcolor=_grey(below)))
            else:
                text.append(_SHADES[(above + below) * (len(_SHADES) - 1) // 510])
        text.append("\n")
    text.right_crop(1)
    return text


def bars(
    activations: npt.NDArray[np.float32], digit: int, width: int, label: int | None = None, *, ascii_only: bool = False
) -> Text:
    """The ten outputs, 0..1, as bars of `width` characters, and the answer."""
    text = Text(no_wrap=True)
    for i, brightness in enumerate(activations.tolist()):
        style = "bold green" if i == digit else ""
        text.append(f"{i} ", style or "dim")
        text.append(_bar(brightness, width, ascii_only=ascii_only), style or "white")
        text.append(f" {brightness:.2f}".replace(" 0.", " .").replace("1.00", "1.0"), style or "dim")
        text.append("\n")
    text.append("\nan " if digit == 8 else "\na ")
    text.append(str(digit), "bold green")
    if label is not None:
        right = label == digit
        text.append(", right" if right else f", not {label}", "green" if right else "bold red")
    return text


def _bar(brightness: float, width: int, *, ascii_only: bool) -> str:
    if ascii_only:
        return ("#" * round(brightness * width)).ljust(width)
    full, eighth = divmod(round(brightness * width * 8), 8)
    return ("█" * full + (_EIGHTHS[eighth] if eighth else "")).ljust(width)


def layers(answers: Predictions, row: int) -> Text:
    """The two hidden layers as sixteen brightnesses each."""
    text = Text()
    for name, layer in (("layer1", answers.layer1), ("layer2", answers.layer2)):
        if layer is not None:
            text.append(f"{name} ", "dim")
            # 0.98 as .98 and the ReLU network's 12.34 as 12.3, so that sixteen fit into a line.
            shown = (f"{v:.2f}"[1:] if v < 0.995 else f"{v:.1f}" for v in layer[row].tolist())
            text.append(" ".join(shown) + "\n")
    text.right_crop(1)
    return text


def explained(pixels: npt.NDArray[np.uint8], why: Explanation, console: Console) -> RenderableType:
    """The digit beside what each of its pixels did to the neuron: blue spoke for it, red against it."""
    if console.color_system is None or console.no_color or console.options.ascii_only:
        signs = _strengths(pixels, why).reshape(SIDE, SIDE)
        rows = ("".join("+" if v > 0.2 else "-" if v < -0.2 else " " for v in row) for row in signs[::2].tolist())
        return Group(Text(_title(why), style="dim"), Text("\n".join(rows), no_wrap=True))
    table = Table.grid(padding=(0, 2))
    rgb = [[Color.from_rgb(*pixel) for pixel in row] for row in signed(_strengths(pixels, why)).tolist()]
    text = Text(no_wrap=True)
    for upper, lower in zip(rgb[::2], rgb[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append("▀", Style(color=above, bgcolor=below))
        text.append("\n")
    text.right_crop(1)
    table.add_row(picture(pixels, colour=True), text)
    return Group(Text(_title(why), style="dim"), table)


def explained_png(pixels: npt.NDArray[np.uint8], why: Explanation) -> Image.Image:
    """As `explained`, 8 screen pixels to each of the digit's."""
    digit = np.repeat(pixels.reshape(SIDE, SIDE, 1), 3, axis=2)
    both = np.concatenate([digit, signed(_strengths(pixels, why))], axis=1).astype(np.uint8)
    return Image.fromarray(both).resize((2 * SIDE * 8, SIDE * 8), Image.Resampling.NEAREST)


def signed(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Values -1 to 1, (784,), as colours (28, 28, 3): black is nothing, blue for, red against."""
    towards = np.where(values[:, None] > 0, FOR, AGAINST) * np.abs(values)[:, None]
    return towards.round().astype(np.uint8).reshape(SIDE, SIDE, 3)


def _strengths(pixels: npt.NDArray[np.uint8], why: Explanation) -> npt.NDArray[np.float64]:
    """Slope times ink, the strongest 1 or -1: what each pixel's ink did to the neuron, to first order."""
    each = why.gradient.astype(np.float64) * pixels / 255
    return np.asarray(each / max(float(np.abs(each).max()), 1e-30), dtype=np.float64)


def _title(why: Explanation) -> str:
    return f"the pixels that spoke for {why.index} (blue, +) and against it (red, -)"


def _grey(value: int) -> Color:
    return Color.from_rgb(value, value, value)
