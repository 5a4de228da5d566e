"""python -m bench.flames: the CPU profile of the native transport, as two flame graphs (SVG).

One is of single images with 64 in flight, one of calls of 1,024 images. Needed are perf, inferno (`cargo install
inferno`), h2load, and a wheel that has kept its symbols and frame pointers:

    CARGO_PROFILE_RELEASE_DEBUG=1 CARGO_PROFILE_RELEASE_STRIP=none RUSTFLAGS="-C force-frame-pointers=yes" make native
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench import server, servers
from bench.messages import sample_images
from bench.scenarios import SCENARIOS, Scenario

if TYPE_CHECKING:
    from collections.abc import Callable

GRAPHS = {
    "flames-one-image": "1 image, 64 in flight, 8 connections",
    "flames-1024-images": "1,024 images a call, 4 in flight",
}
"""Files and the rows of `python -m bench` that they are of."""
TOOLS = {
    "perf": "apt install linux-perf",
    "h2load": "apt install nghttp2-client",
    "inferno-collapse-perf": "cargo install inferno",
    "inferno-flamegraph": "cargo install inferno",
}
SHARES = {
    "h2, rustls, tokio and the crate": r"digitserve_native|\.abi3\.so",
    "the kernel": r"\[kernel|\[guest",
    "the C library": r"libc\.so|\[vdso\]",
    "ONNX Runtime": r"onnxruntime",
    "Python and numpy": r"python|numpy|libstdc|lib-dynload",
}
"""The groups of the table, by the file of a sample's innermost function."""
_HERTZ = 999
_NARROWEST = 0.15
"""Per cent of all samples; narrower frames are omitted, which keeps a graph below 300 kB."""


class Missing(Exception):
    """A missing requirement; the text has the remedy."""


def check_tools() -> None:
    """Raise Missing for the first tool that is not installed."""
    for tool, install in TOOLS.items():
        if shutil.which(tool) is None:
            raise Missing(f"{tool} is not installed ({install})")


def record(row: Scenario, seconds: int) -> str:
    """The samples, as `perf script` prints them, of about so many seconds of that row's load on a server of its own."""
    running = servers.start(servers.SERVERS["native"](), sample_images(1)[0], digit=0)
    try:
        count = row.count_for(running) * seconds
        with tempfile.TemporaryDirectory() as folder:
            data = str(Path(folder) / "perf.data")
            command = ["perf", "record", "--quiet", "-F", str(_HERTZ), "-g", "-e", "cpu-clock"]
            perf = subprocess.Popen([*command, "--output", data, "--pid", str(running.process.pid)])
            try:
                row.measure(running, count)
            finally:
                perf.send_signal(2)
                perf.wait()
            if not Path(data).exists():
                raise Missing("perf recorded no sample; expected root, or kernel.perf_event_paranoid at 1 or lower")
            read = ["perf", "script", "--input", data, "--fields", "comm,pid,tid,time,event,ip,sym,dso"]
            return subprocess.run(read, capture_output=True, text=True, check=True).stdout
    finally:
        running.stop()


def shares(script: str) -> dict[str, float]:
    """The share of the samples in each part of SHARES, and in the rest."""
    results = dict.fromkeys([*SHARES, "the rest"], 0)
    for sample in re.split(r"\n\s*\n", script.strip()):
        innermost = next(iter(sample.split("\n")[1:]), "")
        file = innermost[innermost.rfind("(") :]
        results[next((part for part, files in SHARES.items() if re.search(files, file)), "the rest")] += 1
    return {part: count / max(1, sum(results.values())) for part, count in results.items()}


def draw(script: str, title: str) -> str:
    """The SVG of these samples."""
    collapsed = _through(["inferno-collapse-perf"], script)
    if "h2::" not in collapsed:
        raise Missing(
            f"the wheel digitserve-native has no symbols: build it so:\n{(__doc__ or '').split(':')[-1].strip()}"
        )
    options = ["--deterministic", "--minwidth", str(_NARROWEST), "--title", title, "--width", "1400"]
    return _through(["inferno-flamegraph", "--quiet", *options], collapsed)


def _through(command: list[str], text: str) -> str:
    return subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True).stdout


def main(out: Path, seconds: int, say: Callable[[str], None]) -> None:
    """Draw both graphs into the folder, and report the share of each part."""
    check_tools()
    columns = {}
    for name, wanted in GRAPHS.items():
        row = next(row for row in SCENARIOS if row.name == wanted)
        script = record(row, seconds)
        (out / f"{name}.svg").write_text(draw(script, row.name))
        columns[row.name] = shares(script)
    say("| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for part in [*SHARES, "the rest"]:
        say(f"| {part} | " + " | ".join(f"{column[part]:.0%}" for column in columns.values()) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Flame graphs of the native transport under load.")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the graphs (docs/images)")
    parser.add_argument("--seconds", type=int, default=5, help="of load for each (5)")
    arguments = parser.parse_args()
    if arguments.seconds < 1 or not arguments.out.is_dir():
        parser.error(f"--seconds must be at least 1, and --out {arguments.out} a folder that exists")
    try:
        main(arguments.out, arguments.seconds, print)
    except (Missing, server.ServerUnavailable) as e:
        sys.exit(f"bench.flames: {e}")
