"""Photographs and drawings are converted to the form of the training data; other files are rejected."""

from __future__ import annotations

import contextlib
import gzip
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import SAMPLES
from digitserve_client.image import ImageError, NoDigitError, read, to_mnist
from digitserve_client.preparation import normalize
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from export import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

RNG = np.random.default_rng(11)


def drawn(digit: np.ndarray) -> Image.Image:
    """Enlarge a digit to a light-on-dark drawing with a margin."""
    large = Image.fromarray(digit.reshape(28, 28)).resize((336, 336), Image.Resampling.BICUBIC)
    return ImageOps.expand(large, 60)


def on_paper(digit: np.ndarray) -> Image.Image:
    return Image.fromarray((230 - np.asarray(drawn(digit)) * 0.8).astype(np.uint8))


def photographed(digit: np.ndarray) -> Image.Image:
    """Convert a digit to dark ink on paper with light from one side, with sensor noise, as JPEG."""
    paper = np.asarray(on_paper(digit), dtype=float)
    y, x = np.mgrid[0 : 1 : paper.shape[0] * 1j, 0 : 1 : paper.shape[1] * 1j]
    lit = paper * (0.5 + 0.5 * x) * (0.85 + 0.15 * y) + RNG.normal(0, 6, paper.shape)
    file = io.BytesIO()
    Image.fromarray(lit.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=80)
    return Image.open(file)


def off_centre(digit: np.ndarray) -> Image.Image:
    return ImageOps.expand(on_paper(digit), (0, 0, 300, 150), fill=230)


def with_specks(digit: np.ndarray) -> Image.Image:
    picture = np.array(on_paper(digit))
    for _ in range(12):
        y, x = RNG.integers(0, 440, 2)
        if not 50 < y < 400 or not 50 < x < 400:
            picture[y : y + 6, x : x + 6] = 30
    return Image.fromarray(picture)


def with_a_thin_pen(digit: np.ndarray) -> Image.Image:
    large = Image.fromarray(digit.reshape(28, 28)).resize((560, 560), Image.Resampling.BICUBIC)
    ink = np.asarray(large) > 128
    return ImageOps.expand(
        Image.fromarray(np.where(ink, 0, 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(15)), 9, 255
    )


def transparent(digit: np.ndarray) -> Image.Image:
    alpha = drawn(digit)
    return Image.merge("LA", (Image.new("L", alpha.size, 0), alpha))


def coloured(digit: np.ndarray) -> Image.Image:
    return ImageOps.colorize(drawn(digit), "#f5e9c8", "#1a3a8f")


def page(digit: np.ndarray, side: int = 480, size: int = 160, darkness: float = 0.75) -> np.ndarray:
    """Return the grey levels of a page with the digit slightly above its middle."""
    large = Image.fromarray(digit.reshape(28, 28)).resize((size, size), Image.Resampling.BICUBIC)
    ink = np.zeros((side, side))
    top, left = (side - size) // 3, (side - size) // 2
    ink[top : top + size, left : left + size] = np.asarray(large) / 255
    return 225 * (1 - darkness * ink)


def snapshot(levels: np.ndarray) -> Image.Image:
    """Add the noise of a camera and the artefacts of JPEG."""
    file = io.BytesIO()
    noisy = levels + RNG.normal(0, 4, levels.shape)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=80)
    return Image.open(file)


def on_ruled_paper(digit: np.ndarray) -> Image.Image:
    levels = page(digit)
    levels[32::32] *= 0.8
    return snapshot(levels)


def with_a_hand_s_shadow(digit: np.ndarray) -> Image.Image:
    levels = page(digit)
    y, x = np.mgrid[0 : 1 : levels.shape[0] * 1j, 0 : 1 : levels.shape[1] * 1j]
    return snapshot(levels * (1 - 0.45 / (1 + np.exp((x + 0.4 * y - 0.75) * 40))))


def on_a_dark_table(digit: np.ndarray) -> Image.Image:
    levels = page(digit)
    levels[:, :32] = levels[-20:] = 60
    return snapshot(levels)


def framed(digit: np.ndarray) -> Image.Image:
    levels = page(digit)
    levels[10:470, 10:470][[0, 1, 2, -1, -2, -3]] = 20
    levels[10:470, 10:470][:, [0, 1, 2, -1, -2, -3]] = 20
    return snapshot(levels)


def small_on_a_large_page(digit: np.ndarray) -> Image.Image:
    return snapshot(page(digit, side=1200, size=140))


def in_pencil(digit: np.ndarray) -> Image.Image:
    return snapshot(page(digit, darkness=0.25))


def in_chalk(digit: np.ndarray) -> Image.Image:
    return snapshot(255 - page(digit))


