"""python -m bench.mixed: do small calls wait behind large ones, or large behind small? Each alone, then both at once.

Both kinds come at a steady rate (open loop) that leaves every server room, so that what is seen is who waits for whom,
and not that the machine is full. Printed are medians over the rounds, and the range of the 99th percentile.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import load, servers
from bench.messages import PREDICT, predict_request, sample_images

if TYPE_CHECKING:
    from bench.load import Load
    from bench.servers import Running


@dataclass(frozen=True)
class Stream:
    """Calls of so many images, so many a second over four connections."""

    name: str
    images: int
    rate: float

    def measure(self, running: Running, seconds: float) -> Load:
        """Send them for about so long."""
        message = predict_request(sample_images(self.images))
        count = max(4, int(self.rate * seconds))
        return load.calls(running, PREDICT, [message], connections=4, in_flight=32, count=count, rate=self.rate)


def measure(running: Running, streams: list[Stream], seconds: float) -> dict[tuple[str, str], Load]:
    """One round: every stream alone, then all at once."""
    results = {(stream.name, "alone"): stream.measure(running, seconds) for stream in streams}
    with ThreadPoolExecutor() as pool:
        parallel = [pool.submit(stream.measure, running, seconds) for stream in streams]
        results |= {(stream.name, "together"): one.result() for stream, one in zip(streams, parallel, strict=True)}
    return results


def row(name: str, calls: str, alone: list[Load], parallel: list[Load]) -> str:
    """A line of the table."""
    cells = [name, calls]
    for loads in (alone, parallel):
        p99s = [one.p99 for one in loads]
        p50 = statistics.median(one.p50 for one in loads)
        cells += [f"{p50:,.0f}", f"{statistics.median(p99s):,.0f} ({min(p99s):,.0f} to {max(p99s):,.0f})"]
    return f"| {' | '.join(cells)} |"


def main(names: list[str], streams: list[Stream], rounds: int, seconds: float) -> None:
    """Measure the servers in turn, round by round, and print the table."""
    if not load.have_h2load():
        sys.exit("bench.mixed: h2load is not installed (on Debian and Ubuntu: apt install nghttp2-client)")
    chosen, missing = servers.available(names)
    for name, why in missing.items():
        print(f"bench.mixed: without {name}: {why}", file=sys.stderr)
    running: list[Running] = []
    try:
        running += [servers.start(server, sample_images(1)[0], digit=0) for server in chosen]
        for one in running:  # to warm up
            measure(one, streams, seconds)
        results = [[measure(one, streams, seconds) for one in running] for _ in range(rounds)]
    finally:
        for one in running:
            one.stop()
    print("| server | calls | alone: p50 us | p99 us | both at once: p50 us | p99 us |\n|---|---|---|---|---|---|")
    for index, one in enumerate(running):
        for stream in streams:
            alone, parallel = ([a[index][stream.name, how] for a in results] for how in ("alone", "together"))
            print(row(one.server.name, stream.name, alone, parallel))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Small calls and large ones, alone and at once.")
    parser.add_argument("--names", default="native,grpcio", help="the servers (native,grpcio)")
    parser.add_argument("--small", type=float, default=500, help="calls of one image a second (500)")
    parser.add_argument("--large", type=float, default=100, help="calls of 1,024 images a second (100)")
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up (5)")
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement (2)")
    given = parser.parse_args()
    if unknown := set(given.names.split(",")) - {"native", "grpcio"}:
        parser.error(f"--names: no server named {', '.join(sorted(unknown))}; there are native and grpcio")
    if min(given.small, given.large, given.rounds, given.seconds) <= 0:
        parser.error("--small, --large, --rounds and --seconds must be above 0")
    kinds = [Stream("1 image", 1, given.small), Stream("1,024 images", 1024, given.large)]
    main(given.names.split(","), kinds, given.rounds, given.seconds)
