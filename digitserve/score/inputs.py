"""The input: its files, their kinds, and their division into shards."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from digitserve_client.image import ImageError, read
from digitserve_client.pixels import PIXELS

from digitserve.score.columns import check_type
from digitserve.score.errors import ScoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Kind = Literal["parquet", "idx", "picture"]

IDX_HEADER = 16
PICTURES_A_SHARD = 4096
"""A picture takes a thousand times as long as an image that is in MNIST's form, so a shard has fewer."""

_IDX_IMAGES = b"\x00\x00\x08\x03"
_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"


@dataclass(frozen=True)
class Source:
    """One file: its name in ids, path and kind; an IDX file may be gzipped."""

    name: str
    path: Path
    kind: Kind
    packed: bool = False


@dataclass(frozen=True)
class Columns:
    """The columns of Parquet files: of pixels, and of ids, which may be empty for the row's place instead."""

    pixels: str
    ids: str


@dataclass(frozen=True)
class Shard:
    """So much of the input as becomes one file of the output; `files` are names and paths.

    In an IDX file it is `rows` images from image `first` on. In a Parquet file it is the row groups `groups`, which
    begin at row `first` of the file.
    """

    number: int
    kind: Kind
    files: tuple[tuple[str, str], ...]
    rows: int
    first: int = 0
    groups: tuple[int, ...] = ()


def find(place: Path) -> list[Source]:
    """The files at `place`, itself or everything below it, in the order of their names. Raises ScoreError for none.

    Files below a folder that begin with `.` or `_` are skipped, as all readers of such folders do: a `_SUCCESS` file,
    a `.DS_Store`.
    """
    if not place.exists():
        raise ScoreError(f"{place}: there is no such file or folder")
    if not place.is_dir():
        source = Source(_name(place, place.parent), place, *_kind(place))
        if source.kind == "picture":
            _check_picture(place)
        return [source]
    sources = [Source(_name(path, place), path, *_kind(path)) for path in _walk(place)]
    if not sources:
        raise ScoreError(f"{place}: holds no file; expected Parquet, IDX or picture files")
    return sources


def fingerprint(sources: list[Source]) -> str:
    """A digest that changes when a file is added, removed or rewritten."""
    digest = hashlib.sha256()
    for source in sources:
        stat = source.path.stat()
        digest.update(f"{source.name}\0{source.kind}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def check_columns(sources: list[Source], columns: Columns) -> None:
    """Raise ScoreError unless every Parquet file has the columns, with types that can hold pixels and ids."""
    for source in sources:
        if source.kind != "parquet":
            continue
        schema = _parquet(source).schema_arrow
        for flag, column in (("--column", columns.pixels), ("--id-column", columns.ids)):
            if column and column not in schema.names:
                raise ScoreError(
                    f"{source.path}: has no column {column!r}; it has {', '.join(schema.names)}: name one with {flag}"
                )
        check_type(schema.field(columns.pixels).type, f"{source.path}: column {columns.pixels!r}")


def cut(sources: list[Source], rows: int) -> Iterator[Shard]:
    """The shards of about `rows` images; they depend on the input and `rows` alone, not on who will work on them.

    Raises ScoreError for an IDX file of other than whole 28x28 images.
    """
    number = 0
    pictures: list[tuple[str, str]] = []
    for source in [*sources, None]:
        if source is not None and source.kind == "picture":
            pictures.append((source.name, str(source.path)))
        if pictures and (source is None or source.kind != "picture" or len(pictures) == PICTURES_A_SHARD):
            yield Shard(number, "picture", tuple(pictures), len(pictures))
            number += 1
            pictures = []
        if source is None or source.kind == "picture":
            continue
        pieces = _idx_pieces(source, rows) if source.kind == "idx" else _row_groups(source, rows)
        for first, count, groups in pieces:
            yield Shard(number, source.kind, ((source.name, str(source.path)),), count, first, groups)
            number += 1


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name)):
        if path.name.startswith((".", "_")):
            continue
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _name(path: Path, folder: Path) -> str:
    return os.fsencode(path.relative_to(folder).as_posix()).decode(errors="replace")


def _kind(path: Path) -> tuple[Kind, bool]:
    """Return the kind of a file by its first bytes, not its name; unknown kinds are tried as pictures."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
        if head.startswith(_GZIP):
            with gzip.open(path) as packed:
                return ("idx", True) if packed.read(4) == _IDX_IMAGES else ("picture", False)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return "picture", False
    except OSError as e:
        raise ScoreError(f"{path}: cannot be read: {e.strerror}") from None
    return ("idx" if head == _IDX_IMAGES else "parquet" if head == _PARQUET else "picture"), False


def _check_picture(path: Path) -> None:
    """A file that was named by itself and cannot be read is a mistake, and no bad row among others."""
    try:
        read(path)
    except ImageError as e:
        raise ScoreError(f"{e}; expected a Parquet file, an IDX file of images or a picture") from None


def _idx_pieces(source: Source, rows: int) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    images = idx_images(source.path, source.path)
    for first in range(0, images, rows):
        yield first, min(rows, images - first), ()


def idx_images(path: Path, named: Path) -> int:
    """How many images an IDX file holds. Raises ScoreError, about `named`, unless they are whole and 28x28."""
    with path.open("rb") as file:
        header = file.read(IDX_HEADER)
    images, height, width = (int.from_bytes(header[i : i + 4]) for i in (4, 8, 12))
    if len(header) < IDX_HEADER:
        raise ScoreError(f"{named}: is an IDX file cut short in its header")
    if (height, width) != (28, 28):
        raise ScoreError(f"{named}: is an IDX file of {height}x{width} images; expected 28x28")
    size = path.stat().st_size - IDX_HEADER
    if size != images * PIXELS:
        raise ScoreError(
            f"{named}: is an IDX file with {size:,} bytes of images; its header promises {images:,} images of 784"
        )
    return images


def _row_groups(source: Source, rows: int) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Row groups taken together up to `rows` rows; a larger one stays whole, for it can be read only so."""
    metadata = _parquet(source).metadata
    first, count, groups = 0, 0, list[int]()
    for group in range(metadata.num_row_groups):
        sources = metadata.row_group(group).num_rows
        if groups and count + sources > rows:
            yield first, count, tuple(groups)
            first, count, groups = first + count, 0, []
        groups.append(group)
        count += sources
    if groups:
        yield first, count, tuple(groups)


def _parquet(source: Source) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(pa.OSFile(os.fsencode(source.path)))  # Arrow accepts only UTF-8 paths
    except (pa.ArrowException, OSError) as e:
        reason = str(e).strip().split("\n", 1)[0]
        raise ScoreError(f"{source.path}: is a damaged Parquet file: {reason}") from None
