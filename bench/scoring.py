"""python -m bench.scoring: the images/s and the memory of `digitserve score`.

Makes the images by distorting the samples, scores them with 1, 2 and 4 workers, and prints two tables. 10 million
images are 7.84 GB on the disk of --folder, and are deleted at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from export import mnist
from export.augment import distort
from export.recipe import Distortion

SAMPLES = Path("samples/digits-100-images-idx3-ubyte")
AT_ONCE = 10_000
IN_A_FILE = 1_000_000
LOOK_EVERY = 0.25  # seconds
TENTHS = (0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Run:
    """The cost of one run: seconds, and the memory of all its processes over its course, as (progress, bytes)."""

    seconds: float
    memory: list[tuple[float, int]]

    def memory_until(self, share: float) -> float:
        """MB at the most, from the share a tenth before up to this one of the run."""
        return max((size for at, size in self.memory if share - 0.1 <= at <= share), default=0) / 1e6


def main() -> None:
    """Make, measure, print, delete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "digits-scoring")
    parser.add_argument("--keep", action="store_true", help="leave the images for the next time")
    options = parser.parse_args()
    images = options.folder / f"images-{options.images}"
    if not images.exists():
        began = time.monotonic()
        make(images, options.images)
        print(f"made {options.images:,} images in {time.monotonic() - began:.0f} s")
    runs = {}
    for workers in options.workers:
        output = options.folder / f"scored-by-{workers}"
        runs[workers] = score(images, output, workers, options.engine, options.images)
        shutil.rmtree(output)
    report(runs, options.images)
    if not options.keep:
        shutil.rmtree(images)


def make(folder: Path, images: int) -> None:
    """IDX files of a million images: the samples, with a new distortion each time."""
    digits = mnist.read_idx(SAMPLES).reshape(-1, 784)
    batch = jnp.asarray(np.tile(digits, (AT_ONCE // len(digits), 1)).astype(np.float32))
    draw = jax.jit(lambda key: distort(key, batch, Distortion()).round().astype(np.uint8))
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    unfinished.mkdir(parents=True)
    for number, first in enumerate(range(0, images, IN_A_FILE)):
        count = min(IN_A_FILE, images - first)
        with (unfinished / f"digits-{number:03d}.idx").open("wb") as file:
            file.write(b"\x00\x00\x08\x03" + np.array([count, 28, 28], ">u4").tobytes())
            for at in range(0, count, AT_ONCE):
                drawn = np.asarray(draw(jax.random.key(first + at)))
                file.write(drawn[: count - at].tobytes())
    unfinished.rename(folder)


def score(images: Path, output: Path, workers: int, engine: str, total: int) -> Run:
    """Run the command as a user would, and look at its memory all along."""
    command = [sys.executable, "-m", "digitserve", "score", str(images), "--output", str(output)]
    command += ["--workers", str(workers), "--engine", engine]
    began, memory = time.monotonic(), []
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(LOOK_EVERY)
            done = len(list(output.glob("part-*.parquet"))) * 262_144 / total
            memory.append((min(done, 1.0), _memory(process.pid)))
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return Run(time.monotonic() - began, memory)


def _memory(root: int) -> int:
    """Bytes of a process and its descendants; shared memory is counted once (PSS)."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
    pids, size = [root], 0
    for pid in pids:
        pids += [child for child, parent in parents.items() if parent == pid]
        with contextlib.suppress(OSError):
            lines = (Path("/proc") / str(pid) / "smaps_rollup").read_text().splitlines()
            size += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return size


def report(runs: dict[int, Run], images: int) -> None:
    """The two tables, in Markdown."""
    print(f"\n{images:,} images, the whole command with its start:\n")
    print("| workers | seconds | images a second |\n|---|---|---|")
    for workers, run in runs.items():
        print(f"| {workers} | {run.seconds:.1f} | {images / run.seconds:,.0f} |")
    print("\nMB of memory, all processes together, at the most while this much was done:\n")
    print("| workers | " + " | ".join(f"{share:.0%}" for share in TENTHS) + " |\n|---|" + "---|" * len(TENTHS))
    for workers, run in runs.items():
        print(f"| {workers} | " + " | ".join(f"{run.memory_until(share):.0f}" for share in TENTHS) + " |")


if __name__ == "__main__":
    main()
