"""Draw a digit and its 10 activations in the terminal."""

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
    from digitserve_client.messages import Explanation, Predictions
    from rich.console import Console, RenderableType

SIDE = 28
SHORTEST, LONGEST = 8, 30
"""Characters of a bar."""
FOR, AGAINST = (88, 166, 255), (255, 96, 82)
"""Red, green and blue of contributions for and against a neuron: the film's colours of weights."""

_GAP = 2  # between two cards
_BARE = 2
_WITH_NUMBER = 6
"""Characters of a row without its bar: "7 ", and " .98" if there is room."""
NARROW = SIDE + 1 + _BARE + SHORTEST
WIDE = SIDE + 1 + _WITH_NUMBER + SHORTEST
"""Characters of the narrowest card, without numbers and with them."""
_SHADES = " .:-=+*#%@"
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def card(
    pixels: npt.NDArray[np.uint8],
    answers: Predictions,
    row: int,
    *,
    title: str,
    console: Console,
    width: int | None = None,
    label: int | None = None,
) -> RenderableType:
    """Draw one image (784,) and its answer within `width` characters, by default the console's.

    The 10 bars are to the right of the picture, or below it. `label` is the true digit, and marks the answer
    right or wrong. A card that shares its row may omit the numbers.
    """
    width = console.width if width is None else width
    numbers = width == console.width or width >= WIDE
    beside = width >= WIDE or not numbers
    ascii_only = console.options.ascii_only
    activations, digit = answers.activations[row], int(answers.digits[row])
    shown = picture(pixels, colour=console.color_system is not None and not console.no_color and not ascii_only)
    room = width - SIDE - 1 if beside else width
    right = bars(activations, digit, room, numbers=numbers, ascii_only=ascii_only)
    heading, caption = Text(title, style="dim"), answer(activations, digit, label, numbers=not numbers)
    if numbers:
        right.append("\n\n").append_text(caption)
    else:
        heading = Text.assemble((f"{title}: ", "dim"), caption)
    return Group(heading, _in_a_row(shown, right, gap=1) if beside else Group(shown, right))


def side_by_side(cards: list[Callable[[int], RenderableType]], console: Console) -> RenderableType:
    """Cards, each made for a width, as many in a row as the terminal has room for.

    Two without the numbers rather than one with them; three if each has all.
    """
    columns = max(1, (console.width + _GAP) // (WIDE + _GAP))
    if columns == 1 and console.width >= 2 * NARROW + _GAP:
        columns = 2
    width = (console.width - _GAP * (columns - 1)) // columns
    rows = (cards[i : i + columns] for i in range(0, len(cards), columns))
    return Group(*(Group(_in_a_row(*(make(width) for make in row), gap=_GAP), "") for row in rows))


def _in_a_row(*parts: RenderableType, gap: int) -> Table:
    """Place the parts in a row, without padding after the last."""
    table = Table.grid(padding=(0, gap, 0, 0), pad_edge=False)
    table.add_row(*parts)
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
    activations: npt.NDArray[np.float32], digit: int, width: int, *, numbers: bool = True, ascii_only: bool = False
) -> Text:
    """Draw the 10 outputs, 0..1, as bars within `width` characters."""
    text = Text(no_wrap=True)
    bar = min(width - (_WITH_NUMBER if numbers else _BARE), LONGEST)
    for i, brightness in enumerate(activations.tolist()):
        style = "bold green" if i == digit else ""
        text.append(f"{i} ", style or "dim")
        text.append(_bar(brightness, bar, ascii_only=ascii_only), style or "white")
        if numbers:
            text.append(f" {_number(brightness)}", style or "dim")
        text.append("\n")
    text.right_crop(1)
    return text


