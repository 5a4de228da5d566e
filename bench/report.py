"""Results of a run: collected, summed up as medians with their spread, and written as JSON, Markdown and plots."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.load import Load
    from bench.scenarios import Scenario
    from bench.server import Server
    from bench.servers import Running

PACKAGES = ("grpcio", "numpy", "onnxruntime", "protobuf", "prometheus-client")
FLOORS = {"digitserve native": "no-op native"}
"""The no-op server for each server's comparison: grpcio's by default."""
TRITONS = ("triton", "triton-onnxruntime", "triton-onnxruntime-batching")
"""The ways in which Triton is set up; a server is compared with the better one of each round."""
FOLDER = Path("build") / "bench"
COLOURS = {
    "digitserve native": "#0a7d4f",
    "digitserve grpcio": "#1f6fb4",
    "digitserve http": "#12899a",
    "no-op native": "#5b7a6c",
    "no-op": "#8a8a8a",
    "no-op tuned": "#b5b5b5",
    "triton": "#c0392b",
    "triton-onnxruntime": "#922b21",
    "triton-onnxruntime-batching": "#641e16",
    "mlserver": "#e08e0b",
    "kserve": "#8e44ad",
}


@dataclass
class Results:
    """Every measurement of a run, by server."""

    missing: dict[str, str] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    single: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    loads: dict[str, dict[str, list[dict[str, float]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    bare: dict[int, float] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)

    def add(self, server: Server, name: str, value: float) -> None:
        """One figure of a server."""
        self.about[server.name] = server.about
        self.single[server.name][name].append(value)

    def add_memory(self, running: list[Running], name: str) -> None:
        """Record the memory of each."""
        for one in running:
            self.add(one.server, name, one.megabytes())

    def add_load(self, server: Server, row: Scenario, load: Load) -> None:
        """One measurement of a row."""
        images = load.rate * row.images_a_call
        self.loads[row.name][server.name].append({**vars(load), "images": images})

    def drop(self, server: Server, reason: str) -> None:
        """Forget a server that did not start every time: its rounds would not be those of the others."""
        self.missing[server.name] = reason
        self.about.pop(server.name, None)
        self.single.pop(server.name, None)
        for loads in self.loads.values():
            loads.pop(server.name, None)

    def median(self, row: str, server: str, what: str) -> float:
        """Over all rounds and starts."""
        return statistics.median(load[what] for load in self.loads[row][server])

    def ratios(self, row: str, server: str, bases: Sequence[str], what: str) -> list[float]:
        """Of each round: this server against the better of those, measured one after the other."""
        best = min if what == "p50" else max
        rounds = zip(self.loads[row][server], *(self.loads[row][base] for base in bases), strict=True)
        return [one[what] / best(other[what] for other in others) for one, *others in rounds]


def write(results: Results, rows: list[Scenario], out: Path | None) -> None:
    """Print the tables, and write results.json, results.md and the plots into `out` (by default build/bench)."""
    folder = out or FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": machine(),
        "servers": results.about,
        "skipped": results.missing,
        "single": results.single,
        "rows": results.loads,
        "bare_images_a_second": results.bare,
        "curves": results.curves,
    }
    (folder / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    text = markdown(results, rows)
    (folder / "results.md").write_text(text)
    print(text)
    _plot(results, rows, folder)
    print(f"wrote {folder}/results.json, results.md and the plots")


def machine() -> dict[str, Any]:
    """Return the description of the machine."""
    model = "unknown"
    if (info := Path("/proc/cpuinfo")).exists():
        model = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), "")
    return {
        "when": datetime.now(UTC).isoformat(timespec="minutes"),
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[2],
        **{name: metadata.version(name) for name in PACKAGES},
    }


def markdown(results: Results, rows: list[Scenario]) -> str:
    """The tables."""
    of = machine()
    taken_on = (
        f"{of['cores']} cores of {of['cpu']}, Python {of['python']}, onnxruntime {of['onnxruntime']}, grpcio "
        f"{of['grpcio']}; {of['when']}. Client and server share the cores."
    )
    lines = [
        taken_on,
        "",
        *_by_server(results, rows, "calls/s", "rate"),
        *_by_server(results, rows, "CPU us a call", "cpu_us"),
        "| calls | server | calls/s | images/s | CPU us | p50 us | p99 us | against its floor | against triton |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(results, row, server) for row in rows for server in results.loads[row.name]]
    lines += ["", "| server | seconds to the first answer | MB at rest | MB after load |", "|---|---|---|---|"]
    for server, single in results.single.items():
        names = ("seconds_to_first_answer", "megabytes_at_rest", "megabytes_after_load")
        values = [statistics.median(single[name]) for name in names if single.get(name)]
        lines.append(f"| {server} | " + " | ".join(f"{v:.2f}" if v < 10 else f"{v:.0f}" for v in values) + " |")
    if results.curves:
        lines += [
            "",
            "| server | highest calls/s | at 70% of it: p50 us | p99 us | p99 / p50 |",
            "|---|---|---|---|---|",
        ]
        lines += [_under_load(server, curve) for server, curve in results.curves.items()]
    lines += ["", "| images a run | bare ONNX Runtime, one core, images/s |", "|---|---|"]
    lines += [f"| {size:,} | {rate:,.0f} |" for size, rate in results.bare.items()]
    for server, reason in results.missing.items():
        lines += ["", f"Skipped: {server}: {reason}"]
    return "\n".join(lines) + "\n"


def _by_server(results: Results, rows: list[Scenario], title: str, figure: str) -> list[str]:
    """Return the table of one figure, with a column for each server: the form of docs/performance.md."""
    servers = list(dict.fromkeys(server for row in rows for server in results.loads[row.name]))
    lines = ["| " + " | ".join([title, *servers]) + " |", "|---" * (len(servers) + 1) + "|"]
    for row in rows:
        measured = results.loads[row.name]
        cells = [f"{results.median(row.name, one, figure):,.0f}" if one in measured else "" for one in servers]
        lines.append("| " + " | ".join([row.name, *cells]) + " |")
    return [*lines, ""]


def _line(results: Results, row: Scenario, server: str) -> str:
    load = {what: results.median(row.name, server, what) for what in ("rate", "images", "cpu_us", "p50", "p99")}
    figures = [f"{load[what]:,.0f}" for what in ("rate", "images", "cpu_us", "p50", "p99")]
    return (
        f"| {row.name} | {server} | "
        + " | ".join(
            [*figures, *(_against(results, row, server, bases) for bases in ((FLOORS.get(server, "no-op"),), TRITONS))]
        )
        + " |"
    )


def _under_load(server: str, curve: dict[str, Any]) -> str:
    at = next(point for point in curve["latency"] if point["share"] == 0.7)
    figures = f"{curve['highest']:,.0f} | {at['p50']:,.0f} | {at['p99']:,.0f} | {at['p99'] / at['p50']:.1f}"
    return f"| {server} | {figures} |"


def _against(results: Results, row: Scenario, server: str, bases: tuple[str, ...]) -> str:
    """The ratio of rates, median and range; of latencies (p50) for the sequential Python client."""
    measured = [base for base in bases if base in results.loads[row.name]]
    if measured in ([], [server]):
        return ""
    ratios = results.ratios(row.name, server, measured, "p50" if row.client else "rate")
    return spread(ratios)


def spread(values: Sequence[float]) -> str:
    """The median of the rounds, and their range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def _plot(results: Results, rows: list[Scenario], folder: Path) -> None:
    try:
        import matplotlib as mpl  # noqa: PLC0415 (an extra)
    except ImportError:
        print("bench: no plots, for matplotlib is not installed: it is in the extra `dev`", file=sys.stderr)
        return
    mpl.use("agg")
    _plot_rates(results, rows, folder / "throughput.png")
    if results.curves:
        _plot_curves(results, folder / "latency-under-load.png")


