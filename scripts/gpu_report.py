"""Write tests and benchmarks of this machine's GPU into one Markdown report: `make gpu-report`.

Each part has a deadline, so that the report takes less than 6 minutes. It lists unfinished parts too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "build" / "gpu-report"
SUITES = {
    "CUDA": ["tests/test_gpu.py"],
    "WebGPU": [f"tests/test_{name}.py" for name in ("webgpu", "webgpu_rejections", "api_on_webgpu", "plugins")],
}
TEST_DEADLINE, BENCH_DEADLINE, COMMAND_DEADLINE = 75, 80, 30
"""Deadlines in seconds: of each suite, of the bench on each transport, and of each query of a driver."""
VERSIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-webgpu", "numpy", "grpcio", "digitserve-native")


@dataclass
class Part:
    """A section of the report: the output of a command, and its error."""

    title: str
    text: str
    ended: str = ""


def main() -> int:
    """Write build/gpu-report/report.md; return 1 if a test failed or a part did not finish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=65536, help="maximum images in a run of the bench")
    parser.add_argument("--providers", default="cpu,cuda,webgpu", help="providers of the bench, the CPU first")
    parser.add_argument("--seconds", type=float, default=0.2, help="seconds of one measurement of the bench")
    parser.add_argument("--skip-tests", action="store_true", help="do not run the tests")
    options = parser.parse_args()
    began = time.monotonic()
    FOLDER.mkdir(parents=True, exist_ok=True)
    parts = [machine(), providers()]
    if not options.skip_tests:
        parts += [tests(name, files) for name, files in SUITES.items()]
    # Runs of the bare model do not depend on the transport.
    parts += [bench(transport, options, largest) for transport, largest in (("native", options.largest), ("grpcio", 1))]
    took = time.monotonic() - began
    report = render(parts, took)
    (FOLDER / "report.md").write_text(report)
    print(report)
    print(f"gpu-report: {FOLDER / 'report.md'}", file=sys.stderr)
    return int(any(part.ended for part in parts))


def render(parts: list[Part], seconds: float) -> str:
    """Return the report as Markdown."""
    when = datetime.now(UTC).isoformat(timespec="minutes")
    lines = ["# GPU report", "", f"{when}; took {seconds:.0f} s.", ""]
    for part in parts:
        lines += [f"## {part.title}", "", part.text.strip(), ""]
        lines += [f"**{part.ended}**", ""] if part.ended else []
    return "\n".join(lines)


def run(command: list[str], deadline: float, environment: dict[str, str] | None = None) -> tuple[str, str]:
    """Run a command; return its output, and why it failed or an empty text."""
    environment = {**os.environ, **(environment or {})}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=deadline, check=False
        )
    except FileNotFoundError:
        return "", f"{command[0]} is not installed"
    except subprocess.TimeoutExpired as e:
        output = e.stdout or b""
        return output.decode() if isinstance(output, bytes) else output, f"did not finish within {deadline:g} s"
    return done.stdout, f"ended with status {done.returncode}: {done.stderr[-600:]}" if done.returncode else ""


def machine() -> Part:
    """Return CPU, GPUs, driver and versions."""
    gpu, missing = run(
        ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"],
        COMMAND_DEADLINE,
    )
    cuda, _ = run(["nvidia-smi", "--version"], COMMAND_DEADLINE)
    versions = []
    for name in VERSIONS:
        with suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    cpu = next(
        (line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")), "unknown CPU"
    )
    lines = [
        f"- CPU: {os.cpu_count()} cores of {cpu}",
        *(f"- NVIDIA GPU: {line}" for line in gpu.splitlines()),
        *([f"- NVIDIA GPU: none; {missing}"] if missing else []),
        *(f"- {line.strip()}" for line in cuda.splitlines() if "CUDA" in line or "DRIVER" in line),
        f"- Python {sys.version.split()[0]}; {', '.join(versions)}",
    ]
    return Part("Machine", "\n".join(lines))


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def providers() -> Part:
    """Return the output of `--list-providers`."""
    output, ended = run([sys.executable, "-m", "service", "--list-providers"], COMMAND_DEADLINE)
    return Part("Execution providers", f"```text\n{output}```", ended)


def tests(name: str, files: list[str]) -> Part:
    """Run a suite; return its results, with each failure and the reasons of skips."""
    results = FOLDER / f"tests-{name.lower()}.xml"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={results}", *files]
    command += ["--numprocesses", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile"]
    output, ended = run(command, TEST_DEADLINE)
    if not results.exists():
        return Part(f"Tests on {name}", f"```text\n{output[-2000:]}\n```", ended or "no results")
    return Part(f"Tests on {name}", outcome(results), ended.partition(":")[0])


def outcome(results: Path) -> str:
    """Return the counts of a JUnit file, the failures by name, and the skips by reason."""
    cases = list(ET.parse(results).iter("testcase"))  # noqa: S314 (a file of our pytest)
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skips = [skip.get("message") or "" for case in cases if (skip := case.find("skipped")) is not None]
    seconds = sum(float(case.get("time", 0)) for case in cases)
    passed = len(cases) - len(failed) - len(skips)
    lines = [
        f"{passed} passed, {len(failed)} failed, {len(skips)} skipped; {seconds:.0f} s of all workers together.",
        "",
        *(f"- failed: {case.get('name')}" for case in failed),
        *(f"- skipped {skips.count(reason)}: {reason}" for reason in sorted(set(skips))),
    ]
    return "\n".join(lines)


def bench(transport: str, options: argparse.Namespace, largest: int) -> Part:
    """Compare CPU and GPU on a transport, with a picture."""
    title = f"CPU against GPU, {transport} transport"
    out = FOLDER / transport
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "bench.providers", "--names", options.providers, "--transport", transport]
    command += ["--largest", str(largest), "--rounds", "1", "--seconds", str(options.seconds)]
    output, ended = run([*command, "--out", str(out)], BENCH_DEADLINE)
    picture = out / "providers.png"
    shown = f"\n\n![{title}]({picture.relative_to(FOLDER)})" if picture.exists() else ""
    return Part(title, output + shown, ended)


if __name__ == "__main__":
    sys.exit(main())
