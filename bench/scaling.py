"""Derive pods, machines and money from the cost of a digit: the tables of docs/scaling.md.

    python bench/scaling.py [--price 0.68 ...] [--check]

The CPU of a digit is read from the tables of docs/performance.md. Assumptions are flags. With --check it has no
output, and ends with status 1 if docs/scaling.md has other tables.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
LOADS = {"10 thousand": 1e4, "1 million": 1e6, "100 million": 1e8}
WAYS = {
    "native, one digit a call": ("1 image, 64 in flight, 8 connections", "digitserve native"),
    "native, 256 digits a call": ("256 images a call, 4 in flight", "digitserve native"),
    "grpcio, one digit a call": ("1 image, 64 in flight, 8 connections", "digitserve grpcio"),
}
"""How digits are sent: the row and the server of docs/performance.md with their cost."""
WIRE = {1: (892, 160), 256: (200_840, 10_600)}
"""Images a call: bytes on the connection from and to the client, with HTTP/2; measured by tests/test_scaling.py."""
SERIES = 416
"""Series of one replica's /metrics once a client has called it; counted by tests/test_scaling.py."""
SEGMENT, HEADERS = 1448, 66
"""Bytes of TCP's payload in an Ethernet frame, and of the headers around it."""
BYTES_A_SAMPLE = 2
"""That Prometheus keeps on disk; its documentation states one to two."""
HOURS = 730
"""Of a month."""


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """The assumptions on the machines, the cloud and the operation."""

    full: float = 0.6
    """Share of a core, and of a network card, that is used on average: the autoscaler's target."""
    cores: int = 15
    """Of a machine, for pods: 16 less one for the kubelet and the system."""
    gigabits: float = 12.5
    """Of a machine's network card, each mode."""
    price: float = 0.68
    """Dollars an hour for a machine of 16 virtual cores."""
    zone_price: float = 0.01
    """Dollars a gigabyte that leaves a zone for the next, and again when it enters."""
    zones: int = 3
    scrape: float = 5.0
    """Seconds between scrapes of a replica."""


@dataclass(frozen=True, kw_only=True)
class SendMode:
    """The cost of a digit in this mode."""

    name: str
    images: int
    """In a call."""
    cpu_us: float
    """Microseconds of the server's CPU for a digit."""

    @property
    def bytes_in(self) -> float:
        """Of a digit on the wire, with the headers of its share of a segment."""
        return WIRE[self.images][0] / self.images * (1 + HEADERS / SEGMENT)

    @property
    def bytes_out(self) -> float:
        """Of its answer."""
        return WIRE[self.images][1] / self.images * (1 + HEADERS / SEGMENT)


def cpu_of(row: str, server: str, performance: str) -> float:
    """Microseconds of the server's CPU a call, by the text of docs/performance.md. Raises KeyError without the row."""
    servers: list[str] = []
    for line in performance.splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if name == "CPU us a call":
            servers = cells
        elif name == row and server in servers:
            return float(cells[servers.index(server)].replace(",", ""))
        elif not name:
            servers = []
    raise KeyError(f"docs/performance.md has no row {row!r} of {server!r}")


