"""One run: plan the shards, skip completed ones, score the rest, and total the result."""

from __future__ import annotations

import gzip
import shutil
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from digitserve.score import engines, inputs
from digitserve.score.errors import ScoreError
from digitserve.score.output import Output, Totals
from digitserve.score.writing import Job
from digitserve.score.writing import replace as put_in_place
from service.errors import ModelFileError
from service.inference.model import Model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from digitserve.score.inputs import Columns, Source
    from digitserve.score.writing import Scored

Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    source: Path
    output: Path
    model: Path
    columns: Columns
    engine: Engine
    workers: int
    shard_rows: int
    overwrite: bool
    ray_address: str


@dataclass(frozen=True)
class Plan:
    """The state at the start of a run: all shards and images, and those of an earlier run."""

    shards: int
    shards_done: int
    images: int
    images_done: int


def run(options: Options, on_start: Callable[[Plan], None], on_progress: Callable[[Scored], None]) -> Totals:
    """Score the remaining shards; `on_start` is called once, `on_progress` for each shard. Raises ScoreError."""
    try:
        model = Model(options.model)
    except ModelFileError as e:
        raise ScoreError(str(e)) from None
    sources = inputs.find(options.source)
    inputs.check_columns(sources, options.columns)
    run_spec = {
        "model": {
            "name": model.info.name,
            "version": model.info.version,
            "content_sha256": model.info.content_sha256,
        },
        "input": {"files": len(sources), "fingerprint": inputs.fingerprint(sources)},
        "columns": {"pixels": options.columns.pixels, "ids": options.columns.ids},
        "shard_rows": options.shard_rows,
    }
    output = Output(options.output)
    with output.locked(run_spec, overwrite=options.overwrite):
        if (before := output.totals()) is not None:
            on_start(Plan(0, 0, 0, 0))
            return before
        shards = list(inputs.cut(_unpacked(sources, output.work), options.shard_rows))
        if not any(shard.rows for shard in shards):
            raise ScoreError(f"{options.source}: holds no image")
        done = output.done(len(shards))
        remaining = [shard for shard in shards if shard.number not in done]
        images, left = sum(shard.rows for shard in shards), sum(shard.rows for shard in remaining)
        on_start(Plan(len(shards), len(done), images, images - left))
        job = Job(options.model.absolute(), model.info.content_sha256, options.columns, options.output.absolute())
        workers = min(options.workers, max(1, len(remaining)))
        if options.engine == "ray" and remaining:
            scored = engines.by_ray(job, remaining, workers, options.ray_address)
        else:
            scored = engines.local(job, remaining, workers)
        for one in scored:
            on_progress(one)
        return output.finish(len(shards))


def _unpacked(sources: list[Source], work: Path) -> list[Source]:
    """The same with packed IDX files unpacked onto the disk: a gzip file can only be read from its start."""
    shards = []
    for number, source in enumerate(sources):
        if not source.packed:
            shards.append(replace(source, path=source.path.absolute()))
            continue
        path = work.absolute() / f"unpacked-{number}.idx"
        if not path.exists():
            _unpack(source.path, path)
        inputs.idx_images(path, source.path)
        shards.append(replace(source, path=path, packed=False))
    return shards


def _unpack(packed: Path, path: Path) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with gzip.open(packed) as source, unfinished.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        size = unfinished.stat().st_size
        raise ScoreError(f"{packed}: is a damaged gzip file, or cut short: {size:,} bytes came out of it") from None
    except OSError as e:
        raise ScoreError(f"{packed}: cannot be unpacked into {path.parent}: {e.strerror}") from None
    put_in_place(unfinished, path)
