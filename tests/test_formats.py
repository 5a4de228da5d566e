"""Pictures of any depth and mode are read. An unreadable one is an error of that file only."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import ROOT
from digitserve_client import formats
from digitserve_client.image import ImageError, read, read_bytes, to_mnist
from drawings import draw_digits
from PIL import Image, ImageCms, features

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import ServiceProcess

FOUR = draw_digits([4])


def lab(picture: Image.Image) -> Image.Image:
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    converted = ImageCms.applyTransform(picture.convert("RGB"), transform)
    assert converted is not None
    return converted


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_pixels_of_more_than_8_bits_are_scaled(bits: int, tmp_path: Path) -> None:
    levels = np.asarray(FOUR).astype(np.uint32) * (2**bits - 1) // 255
    Image.fromarray(levels.astype(np.uint16)).save(tmp_path / "four.png")
    difference = read(tmp_path / "four.png")[0].astype(int) - to_mnist(FOUR)
    assert np.abs(difference).mean() < 2


@pytest.mark.parametrize("white", [1.0, 255.0, 40_000.0])
def test_floats_are_stretched(white: float, tmp_path: Path) -> None:
    Image.fromarray((np.asarray(FOUR) / 255 * white).astype(np.float32)).save(tmp_path / "four.tif")
    difference = read(tmp_path / "four.tif")[0].astype(int) - to_mnist(FOUR)
    assert np.abs(difference).mean() < 4


def test_pictures_with_nan_are_read_or_rejected(tmp_path: Path) -> None:
    levels = np.full((50, 50), np.nan, np.float32)
    Image.fromarray(levels).save(tmp_path / "nan.tif")
    with pytest.raises(ImageError, match="shows no digit"):
        read(tmp_path / "nan.tif")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "YCbCr"])
def test_every_mode_is_read_alike(mode: str, tmp_path: Path) -> None:
    picture = lab(FOUR) if mode == "LAB" else FOUR.convert("RGB" if mode == "YCbCr" else mode)
    suffix = {"LAB": "tif", "CMYK": "tif", "YCbCr": "jpg"}.get(mode, "png")
    picture.save(tmp_path / f"four.{suffix}")
    difference = read(tmp_path / f"four.{suffix}")[0].astype(int) - to_mnist(FOUR)
    assert np.abs(difference).mean() < 6


def test_a_mode_that_pillow_cannot_convert_is_an_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("conversion from LAB to RGB not supported")

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(ImageError, match="has pixels of mode RGB, which cannot be made grey: conversion"):
        formats.to_grey(Image.new("RGB", (9, 9)))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow does not read AVIF")
def test_avif_is_read() -> None:
    file = io.BytesIO()
    FOUR.save(file, "AVIF", quality=90)
    assert np.abs(read_bytes(file.getvalue())[0].astype(int) - to_mnist(FOUR)).mean() < 4


def test_heic_names_its_reader() -> None:
    code = (
        "import sys; sys.modules['pillow_heif'] = None; from digitserve_client.image import read_bytes\n"
        "try: read_bytes(bytes([0, 0, 0, 24]) + b'ftypheic' + bytes(16))\n"
        "except ValueError as e: print(e)"
    )
    environment = {"PYTHONPATH": str(ROOT / "client")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    expected = "is a HEIC picture, which needs pillow-heif: pip install 'digitserve-client[heic]', or save it as JPEG"
    assert done.stdout.strip() == expected


def test_an_unreadable_picture_does_not_affect_others(server: ServiceProcess, tmp_path: Path) -> None:
    (tmp_path / "bad.heic").write_bytes(bytes([0, 0, 0, 24]) + b"ftypheic" + bytes(16))
    lab(FOUR).save(tmp_path / "lab.tif")
    FOUR.save(tmp_path / "good.png")
    files = [str(tmp_path / name) for name in ("bad.heic", "lab.tif", "good.png")]
    command = [sys.executable, "-m", "digitserve", "predict", "--json", "--address", server.address, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    bad, *good = json.loads(done.stdout)
    assert done.returncode == 1
    assert "HEIC" in bad["error"] or "damaged" in bad["error"]
    assert [each["digit"] for each in good] == [4, 4]