def send_modes(performance: str) -> list[SendMode]:
    """Every way of sending digits, with its cost."""
    results = []
    for name, (row, server) in WAYS.items():
        images = 256 if row.startswith("256") else 1
        results.append(SendMode(name=name, images=images, cpu_us=cpu_of(row, server, performance) / images))
    return results


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The size for so many digits/s."""

    mode: SendMode
    rate: float
    assumed: Assumed

    @property
    def busy(self) -> float:
        """Cores that compute at any moment."""
        return self.rate * self.mode.cpu_us / 1e6

    @property
    def pods(self) -> int:
        """Replicas of a core each; never fewer than three."""
        return max(3, math.ceil(self.busy / self.assumed.full))

    @property
    def gigabits(self) -> float:
        """A second, the busier mode, which is towards the service."""
        return self.rate * max(self.mode.bytes_in, self.mode.bytes_out) * 8 / 1e9

    @property
    def machines(self) -> tuple[int, int]:
        """For the cores, and for the network: the larger is needed."""
        by_network = math.ceil(self.gigabits / (self.assumed.gigabits * self.assumed.full))
        return max(3, math.ceil(self.pods / self.assumed.cores)), max(3, by_network)

    @property
    def dollars(self) -> tuple[float, float]:
        """A month: for the machines, and for bytes between zones, if no call prefers its own."""
        crosses = self.rate * (self.mode.bytes_in + self.mode.bytes_out) * (1 - 1 / self.assumed.zones)
        return (
            max(self.machines) * self.assumed.price * HOURS,
            crosses / 1e9 * 2 * self.assumed.zone_price * HOURS * 3600,
        )


def short(number: float) -> str:
    """A number in as many digits as its size deserves."""
    return f"{number:,.0f}" if number >= 10 else f"{number:,.2f}"


def costs(of: list[SendMode], assumed: Assumed) -> list[str]:
    """Return the table of the cost of a digit."""
    lines = [
        "| digits are sent | CPU us a digit | digits/s a pod | bytes in | bytes out |",
        "|---|---|---|---|---|",
    ]
    for mode in of:
        a_pod = assumed.full * 1e6 / mode.cpu_us
        lines.append(
            f"| {mode.name} | {short(mode.cpu_us)} | {a_pod:,.0f} | {mode.bytes_in:,.0f} | {mode.bytes_out:,.0f} |"
        )
    return lines


def sizes(of: list[SendMode], assumed: Assumed) -> list[str]:
    """The table of pods, machines and money."""
    lines = [
        "| digits/s | sent | cores busy | pods | machines by CPU | by network | Gbit/s | $ a month | between zones |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for load, rate in LOADS.items():
        fleets = [Fleet(mode=mode, rate=rate, assumed=assumed) for mode in of]
        if {fleet.pods for fleet in fleets} == {3}:  # the minimum in every mode: the costliest stands for all
            fleets = fleets[-1:]
        for fleet in fleets:
            cpu, network = fleet.machines
            machines, zones = fleet.dollars
            lines.append(
                f"| {load} | {fleet.mode.name} | {short(fleet.busy)} | {fleet.pods:,} | {cpu:,} | {network:,} "
                f"| {short(fleet.gigabits)} | {machines:,.0f} | {zones:,.0f} |"
            )
    return lines


def beside(of: list[SendMode], assumed: Assumed) -> list[str]:
    """Return the table of metrics by pods at the highest load, for the first and the last mode."""
    lines = ["| digits/s | sent | series | samples/s | disk a day, GB |", "|---|---|---|---|---|"]
    load, rate = list(LOADS.items())[-1]
    for mode in (of[0], of[-1]):
        series = Fleet(mode=mode, rate=rate, assumed=assumed).pods * SERIES
        samples = series / assumed.scrape
        disk = samples * BYTES_A_SAMPLE * 86400 / 1e9
        lines.append(f"| {load} | {mode.name} | {series:,} | {samples:,.0f} | {short(disk)} |")
    return lines


def tables(assumed: Assumed, performance: str) -> list[list[str]]:
    """All of them, as docs/scaling.md has them."""
    of = send_modes(performance)
    return [costs(of, assumed), sizes(of, assumed), beside(of, assumed)]


def main() -> int:
    """Return the exit status: 0, or 1 if --check finds a table that the docs lack."""
    assumed = Assumed()
    parser = argparse.ArgumentParser(description="Derive pods, machines and money from the cost of a digit.")
    for name, value in vars(assumed).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default: {value}")
    parser.add_argument("--check", action="store_true", help="check that docs/scaling.md has the tables")
    arguments = vars(parser.parse_args())
    check = arguments.pop("check")
    made = tables(Assumed(**arguments), (DOCS / "performance.md").read_text())
    if not check:
        print("\n\n".join("\n".join(table) for table in made))
        return 0
    text = (DOCS / "scaling.md").read_text()
    if missing := [line for table in made for line in table if line not in text]:
        print(f"docs/scaling.md: lacks {missing[0]}; expected the output of bench/scaling.py", file=sys.stderr)
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main())
