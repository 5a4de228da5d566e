"""Read a shard's images in batches of a few thousand, so that memory does not grow with the input."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from digitserve_client.image import ImageError, read
from digitserve_client.pixels import PIXELS

from digitserve.score import columns as of_columns
from digitserve.score.errors import ScoreError
from digitserve.score.inputs import IDX_HEADER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from digitserve.score.columns import Pixels
    from digitserve.score.inputs import Columns, Shard

BATCH = 4096
"""Images of a batch: 3 MB of pixels, which fit a core's cache."""


class Batch(NamedTuple):
    """Images that can be scored, (n, 784) with n ids, and those that cannot: id and reason."""

    ids: pa.Array
    pixels: Pixels
    rejected: list[tuple[str, str]]


def batches(shard: Shard, columns: Columns) -> Iterator[Batch]:
    """The images of a shard in their order. Raises ScoreError for a file that changed or broke since it was found."""
    readers = {"idx": _idx, "picture": _pictures, "parquet": _parquet}
    try:
        yield from readers[shard.kind](shard, columns)
    except (OSError, pa.ArrowException) as e:
        reason = str(e).strip().split("\n", 1)[0]
        raise ScoreError(f"{shard.files[0][1]}: cannot be read on: {reason}") from None


def _idx(shard: Shard, _: Columns) -> Iterator[Batch]:
    [(name, path)] = shard.files
    with Path(path).open("rb", buffering=0) as file:
        file.seek(IDX_HEADER + shard.first * PIXELS)
        for first in range(0, shard.rows, BATCH):
            count = min(BATCH, shard.rows - first)
            pixels = np.empty((count, PIXELS), np.uint8)
            if file.readinto(pixels.data.cast("B")) != pixels.nbytes:
                raise ScoreError(f"{path}: has become shorter since the run began")
            yield Batch(_places(name, shard.first + first, count), pixels, [])


def _pictures(shard: Shard, _: Columns) -> Iterator[Batch]:
    for first in range(0, len(shard.files), BATCH):
        ids, images, rejected = [], [], []
        for name, path in shard.files[first : first + BATCH]:
            try:
                pixels = read(Path(path))
            except ImageError as e:
                rejected.append((name, str(e).removeprefix(f"{path}: ")))
                continue
            ids.append(name)
            images.append(pixels)
        combined = np.concatenate(images) if images else np.empty((0, PIXELS), np.uint8)
        yield Batch(pa.array(ids, pa.string()), combined, rejected)


def _parquet(shard: Shard, columns: Columns) -> Iterator[Batch]:
    [(name, path)] = shard.files
    wanted = [columns.pixels, *([columns.ids] if columns.ids else [])]
    at = shard.first
    # Read page by page: a row group of a million images would be 784 MB at once.
    with pa.OSFile(os.fsencode(path)) as opened, pq.ParquetFile(opened, buffer_size=1 << 20, pre_buffer=False) as file:
        for rows in file.iter_batches(BATCH, row_groups=list(shard.groups), columns=wanted, use_threads=False):
            images = of_columns.images(rows.column(columns.pixels))
            ids = _places(name, at, len(rows))
            if columns.ids:
                ids = pc.coalesce(rows.column(columns.ids).cast(pa.string()), ids)
            at += len(rows)
            rejected = [(ids[row].as_py(), reason) for row, reason in sorted(images.rejected.items())]
            yield Batch(ids if not rejected else ids.take(pa.array(images.rows)), images.pixels, rejected)


def _places(name: str, first: int, count: int) -> pa.Array:
    """Return ids for rows without one: the file's name, # and the number of the row from 0."""
    return pc.binary_join_element_wise(name, pa.array(np.arange(first, first + count)).cast(pa.string()), "#")