def cut_out_tightly(digit: np.ndarray) -> Image.Image:
    paper = on_paper(digit)
    return paper.crop(ImageOps.invert(paper).point(lambda level: level > 90 and 255).getbbox())


EVERYDAY = [on_ruled_paper, with_a_hand_s_shadow, on_a_dark_table, framed, small_on_a_large_page, in_pencil, in_chalk]


@pytest.mark.slow
@pytest.mark.parametrize("draw", [*EVERYDAY, cut_out_tightly])
def test_a_snapshot_of_everyday_paper_is_read_as_the_digit(
    digits: np.ndarray, labels: np.ndarray, draw: Callable[[np.ndarray], Image.Image]
) -> None:
    network = checkpoint.load(checkpoint.committed("sigmoid")).network
    pixels = np.stack([to_mnist(draw(digit)) for digit in digits[::2]])
    right = int((network.forward(pixels).digit == labels[::2]).sum())
    assert right >= 45, f"{right} of 50"


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw", [drawn, on_paper, photographed, off_centre, with_specks, with_a_thin_pen, transparent, coloured]
)
def test_a_picture_of_a_digit_is_read_as_the_digit(
    digits: np.ndarray, labels: np.ndarray, draw: Callable[[np.ndarray], Image.Image]
) -> None:
    network = checkpoint.load(checkpoint.committed("sigmoid")).network
    pixels = np.stack([to_mnist(draw(digit)) for digit in digits[::2]])
    right = int((network.forward(pixels).digit == labels[::2]).sum())
    assert right >= 45, f"{right} of 50"


def test_a_digit_in_mnists_form_passes_unchanged(digits: np.ndarray) -> None:
    for digit in digits:
        np.testing.assert_array_equal(to_mnist(Image.fromarray(digit.reshape(28, 28))), digit)


def test_the_digit_fills_the_box_and_its_mass_is_in_the_middle(digits: np.ndarray) -> None:
    for digit in digits:
        placed = to_mnist(off_centre(digit)).reshape(28, 28).astype(float)
        rows, columns = np.flatnonzero(placed.sum(axis=1)), np.flatnonzero(placed.sum(axis=0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
        y, x = (float((np.arange(28) * placed.sum(axis=1 - axis)).sum() / placed.sum()) for axis in (0, 1))
        assert abs(y - 13.5) <= 0.51
        assert abs(x - 13.5) <= 0.51


def test_a_photograph_taken_sideways_is_turned_upright(digits: np.ndarray, tmp_path: Path) -> None:
    upright = on_paper(digits[45])
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise to show
    upright.rotate(90, expand=True).save(tmp_path / "sideways.jpg", exif=exif, quality=95)
    upright.save(tmp_path / "upright.jpg", quality=95)
    difference = read(tmp_path / "sideways.jpg").astype(int) - read(tmp_path / "upright.jpg").astype(int)
    assert np.abs(difference).mean() < 4


def test_sixteen_bits_a_pixel_are_read_as_eight(digits: np.ndarray, tmp_path: Path) -> None:
    eight = on_paper(digits[12])
    Image.fromarray(np.asarray(eight).astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    np.testing.assert_array_equal(read(tmp_path / "sixteen.png")[0], to_mnist(eight))


def test_an_idx_file_is_read_as_it_is_plain_or_gzipped(digits: np.ndarray, tmp_path: Path) -> None:
    plain = SAMPLES / "digits-100-images-idx3-ubyte"
    packed = tmp_path / "digits.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    np.testing.assert_array_equal(read(plain), digits)
    np.testing.assert_array_equal(read(packed), digits)


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def idx(n: int, rows: int, columns: int, body: int) -> bytes:
    return b"\x00\x00\x08\x03" + b"".join(v.to_bytes(4) for v in (n, rows, columns)) + bytes(body)


NOISE = np.random.default_rng(2).integers(0, 256, (200, 200)).astype(np.uint8)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"seven", "is no picture"),
        (png(Image.new("L", (300, 300), 255)), "shows no digit"),
        (png(Image.new("RGBA", (300, 300), (0, 0, 0, 0))), "shows no digit"),
        (png(Image.new("L", (28, 28), 9)), "shows no digit"),
        (png(Image.fromarray(NOISE))[:5000], "is a damaged picture"),
        (png(Image.new("L", (11_000, 10_000))), "has more pixels than the 100,000,000 that are read"),
        (png(Image.new("1", (20_000, 20_000))), "has more pixels than the 100,000,000 that are read"),
        (idx(2, 28, 28, 784), "is an IDX file of 2 images with 784 bytes of them; expected n x 784"),
        (idx(1, 14, 14, 196), "is an IDX file of 14x14 images; expected 28x28"),
        (idx(0, 28, 28, 0), "is an IDX file of 0 images"),
        (b"\x00\x00\x08\x03\x00", "cut short in its header"),
        (gzip.compress(b"seven", mtime=0)[:-4], "is a damaged gzip file"),
        (gzip.compress(bytes(70 * 2**20)), "unpacks to more than 67,108,864 bytes"),
    ],
)
def test_a_picture_without_a_digit_is_rejected_by_name(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=sentence) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_format_that_starts_other_programs_is_not_opened(tmp_path: Path) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "digit.eps")
    with pytest.raises(ImageError, match="is no picture"):
        read(tmp_path / "digit.eps")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero")
