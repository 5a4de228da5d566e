"""Separate virtual environments below .venv/clients, created on first use and kept, and the wheels of the project."""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
CLIENTS = ROOT / ".venv" / "clients"
BACKEND = "hatchling==1.33.0"


def requirements(*names: str) -> list[str]:
    """Return the output of scripts/requirements.py for these names; without names, the needs of digitserve-client."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from requirements import client_requirements  # noqa: PLC0415 (a script, not a package)
        from requirements import requirements as of_server  # noqa: PLC0415
    finally:
        sys.path.pop(0)
    return client_requirements(ROOT) if names == ("client alone",) else of_server(ROOT, list(names))


@contextlib.contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Hold the lock of that name, after waiting until no other worker holds it."""
    CLIENTS.mkdir(parents=True, exist_ok=True)
    with (CLIENTS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def python_with(name: str, *packages: str, constrained: bool = False) -> Path:
    """Return a Python with these packages; skip the test if pip cannot install them."""
    home = CLIENTS / name
    with exclusive(name):  # another worker may create it
        python, installed = home / "bin" / "python", home / "installed"
        constraints = ["--constraint", str(ROOT / "constraints.txt")] if constrained else []
        wanted = "\n".join((*packages, *constraints))
        if installed.exists() and installed.read_text() == wanted:
            return python
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        done = _pip(python, "install", *constraints, *packages)
        if done.returncode:
            pytest.skip(f"{', '.join(packages)}: not installable: {done.stderr.strip().splitlines()[-1]}")
        installed.write_text(wanted)
        return python


def install(python: Path, *wheels: Path) -> None:
    """Install our wheels into an environment, in the place of older ones, and let pip check their dependencies."""
    _pip(python, "uninstall", "--yes", "digitserve", "digitserve-client")
    done = _pip(python, "install", "--no-index", "--no-deps", *map(str, wheels))
    assert done.returncode == 0, done.stderr
    checked = _pip(python, "check")
    assert not [line for line in checked.stdout.splitlines() if line.startswith("digitserve")], checked.stdout


def build(folder: Path) -> dict[str, Path]:
    """Build the wheel of each distribution from its sdist; the folder then holds both."""
    python = python_with("hatchling", BACKEND)
    for project in (ROOT, ROOT / "client"):
        command = [python, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder]
        subprocess.run(command, cwd=project, check=True, capture_output=True)
    for sdist in folder.glob("*.tar.gz"):
        done = _pip(
            python, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(sdist)
        )
        assert done.returncode == 0, done.stderr
    return {path.name.partition("-")[0]: path for path in folder.glob("*.whl")}


def _pip(python: Path, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    pip = [python, "-m", "pip", command, "--disable-pip-version-check", *arguments]
    return subprocess.run(pip, capture_output=True, text=True, check=False, timeout=1200)