def answer(activations: npt.NDArray[np.float32], digit: int, label: int | None = None, *, numbers: bool) -> Text:
    """Which digit it was read as, with `numbers` how brightly, and with `label` whether that is right."""
    text = Text("an " if digit == 8 else "a ")
    text.append(str(digit), "bold green")
    if numbers:
        text.append(f" ({_number(float(activations[digit]))})", "dim")
    if label is not None:
        right = label == digit
        text.append(", right" if right else f", not {label}", "green" if right else "bold red")
    return text


def _bar(brightness: float, width: int, *, ascii_only: bool) -> str:
    if ascii_only:
        return ("#" * round(brightness * width)).ljust(width)
    full, eighth = divmod(round(brightness * width * 8), 8)
    return ("█" * full + (_EIGHTHS[eighth] if eighth else "")).ljust(width)


def _number(brightness: float) -> str:
    """Three characters: .98, or 1.0."""
    return f"{brightness:.2f}"[1:] if brightness < 0.995 else f"{brightness:.1f}"


def layers(answers: Predictions, row: int) -> Text:
    """Draw the two hidden layers as 16 activations each."""
    text = Text()
    for name, layer in (("layer1", answers.layer1), ("layer2", answers.layer2)):
        if layer is not None:
            text.append(f"{name} ", "dim")
            # 0.98 as .98 and the ReLU network's 12.34 as 12.3, so that 16 fit into a line.
            text.append(" ".join(map(_number, layer[row].tolist())) + "\n")
    text.right_crop(1)
    return text


def explained(pixels: npt.NDArray[np.uint8], why: Explanation, console: Console) -> RenderableType:
    """Draw the digit next to the effect of each pixel on the neuron: blue for it, red against it."""
    if console.color_system is None or console.no_color or console.options.ascii_only:
        signs = _strengths(pixels, why).reshape(SIDE, SIDE)
        rows = ("".join("+" if v > 0.2 else "-" if v < -0.2 else " " for v in row) for row in signs[::2].tolist())
        return Group(Text(_title(why), style="dim"), Text("\n".join(rows), no_wrap=True))
    rgb = [[Color.from_rgb(*pixel) for pixel in row] for row in signed(_strengths(pixels, why)).tolist()]
    text = Text(no_wrap=True)
    for upper, lower in zip(rgb[::2], rgb[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append("▀", Style(color=above, bgcolor=below))
        text.append("\n")
    text.right_crop(1)
    both = (picture(pixels, colour=True), text)
    shown = _in_a_row(*both, gap=_GAP) if console.width >= 2 * SIDE + _GAP else Group(*both)
    return Group(Text(_title(why), style="dim"), shown)


def explained_png(pixels: npt.NDArray[np.uint8], why: Explanation) -> Image.Image:
    """As `explained`, 8 screen pixels to each of the digit's."""
    digit = np.repeat(pixels.reshape(SIDE, SIDE, 1), 3, axis=2)
    both = np.concatenate([digit, signed(_strengths(pixels, why))], axis=1).astype(np.uint8)
    return Image.fromarray(both).resize((2 * SIDE * 8, SIDE * 8), Image.Resampling.NEAREST)


def signed(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Values -1 to 1, (784,), as colours (28, 28, 3): black is 0, blue for, red against."""
    towards = np.where(values[:, None] > 0, FOR, AGAINST) * np.abs(values)[:, None]
    return towards.round().astype(np.uint8).reshape(SIDE, SIDE, 3)


def _strengths(pixels: npt.NDArray[np.uint8], why: Explanation) -> npt.NDArray[np.float64]:
    """Return gradient times ink, the strongest 1 or -1: the first-order effect of each pixel on the neuron."""
    each = why.gradient.astype(np.float64) * pixels / 255
    return np.asarray(each / max(float(np.abs(each).max()), 1e-30), dtype=np.float64)


def _title(why: Explanation) -> str:
    return f"the pixels that spoke for {why.index} (blue, +) and against it (red, -)"


def _grey(value: int) -> Color:
    return Color.from_rgb(value, value, value)