def test_an_endless_device_is_rejected() -> None:
    with pytest.raises(ImageError, match="is larger than the 67,108,864 bytes"):
        read(Path("/dev/zero"))


def test_a_missing_picture_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read: No such file or directory"):
        read(tmp_path / "none.png")


@given(
    content=st.binary(max_size=400),
    magic=st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x1f\x8b", b"\x00\x00\x08\x03", b"GIF89a", b"BM"]
    ),
)
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_pixels_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, magic: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(magic + content)
    try:
        pixels = read(path)
    except ImageError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[1:] == (784,)


@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 90), width=st.integers(1, 90))
@settings(max_examples=60, deadline=None)
def test_any_picture_is_784_pixels_or_an_error(seed: int, height: int, width: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)
    with contextlib.suppress(ImageError):
        assert to_mnist(Image.fromarray(picture)).shape == (784,)


@given(
    seed=st.integers(0, 2**32 - 1),
    most=st.integers(1, 255),
    side=st.integers(1, 300),
    channels=st.sampled_from(["L", "LA"]),
)
@settings(max_examples=60, deadline=None)
def test_any_drawing_is_784_pixels_or_no_digit(seed: int, most: int, side: int, channels: str) -> None:
    levels = np.random.default_rng(seed).integers(0, most + 1, (side, side, 2)).astype(np.uint8)
    levels[..., 0] *= channels == "L"
    levels *= np.random.default_rng(seed).random((side, side, 1)) < 0.02
    picture = Image.fromarray(levels[..., 0]) if channels == "L" else Image.fromarray(levels, "LA")
    with contextlib.suppress(NoDigitError):
        assert to_mnist(picture, polarity="light-on-dark" if channels == "L" else "unknown").shape == (784,)


def dense_seven(ground: tuple[int, int, int, int], pen: tuple[int, int, int, int]) -> Image.Image:
    """Draw a seven with a pen so broad that ink covers more than half of the picture."""
    picture = Image.new("RGBA", (280, 280), ground)
    ImageDraw.Draw(picture).line([(60, 60), (220, 60), (120, 240)], fill=pen, width=140, joint="curve")
    return picture


BLACK, WHITE, RED = (0, 0, 0, 255), (255, 255, 255, 255), (200, 0, 0, 255)


@pytest.mark.parametrize(
    ("picture", "known"),
    [
        (dense_seven(BLACK, WHITE), True),
        (dense_seven((0, 0, 0, 0), BLACK), False),
        (dense_seven((255, 255, 255, 0), WHITE), False),
        (dense_seven((0, 0, 0, 0), RED), False),
    ],
)
def test_a_dense_drawing_keeps_its_ink_if_the_background_is_known(picture: Image.Image, known: bool) -> None:
    pixels = to_mnist(picture, polarity="light-on-dark" if known else "unknown")
    plain = np.asarray(dense_seven(BLACK, WHITE).convert("L"))
    assert (plain > 127).mean() > 0.5
    assert np.abs(pixels - normalize(plain / 255).reshape(-1).astype(float)).mean() < 2


@pytest.mark.parametrize("side", [0, 22, 39])
def test_a_drawing_that_is_only_begun_shows_no_digit(side: int) -> None:
    picture = Image.new("L", (280, 280))
    picture.paste(255, (100, 100, 100 + side, 100 + side))
    with pytest.raises(NoDigitError, match="shows no digit"):
        to_mnist(picture, polarity="light-on-dark")


def test_a_drawing_at_the_edge_of_its_pad_is_kept_whole() -> None:
    picture = Image.new("L", (280, 280))
    ImageDraw.Draw(picture).rectangle((0, 0, 279, 279), outline=255, width=22)
    ImageDraw.Draw(picture).rectangle((130, 130, 150, 150), fill=255)
    pixels = to_mnist(picture, polarity="light-on-dark").reshape(28, 28)
    assert pixels[4, 6:22].min() == 255  # compressed to 18 columns
    assert pixels[13:15, 13:15].min() > 100
