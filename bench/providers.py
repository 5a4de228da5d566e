"""python -m bench.providers: the CPU against a GPU, from 1 to 65,536 images a run and from 1 to 512 clients.

It reports the number of images from which a run on the GPU is faster, for the choice of `--inline-images` and
`--provider`. It writes a table, JSON and a plot, and omits unusable providers with the reason.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import onnxruntime as ort
import typer

from bench import load, servers
from bench.messages import PREDICT, predict_request, sample_images
from bench.server import LARGEST_BATCH, MODEL, ROOT, Server
from commandline.options import output_folder
from service.errors import StartError
from service.inference.model import Model
from service.inference.providers import SessionFactory
from service.observability.logs import make_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = ROOT / "build" / "bench" / "providers"
CLIENTS = (1, 8, 64, 256, 512)
BATCHING = {
    "batched": ("--max-batch-size", str(LARGEST_BATCH)),
    "batched, up to 128 inline": ("--max-batch-size", str(LARGEST_BATCH), "--inline-images", "128"),
    "one image a run": ("--max-batch-size", "1"),
}
"""Ways to serve one-image calls, and the options that make them."""

Rates = dict[str, dict[int, list[float]]]
"""Images a second of each round, by provider or server and by images a run or clients."""

Names = Annotated[str, typer.Option(help="providers, as --provider spells them, separated by commas; the first is CPU")]
Largest = Annotated[int, typer.Option(min=1, max=65536, help="most images in a run")]
MostClients = Annotated[int, typer.Option(min=1, max=512, help="maximum number of concurrent clients")]
Rounds = Annotated[int, typer.Option(min=1, help="rounds; in each every provider takes its turn")]
Seconds = Annotated[float, typer.Option(min=0.01, help="how long one measurement takes")]
Transport = Annotated[Literal["auto", "native", "grpcio"], typer.Option(help="of the servers")]
Out = Annotated[Path, output_folder("--out", help="folder for results.json, results.md and the plot; it is made")]


def main(
    names: Names = "cpu,cuda,webgpu",
    largest: Largest = 65536,
    clients: MostClients = 512,
    rounds: Rounds = 3,
    seconds: Seconds = 0.5,
    transport: Transport = "auto",
    out: Out = FOLDER,
) -> None:
    """Measure runs of the model by their size, and servers by their clients, on each provider."""
    if not MODEL.exists():
        sys.exit(f"bench: {MODEL.name} is missing: `make model.onnx` writes it")
    models, missing = _models(names.split(","), largest)
    sizes = [2**i for i in range(17) if 2**i <= largest]
    results: dict[str, Any] = {"taken_on": taken_on(), "missing": missing, "runs": runs(models, sizes, rounds, seconds)}
    results["clients"] = {}
    if load.have_h2load():
        results["clients"] = served(list(models), [n for n in CLIENTS if n <= clients], transport, rounds, seconds)
    else:
        missing["clients"] = load.H2LOAD_MISSING
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    text = report(results, list(models))
    (out / "results.md").write_text(text)
    _plot(results, out / "providers.png")
    print(text)


def _models(names: list[str], largest: int) -> tuple[dict[str, Model], dict[str, str]]:
    """The model on each provider that can have it, and why the others cannot."""
    models, missing = {}, {}
    for name in names:
        try:
            sessions = SessionFactory(name, make_logger("auto", "error"), max_batch_size=largest)
            models[name] = Model(MODEL, sessions=sessions)
        except StartError as e:
            missing[name] = str(e)
    return models, missing


def runs(models: dict[str, Model], sizes: list[int], rounds: int, seconds: float) -> Rates:
    """Bare runs of the model, including copies to the GPU and back, as when serving."""
    rates: Rates = defaultdict(lambda: defaultdict(list))
    for _ in range(rounds):
        for size in sizes:
            pixels = sample_images(size)
            for name, model in models.items():
                model.predict(pixels)
                count, began = 0, time.perf_counter()
                while (took := time.perf_counter() - began) < seconds:
                    model.predict(pixels)
                    count += 1
                rates[name][size].append(count * size / took)
    return rates


def served(names: list[str], clients: list[int], transport: str, rounds: int, seconds: float) -> Rates:
    """One-image calls of so many concurrent clients, to servers on each provider with and without batching."""
    rates: Rates = defaultdict(lambda: defaultdict(list))
    for server in _servers(names, transport):
        running = servers.start(server, sample_images(1)[0], 0)
        try:
            for _ in range(rounds):
                for n in clients:
                    rates[server.name][n].append(_calls_a_second(running, n, seconds))
        finally:
            running.stop()
    return rates


def _servers(names: list[str], transport: str) -> Iterator[Server]:
    for name in names:
        for batching, options in BATCHING.items():

            def command(port: int, http: int, *, name: str = name, options: tuple[str, ...] = options) -> list[str]:
                return [
                    *(sys.executable, "-m", "service", "--model", str(MODEL), "--log-level", "warning"),
                    *("--port", str(port), "--metrics-port", str(http), "--transport", transport),
                    *("--provider", name, *options),
                ]

            yield Server(f"{name}, {batching}", "", command, (PREDICT,))


def _calls_a_second(running: servers.Running, clients: int, seconds: float) -> float:
    message = [predict_request(sample_images(1))]
    connections = min(clients, 8)
    each = clients // connections

    def rate(count: int) -> float:
        return load.calls(running, PREDICT, message, connections=connections, in_flight=each, count=count).rate

    return rate(max(2 * clients, int(rate(max(200, 2 * clients)) * seconds)))


def crossover(first: dict[int, list[float]], second: dict[int, list[float]]) -> int | None:
    """From which key on the second is faster at every larger one too, by medians; None if it never is."""
    faster = None
    for key in sorted(first, reverse=True):
        if statistics.median(second[key]) <= statistics.median(first[key]):
            break
        faster = key
    return faster


def report(results: dict[str, Any], names: list[str]) -> str:
    """Return the tables, and their conclusions."""
    lines = [results["taken_on"], ""]
    lines += [f"Left out: {name}: {reason}" for name, reason in results["missing"].items()]
    lines += _table("images a run", "images/s, bare runs", results["runs"])
    lines += _table("concurrent clients", "calls/s, one image each", results["clients"])
    for name in names[1:]:
        at = crossover(results["runs"][names[0]], results["runs"][name])
        lines.append(
            f"- Bare runs: {name} is faster than {names[0]} from {at:,} images on."
            if at
            else f"- Bare runs: {name} is never faster than {names[0]} up to {max(results['runs'][name]):,} images."
        )
        if results["clients"]:
            at = crossover(*(results["clients"][f"{one}, batched"] for one in (names[0], name)))
            lines.append(
                f"- Served: {name} is faster than {names[0]} " + (f"from {at} clients on." if at else "never.")
            )
    return "\n".join(lines) + "\n"


def _table(key: str, what: str, rates: Rates) -> list[str]:
    if not rates:
        return []
    keys = sorted(next(iter(rates.values())))
    lines = [f"| {key} | " + " | ".join(rates) + " |", "|---" * (len(rates) + 1) + "|"]
    for one in keys:
        medians = (statistics.median(of[one]) for of in rates.values())
        lines.append(f"| {one:,} | " + " | ".join(f"{median:,.0f}" for median in medians) + " |")
    return ["", f"{what}; medians of {len(next(iter(rates.values()))[keys[0]])} rounds.", "", *lines, ""]


def taken_on() -> str:
    """The machine, in a line."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    try:
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        gpu = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        gpu = "no NVIDIA GPU"
    when = datetime.now(UTC).isoformat(timespec="minutes")
    return f"{os.cpu_count()} cores of {cpu}; {gpu}; {ort.package_name} {ort.__version__}; {when}."


def _plot(results: dict[str, Any], path: Path) -> None:
    try:
        import matplotlib as mpl  # noqa: PLC0415 (an extra)
    except ImportError:
        print("bench: no plot, for matplotlib is not installed: it is in the extra `dev`", file=sys.stderr)
        return
    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 (an extra)

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axes, rates, label in (
        (left, results["runs"], "images a run"),
        (right, results["clients"], "concurrent clients, one image each"),
    ):
        for name, by_key in rates.items():
            keys = sorted(by_key)
            axes.plot(keys, [statistics.median(by_key[key]) for key in keys], marker=".", label=name)
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="images a second")
        if rates:
            axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    typer.run(main)