def _plot_rates(results: Results, rows: list[Scenario], path: Path) -> None:
    from matplotlib import pyplot as plt  # noqa: PLC0415 (an extra)

    shown = [row for row in rows if not row.client]
    figure, axes = plt.subplots(figsize=(10, 0.9 * len(shown) + 1), layout="constrained")
    names = [name for name in COLOURS if any(name in results.loads[row.name] for row in shown)]
    height = 0.8 / max(1, len(names))
    for place, name in enumerate(names):
        at = [(i, row.name) for i, row in enumerate(shown) if name in results.loads[row.name]]
        values = [results.median(row, name, "images") for _, row in at]
        axes.barh([i + place * height for i, _ in at], values, height, label=name, color=COLOURS[name])
    axes.set_yticks([i + 0.4 for i in range(len(shown))], [row.name for row in shown])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("images a second (logarithmic)")
    figure.legend(loc="outside upper center", ncols=len(names), fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_curves(results: Results, path: Path) -> None:
    from matplotlib import pyplot as plt  # noqa: PLC0415 (an extra)

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name, curve in results.curves.items():
        colour = COLOURS.get(name)
        rates = [point["rate"] for point in curve["latency"]]
        left.plot(rates, [point["p50"] for point in curve["latency"]], color=colour, label=name)
        left.plot(rates, [point["p99"] for point in curve["latency"]], color=colour, linestyle="--")
        connections = [point["connections"] for point in curve["connections"]]
        right.plot(connections, [point["cpu_us"] for point in curve["connections"]], color=colour)
    left.set(xscale="log", yscale="log", xlabel="calls/s, sent on time (open loop)")
    left.set_ylabel("microseconds: p50, and p99 dashed")
    right.set(xscale="log", yscale="log", xlabel="connections, one call in flight on each", ylabel="CPU us a call")
    figure.legend(loc="outside upper center", ncols=len(results.curves), fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
