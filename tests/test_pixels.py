"""The forms of images in a client's calls: each form gives the same bytes, and invalid images are rejected."""

from __future__ import annotations

import array
import contextlib
import gzip
import io
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, SAMPLES
from digitserve_client import AsyncDigitsClient, DigitsClient, ImageError, to_mnist
from digitserve_client.pixels import to_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import ServiceProcess

IMAGES = SAMPLES / "digits-100-images-idx3-ubyte"
DIGITS = np.frombuffer(IMAGES.read_bytes(), np.uint8, offset=16).reshape(-1, 784)


class OnlyDlpack:
    """A tensor of a library that only supports DLPack."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __dlpack__(self, **options: Any) -> Any:
        return self._values.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._values.__dlpack_device__()


SHAPES: list[Callable[[np.ndarray], np.ndarray]] = [
    lambda x: x,
    lambda x: x.reshape(-1, 28, 28),
    lambda x: x.reshape(-1, 1, 28, 28),
    lambda x: x.reshape(-1, 28, 28, 1),
    lambda x: x.reshape(-1, 784, 1),
    lambda x: np.asfortranarray(x.reshape(-1, 28, 28)),
]
TYPES: dict[str, Callable[[np.ndarray], Any]] = {
    **{f"int: {name}": lambda x, t=name: x.astype(t) for name in ("uint8", "int16", "uint16", ">i4", "int64")},
    **{f"float: {name}": lambda x, t=name: (x / 255).astype(t) for name in ("f2", "f4", "f8", ">f8")},
    "nested lists": lambda x: x.tolist(),
    "nested lists of floats": lambda x: (x / 255).tolist(),
    "nested tuples": lambda x: tuple(map(tuple, x.tolist())),
    "a list of arrays": list,
    "a buffer": lambda x: memoryview(np.ascontiguousarray(x)),
    "DLPack alone": lambda x: OnlyDlpack(np.ascontiguousarray(x)),
    "jax": jnp.asarray,
}


@pytest.mark.parametrize("kind", TYPES)
@settings(deadline=None)
@given(rows=st.lists(st.integers(0, 99), min_size=1, max_size=4), shape=st.sampled_from(SHAPES))
def test_the_same_digits_in_every_form_are_the_same_bytes(
    kind: str, rows: list[int], shape: Callable[[np.ndarray], np.ndarray]
) -> None:
    assert to_bytes(TYPES[kind](shape(DIGITS[rows]))) == DIGITS[rows].tobytes()


@settings(deadline=None)
@given(st.binary(min_size=784, max_size=784))
def test_floats_are_exact_for_every_level(raw: bytes) -> None:
    levels = np.frombuffer(raw, np.uint8)
    for kind in ("f2", "f4", "f8"):
        try:
            expected = to_bytes(levels)
        except ImageError as e:
            with pytest.raises(ImageError) as caught:
                to_bytes((levels / 255).astype(kind))
            assert str(caught.value) == str(e)
        else:
            assert to_bytes((levels / 255).astype(kind)) == expected


@pytest.mark.parametrize("shape", [(784,), (28, 28), (1, 28, 28), (28, 28, 1), (784, 1), (1, 784)])
def test_one_image_has_any_shape(shape: tuple[int, ...]) -> None:
    assert to_bytes(DIGITS[42].reshape(shape)) == DIGITS[42].tobytes()


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview, lambda b: array.array("B", b)])
def test_raw_bytes_go_as_they_are(form: Any) -> None:
    one = bytes(range(256)) * 3 + bytes(16)
    assert to_bytes(form(one)) == one


def test_bytes_are_sent_even_if_an_array_would_be_rejected() -> None:
    for raw in ((255 - DIGITS[:2]).tobytes(), (DIGITS[:2] > 127).tobytes()):
        assert to_bytes(raw) == to_bytes(bytearray(raw)) == to_bytes(memoryview(raw)) == raw


def test_true_is_ink() -> None:
    mask = DIGITS > 127
    expected = (mask * np.uint8(255)).tobytes()
    for form in (mask, mask.tolist(), mask.astype(np.float32), mask * 255):
        assert to_bytes(form) == expected


def picture(tmp_path: Path, name: str = "three.png") -> Path:
    """Write a digit dark on light and 10 times as large, as on paper."""
    path = tmp_path / name
    Image.fromarray(255 - DIGITS[31].reshape(28, 28)).resize((280, 280)).save(path)
    return path


def test_a_picture_is_the_same_from_a_path_a_file_or_pillow(tmp_path: Path) -> None:
    path = picture(tmp_path)
    expected = to_mnist(path).tobytes()
    assert len(expected) == 784
    with path.open("rb") as file:
        assert to_bytes(file) == expected
    with Image.open(path) as opened:
        assert to_bytes(opened) == expected
        assert to_mnist(np.asarray(opened)).tobytes() == expected
        assert to_mnist(np.asarray(opened.convert("RGB"))).tobytes() == expected
    for form in (path, str(path), io.BytesIO(path.read_bytes())):
        assert to_bytes(form) == expected
    assert to_bytes([path, str(path), Image.open(path)]) == 3 * expected


def test_an_idx_file_is_all_its_images(tmp_path: Path) -> None:
    packed = tmp_path / "digits.gz"
    packed.write_bytes(gzip.compress(IMAGES.read_bytes()))
    assert to_bytes(IMAGES) == DIGITS.tobytes()
    assert to_bytes(packed) == DIGITS.tobytes()
    assert to_bytes(io.BytesIO(packed.read_bytes())) == DIGITS.tobytes()
    assert to_bytes([IMAGES, IMAGES]) == 2 * DIGITS.tobytes()


def test_dark_on_light_pixels_can_be_prepared() -> None:
    dark = 255 - DIGITS[30]
    for form in (dark, dark.reshape(28, 28), dark / 255, dark.reshape(1, 28, 28)):
        assert to_mnist(form).shape == (1, 784)
    np.testing.assert_array_equal(to_mnist(DIGITS[30]), DIGITS[30:31])


class NeedsGradient:
    """A tensor that does not convert to an array, as torch's with a gradient or on a GPU."""

    def detach(self) -> None: ...

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(DIGITS[30].reshape(28, 28)).save(file, "PNG")
    return file.getvalue()


