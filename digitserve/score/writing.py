"""One shard scored into one Parquet file, which is there whole or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from digitserve.score.errors import ScoreError
from digitserve.score.reading import batches
from service.inference.model import Model

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from digitserve.score.inputs import Columns, Shard
    from digitserve.score.reading import Batch

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("digit", pa.uint8(), nullable=False),
        pa.field("activations", pa.list_(pa.field("item", pa.float32(), nullable=False), 10), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
    ]
)
"""Of the output. An activation is the network's belief in that digit, 0 to 1; they need not add up to 1."""

WORK = "_work"
"""Folder of unfinished files, in the output folder."""

ROW_GROUP = 65_536


@dataclass(frozen=True)
class Job:
    """The parameters of a worker, besides its shard."""

    model: Path
    content_sha256: str
    columns: Columns
    output: Path


class Scored(NamedTuple):
    """The result of a shard."""

    number: int
    rows: int
    rejected: int


class Scorer:
    """A worker: the model, loaded once, and shard after shard."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._model = Model(job.model)
        if self._model.info.content_sha256 != job.content_sha256:
            raise ScoreError(f"{job.model}: is another model than when the run began")

    def score(self, shard: Shard) -> Scored:
        """Write the shard's errors, then its file, which completes the shard."""
        try:
            return self._score(shard)
        except OSError as e:  # the reader reports its own
            raise ScoreError(f"{self._job.output}: cannot be written: {e.strerror or e}") from None

    def _score(self, shard: Shard) -> Scored:
        part = self._job.output / part_name(shard.number)
        unfinished = self._job.output / WORK / f"{part.name}.{os.getpid()}"
        rejected: list[tuple[str, str]] = []
        rows = 0
        dictionaries = ["digit", "model_version"]
        with (
            pa.OSFile(os.fsencode(unfinished), "wb") as file,  # Arrow accepts only UTF-8 paths
            pq.ParquetWriter(file, SCHEMA, compression="zstd", use_dictionary=dictionaries) as out,
        ):
            waiting: list[pa.RecordBatch] = []
            for batch in batches(shard, self._job.columns):
                rejected += batch.rejected
                rows += len(batch.pixels)
                if len(batch.pixels):
                    waiting.append(self._table(batch))
                if sum(map(len, waiting)) >= ROW_GROUP:
                    out.write_table(pa.Table.from_batches(waiting))
                    waiting = []
            if waiting:
                out.write_table(pa.Table.from_batches(waiting))
        if rejected:
            work = self._job.output / WORK
            write_whole(work / errors_name(shard.number), map(_line, rejected), work)
        replace(unfinished, part)
        return Scored(shard.number, rows, len(rejected))

    def _table(self, batch: Batch) -> pa.RecordBatch:
        predictions = self._model.predict(batch.pixels)
        activations = pa.FixedSizeListArray.from_arrays(predictions.activations.ravel(), type=SCHEMA.field(2).type)
        version = pa.repeat(self._model.info.version, len(batch.pixels))
        return pa.record_batch([batch.ids, predictions.digit.astype(np.uint8), activations, version], schema=SCHEMA)


def part_name(number: int) -> str:
    """The output's file for a shard."""
    return f"part-{number:06d}.parquet"


def errors_name(number: int) -> str:
    """The file, until the run ends, of a shard's rows that could not be read."""
    return f"errors-{number:06d}.jsonl"


def write_whole(path: Path, lines: Iterable[str], work: Path) -> None:
    """Write lines to a file that is there whole or not at all; until then it lies in `work`."""
    unfinished = work / f"{path.name}.{os.getpid()}"
    with unfinished.open("w", encoding="utf-8") as file:
        file.writelines(lines)
    replace(unfinished, path)


def replace(unfinished: Path, path: Path) -> None:
    """Give a file its name once its bytes are on the disk."""
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)


def _line(row: tuple[str, str]) -> str:
    return json.dumps({"id": row[0], "reason": row[1]}, ensure_ascii=False) + "\n"
