"""The output folder: whose it is, which shards are done, and how a run ends.

| part-000000.parquet ...   the answers, one complete file per shard
| _errors.jsonl             unreadable rows: id and reason; written at the end, empty without errors
| _manifest.json            the run's parameters; a run with others is rejected
| _work/                    unfinished files; removed at the end

Readers of Parquet folders skip names that begin with _, so the folder can be read as one table.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from digitserve.score.errors import ScoreError
from digitserve.score.writing import WORK, part_name, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MANIFEST, ERRORS, LOCK = "_manifest.json", "_errors.jsonl", "lock"
FORMAT = 1


class Totals(NamedTuple):
    """The totals of a complete run."""

    rows: int
    rejected: int


class Output:
    """The folder of one run, locked while it is open: no other run may write to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / WORK
        self._run_spec: dict[str, Any] = {}

    @contextlib.contextmanager
    def locked(self, run_spec: dict[str, Any], *, overwrite: bool) -> Iterator[None]:
        """Create the folder, or resume a run with the same `run_spec`, which is written to the manifest.

        Raises ScoreError if the folder has other content, unless `overwrite` and it is a run's.
        """
        self._run_spec = {"format": FORMAT, **run_spec}
        self._check_ours()
        if not overwrite:
            self._check_same()
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ScoreError(f"{self.folder}: cannot be written: {e.strerror}") from None
        lock = self.work / LOCK
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ScoreError(f"{self.folder}: another run is writing into it") from None
            if overwrite:
                self._clear()
            self._begin()
            yield
        if self.totals() is not None:
            shutil.rmtree(self.work)

    def totals(self) -> Totals | None:
        """Return the run's totals, or None before its end."""
        finished = self._manifest().get("finished")
        return Totals(**finished) if finished else None

    def done(self, shards: int) -> set[int]:
        """The numbers of the shards whose file is there."""
        return {number for number in range(shards) if (self.folder / part_name(number)).exists()}

    def finish(self, shards: int) -> Totals:
        """Gather the rows that could not be read, in order, count all, and write into the manifest that it is done."""
        errors = sorted(self.work.glob("errors-*.jsonl"))
        write_whole(self.folder / ERRORS, (line for path in errors for line in _lines(path)), self.work)
        rows = sum(
            pq.read_metadata(pa.OSFile(os.fsencode(self.folder / part_name(number)))).num_rows
            for number in range(shards)
        )
        totals = Totals(rows, sum(1 for _ in _lines(self.folder / ERRORS)))
        self._write({**self._run_spec, "finished": totals._asdict()})
        return totals

    def _check_ours(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ScoreError(f"{self.folder}: is a file; --output takes a folder")
        strangers = self.folder.exists() and any(path.name != WORK for path in self.folder.iterdir())
        if strangers and not (self.folder / MANIFEST).exists():
            raise ScoreError(f"{self.folder}: holds files that are of no run of this command: name another folder")

    def _check_same(self) -> None:
        before = self._manifest()
        before.pop("finished", None)
        if before and before != self._run_spec:
            raise ScoreError(
                f"{self.folder}: holds another run: {_difference(before, self._run_spec)}; name another folder, or "
                "--overwrite deletes that run"
            )

    def _begin(self) -> None:
        for path in self.work.glob("*.*.*"):  # files of a killed worker
            path.unlink()
        if not (self.folder / MANIFEST).exists():
            self._write(self._run_spec)

    def _clear(self) -> None:
        files = [*self.folder.glob("part-*.parquet"), self.folder / ERRORS, self.folder / MANIFEST]
        for path in [*files, *(path for path in self.work.iterdir() if path.name != LOCK)]:
            path.unlink(missing_ok=True)

    def _manifest(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        if not path.exists():
            return {}
        try:
            manifest = json.loads(path.read_text())
        except ValueError:
            manifest = None
        if not isinstance(manifest, dict):
            raise ScoreError(f"{path}: is damaged; expected the JSON that this command wrote")
        return manifest

    def _write(self, manifest: dict[str, Any]) -> None:
        write_whole(self.folder / MANIFEST, [json.dumps(manifest, indent=2) + "\n"], self.work)


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from file


def _difference(before: dict[str, Any], run_spec: dict[str, Any]) -> str:
    """The first thing in which two manifests differ, in words."""
    key = next(key for key in {**before, **run_spec} if before.get(key) != run_spec.get(key))
    was, is_ = before.get(key), run_spec.get(key)
    if isinstance(was, dict) and isinstance(is_, dict):
        inner = next(name for name in {**was, **is_} if was.get(name) != is_.get(name))
        return f"its {key} has {inner} {was.get(inner)!r}, this one's {is_.get(inner)!r}"
    return f"its {key} is {was!r}, this one's {is_!r}"
