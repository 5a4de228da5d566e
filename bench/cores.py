"""python -m bench.cores: throughput and CPU a call of the native transport with 1, 2, 4 ... I/O threads.

Three placements, each with interleaved rounds of all numbers of threads:

- one core: the server on one core, the clients on the others. More threads than cores should be free of cost.
- apart: the server on as many cores as it has I/O threads, the clients on as many others.
- shared: server and clients on all cores, with clients that cost little.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench import load, report, servers
from bench.messages import PREDICT_STREAM, sample_images
from bench.scenarios import Scenario

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.load import Load
    from bench.server import Server

MAX_THREADS = 16
SECONDS = 1.0
"""Approximate duration of one measurement."""


SMALL = Scenario("1 image, 64 in flight", connections=8, in_flight=8)
LARGE = Scenario("1,024 images, 4 in flight", images=1024, connections=4)
STREAMS = Scenario("streams of 1 image, 4 streams", connections=4, messages=500, only=PREDICT_STREAM)
STREAMS_64 = Scenario("streams of 64 images, 4 streams", images=64, connections=4, messages=50, only=PREDICT_STREAM)


@dataclass(frozen=True)
class Placement:
    """A server of so many I/O threads on these CPUs, and its clients on those."""

    name: str
    io_threads: int
    server: frozenset[int]
    clients: frozenset[int]


def placements(cpus: list[int]) -> list[tuple[list[Placement], tuple[Scenario, ...]]]:
    """Return the placements to compare with each other on this machine, with the calls of each."""
    every, halves = frozenset(cpus), [n for n in _powers() if 2 * n <= len(cpus)]
    first, rest = frozenset(cpus[:1]), frozenset(cpus[1:]) or frozenset(cpus)
    one_core = [Placement("one core", n, first, rest) for n in (1, 2, 4)]
    apart = [Placement("apart", n, frozenset(cpus[:n]), frozenset(cpus[n : 2 * n])) for n in halves]
    shared = [Placement("shared", n, every, every) for n in _powers() if n <= len(cpus)]
    groups = [(one_core, (SMALL, LARGE, STREAMS)), (shared, (LARGE, STREAMS_64, STREAMS, SMALL))]
    return [*groups, (apart, (SMALL, LARGE, STREAMS))] if len(apart) > 1 else groups


def _powers() -> list[int]:
    return [2**n for n in range(MAX_THREADS.bit_length())]


@contextmanager
def pinned(cpus: frozenset[int]) -> Iterator[None]:
    """Start processes on these CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def native_server(io_threads: int) -> Server:
    """Return a server of so many I/O threads."""
    native = servers.SERVERS["native"]().with_options("--io-threads", str(io_threads))
    return replace(native, name=f"native-{io_threads}")


def compare(group: list[Placement], calls: tuple[Scenario, ...], rounds: int) -> Iterator[str]:
    """Measure each placement of a group in turn; yield rows of the table."""
    [image] = sample_images(1)
    with ExitStack() as stack:
        running = []
        for placement in group:
            with pinned(placement.server):
                running.append(servers.start(native_server(placement.io_threads), image, digit=0))
            stack.callback(running[-1].stop)
        for kind in calls:
            results: list[list[Load]] = [[] for _ in group]
            counts = [0] * len(group)
            for at in range(-1, rounds):  # the first one warms up, and finds how many calls take a second
                for i, placement in enumerate(group):
                    threads = len(placement.clients) if placement.name == "apart" else 1
                    with pinned(placement.clients):
                        one = kind.measure(running[i], counts[i] or kind.connections * kind.in_flight * 4, threads)
                    counts[i] = counts[i] or max(int(one.rate * SECONDS), kind.connections * kind.in_flight * threads)
                    results[i] += [one] if at >= 0 else []
            yield from (_row(placement, kind, results[0], of) for placement, of in zip(group, results, strict=True))


def _row(placement: Placement, kind: Scenario, base: list[Load], results: list[Load]) -> str:
    rate, cpu = (statistics.median(value) for value in ([one.rate for one in results], [one.cpu_us for one in results]))
    ratios = [one.rate / first.rate for one, first in zip(results, base, strict=True)]
    ratio = "1.00" if results is base else report.spread(ratios)
    cells = (placement.name, kind.name, placement.io_threads, f"{rate:,.0f}", f"{cpu:.1f}", ratio)
    return f"| {' | '.join(map(str, cells))} |"


def main(arguments: list[str]) -> int:
    """Print the table; 1 if something that it needs is missing."""
    parser = argparse.ArgumentParser(prog="python -m bench.cores", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds; the medians are printed")
    parser.add_argument("--only", default="", help="only the placement of that name: one core, shared or apart")
    options = parser.parse_args(arguments)
    if not load.have_h2load():
        print(f"bench.cores: {load.H2LOAD_MISSING}", file=sys.stderr)
        return 1
    print("| placement | calls | I/O threads | calls/s | CPU us a call | against 1 thread |")
    print("|---|---|---|---|---|---|")
    for group, calls in placements(sorted(os.sched_getaffinity(0))):
        if options.only in group[0].name:
            for row in compare(group, calls, options.rounds):
                print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