ONE = DIGITS[30]
REFUSED: dict[str, tuple[Any, str]] = {
    "to 255": (DIGITS * 1.0, "pixels[0] holds 11.0; expected floats from 0, background, to 1, ink: divide by 255"),
    "a float over 1": (3 * DIGITS[0].astype(float), "; expected floats from 0, background, to 1, ink"),
    "normalised": ((ONE / 255 - 0.1307) / 0.3081, ", to 1, ink: undo the normalisation"),
    "NaN": (np.full((2, 784), np.nan), "pixels[0] holds nan; expected floats from 0"),
    "infinity": (np.full(784, np.inf), "pixels holds inf; expected floats from 0"),
    "16 bits": (DIGITS[:1].astype(np.uint16) * 257, "; expected integers from 0, background, to 255, ink"),
    "below 0": ([[-1] * 784], "pixels holds -1; expected integers from 0, background, to 255, ink"),
    "a mask of uint8": ((DIGITS > 127).astype(np.uint8), "pixels holds 0 and 1 alone; expected 0 to 255: multiply"),
    "a mask of int64": ((ONE > 127).astype(int), "pixels holds 0 and 1 alone; expected 0 to 255: multiply"),
    "dark on light": (255 - ONE, "pixels is dark on light; expected light ink on 0, black: pass 255 - pixels, or"),
    "dark on light, floats": (1 - ONE / 255, "pixels is dark on light"),
    "dark on grey": (np.where(ONE > 127, 20, 100), "pixels is dark on light"),
    "dark on light, a black side": (np.where(np.arange(784) < 28, 0, 255 - ONE), "pixels is dark on light"),
    "one of many": (np.concatenate([DIGITS[:3], 255 - DIGITS[3:4]]), "pixels[3] is dark on light"),
    "colours": (np.zeros((2, 28, 28, 3), np.uint8), "pixels is uint8[2, 28, 28, 3]; expected [n, 784]"),
    "columns": (np.zeros((784, 5), np.uint8), "pixels is uint8[784, 5]; expected [n, 784], [n, 28, 28] or one image"),
    "no image": (np.zeros((0, 784), np.uint8), "pixels is uint8[0, 784]; expected"),
    "None": (None, "pixels is NoneType of object; expected uint8"),
    "a dict": ({"pixels": 1}, "pixels is dict of object"),
    "complex": (np.zeros(784, complex), "pixels is complex128[784]; expected uint8"),
    "ragged": ([[0] * 784, [0] * 783], "pixels is list and becomes no array (setting an array element with a sequence"),
    "a gradient": (NeedsGradient(), "Use tensor.detach().numpy() instead.): pass pixels.detach().cpu()"),
    "no such file": ("seven.jpg", "seven.jpg: cannot be read: No such file or directory"),
    "a text file": (io.StringIO("seven"), "the file: is open as text; expected a binary file, open(path, 'rb')"),
    "no picture": (io.BytesIO(b"seven"), "the file: is no picture"),
    "blank paper": (Image.new("L", (90, 90), 255), "shows no digit"),
    "a URL": ("https://example.com/7.png", "https://example.com/7.png: is a URL; expected a path, or the result of"),
    "a picture's bytes": (png(), "pixels holds the bytes of a picture's file; expected the file: pass io.BytesIO("),
    "as many as two digits": (png().ljust(1568), "pixels holds the bytes of a picture's file; expected the file"),
    "an IDX file's bytes": (IMAGES.read_bytes(), "pixels holds the bytes of a picture's file; expected the file"),
    "masked": (np.ma.masked_equal(ONE, 0), "pixels is an array with masked values; expected all of them: pass pixels."),
    "signed": (ONE.view(np.int8), "integers from 0, background, to 255, ink: pass pixels.view(numpy.uint8)"),
    "16 bits of ink": (ONE.astype(np.uint16) * 257, "to 255, ink: pass pixels >> 8 if they have 16 bits"),
    "rounded over 1": (ONE / np.float32(254.9), "to 1, ink: pass pixels.clip(0, 1)"),
    "rounded below 0": (ONE / 255 - 1e-7, "to 1, ink: pass pixels.clip(0, 1)"),
    "a mixture": ([IMAGES, 7], "pixels holds int among pictures; expected paths, files or PIL images"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_ambiguous_or_invalid_images_are_rejected_with_the_fix(name: str) -> None:
    given_, sentence = REFUSED[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        to_bytes(given_)
    assert sentence in str(caught.value)


def opened_as_text(path: Path) -> Any:
    return path.open()


def closed(path: Path) -> Any:
    with path.open("rb") as file:
        return file


def closed_image(path: Path) -> Any:
    with Image.open(path) as image:
        return image


def damaged_image(path: Path) -> Any:
    path.write_bytes(path.read_bytes()[:200])
    return Image.open(path)


@pytest.mark.parametrize(
    ("opened", "sentence"),
    [
        (opened_as_text, "three.png: is open as text; expected a binary file, open(path, 'rb')"),
        (closed, "three.png: cannot be read: read of closed file"),
        (closed_image, "the picture cannot be read: "),
        (damaged_image, "the picture cannot be read: "),
        (lambda path: path.open("ab"), "three.png: cannot be read: "),
    ],
)
def test_an_unreadable_file_is_rejected(tmp_path: Path, opened: Callable[[Path], Any], sentence: str) -> None:
    with contextlib.closing(opened(picture(tmp_path))) as file, pytest.raises(ImageError) as caught:
        to_bytes(file)
    assert sentence in str(caught.value)


def test_an_array_without_masked_values_is_sent() -> None:
    assert to_bytes(np.ma.array(ONE)) == ONE.tobytes()


def test_prepare_accepts_a_list_of_pictures_and_rejects_rows_of_images(tmp_path: Path) -> None:
    path = picture(tmp_path)
    with Image.open(path) as image:
        np.testing.assert_array_equal(to_mnist([path, image]), np.concatenate([to_mnist(path), to_mnist(image)]))
    for several in (DIGITS[:5], DIGITS[:5].reshape(-1, 28, 28), DIGITS.repeat(100, axis=0)):
        with pytest.raises(ImageError, match="expected one picture"):
            to_mnist(several)
    wide = np.asarray(Image.fromarray(255 - ONE.reshape(28, 28)).resize((784, 784)))
    assert to_mnist(wide).shape == to_mnist(wide[98:-98]).shape == (1, 784)


def test_a_client_rejects_an_image_in_every_call(server: ServiceProcess) -> None:
    with DigitsClient(server.address) as client:
        for ask in (client.predict, client.explain, lambda pixels: list(client.predict_stream([pixels]))):
            with pytest.raises(ImageError, match="dark on light"):
                ask(255 - ONE)


async def test_every_call_takes_a_picture(server: ServiceProcess, tmp_path: Path) -> None:
    async def batches() -> Any:
        yield path

    path = picture(tmp_path)
    with DigitsClient(server.address) as client:
        assert client.predict(path).digits.tolist() == [3]
        assert client.explain(path).answers.digits.tolist() == [3]
        assert [found.digits.tolist() for found in client.predict_stream([path])] == [[3]]
    async with AsyncDigitsClient(server.address) as asynchronous:
        assert (await asynchronous.predict(path)).digits.tolist() == [3]
        assert (await asynchronous.explain(path)).answers.digits.tolist() == [3]
        assert [found.digits.tolist() async for found in asynchronous.predict_stream(batches())] == [[3]]


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), images=st.integers(1, 3))
def test_noise_is_never_taken_for_dark_on_light(seed: int, images: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (images, 784), np.uint8)
    assert to_bytes(noise) == noise.tobytes()


@pytest.mark.parametrize("level", [0, 255])
def test_a_blank_image_is_sent(level: int) -> None:
    assert to_bytes(np.full((2, 784), level, np.uint8)) == bytes([level]) * 1568


def test_a_light_frame_around_a_digit_is_not_dark_on_light() -> None:
    framed = ONE.reshape(28, 28).copy()
    framed[[0, -1]] = framed[:, [0, -1]] = 255
    assert to_bytes(framed) == framed.tobytes()


WITHOUT_PILLOW = """
import sys
sys.modules["PIL"] = None
import numpy as np
from digitserve_client import DigitsClient
with DigitsClient(sys.argv[1]) as client:
    print(client.predict(np.zeros((1, 784), np.uint8)).digits.shape)
    try:
        client.predict("seven.jpg")
    except ImportError as e:
        print(e)
"""


def test_without_pillow_arrays_are_read_and_pictures_name_the_package(server: ServiceProcess) -> None:
    command = [sys.executable, "-c", WITHOUT_PILLOW, server.address]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "(1,)\npictures need Pillow: pip install 'digitserve-client[image]'\n", done.stderr
