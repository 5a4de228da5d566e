"""scripts/setup, which creates .venv: after any interruption, the next run works.

It installs a small project without dependencies, with its own build backend. Interpreter, venv and pip are real, and no
network is needed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.slow  # creates 10 environments

WITHIN = 120  # seconds, on the busiest machine

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "small"
version = "1"
[project.optional-dependencies]
client = []
[project.scripts]
small = "small:main"
"""

BACKEND = """
import pathlib, time, zipfile

def build_editable(folder, *_):
    here = pathlib.Path(__file__).parent
    if (here / "fail").exists():
        raise SystemExit("no network")
    (here / "building").touch()
    while (here / "hold").exists():
        time.sleep(0.01)
    info = "small-1.dist-info"
    with zipfile.ZipFile(pathlib.Path(folder, "small-1-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("small.pth", str(here))
        about = "Metadata-Version: 2.1\\nName: small\\nVersion: 1\\nProvides-Extra: client\\n"
        wheel.writestr(f"{info}/METADATA", about)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\\nsmall = small:main\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return "small-1-py3-none-any.whl"
"""


CLIENT_BACKEND = """
import pathlib, zipfile

def build_editable(folder, *_):
    info = "small_client-1.dist-info"
    with zipfile.ZipFile(pathlib.Path(folder, "small_client-1-py3-none-any.whl"), "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: small-client\\nVersion: 1\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return "small_client-1-py3-none-any.whl"
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A small project in a folder whose name needs quoting; the end of the test releases its build."""
    folder = tmp_path / "a clone"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "setup", folder / "scripts")
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "client").mkdir()
    (folder / "client" / "pyproject.toml").write_text(
        PROJECT.replace('"small"', '"small-client"').split("[project.s")[0]
    )
    (folder / "client" / "backend.py").write_text(CLIENT_BACKEND)
    (folder / "small.py").write_text("import sys\ndef main():\n    print(sys.prefix)\n")
    for name in ("constraints.txt", "constraints-ray.txt"):
        (folder / name).touch()
    yield folder
    (folder / "hold").unlink(missing_ok=True)


def setup(project: Path) -> subprocess.Popen[str]:
    """Start scripts/setup as make does, in a separate process group, as in a terminal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    return subprocess.Popen(
        [project / "scripts" / "setup", "client", ".venv/run.stamp"],
        cwd=project,
        env={**os.environ, "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + WITHIN
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def assert_works(project: Path) -> None:
    """Run to the end; check that interpreter, pip, scripts and activation are those of .venv."""
    process = setup(project)
    said, complaint = process.communicate(timeout=WITHIN)
    assert process.returncode == 0, (said, complaint)
    assert max(map(len, said.splitlines()), default=0) <= 80
    assert (project / ".venv" / "run.stamp").exists()
    assert sorted(path.name for path in project.glob(".venv*")) == [".venv"]
    subprocess.run([project / ".venv/bin/python", "-m", "pip", "check"], check=True, capture_output=True)
    for command in (".venv/bin/small", ". .venv/bin/activate && small"):
        shown = subprocess.run(
            ["/bin/sh", "-c", command], cwd=project, check=True, capture_output=True, text=True
        ).stdout
        assert Path(shown.strip()) == project / ".venv"


@pytest.mark.parametrize(("moment", "number"), [("venv", signal.SIGINT), ("pip", signal.SIGKILL)])
def test_the_run_after_an_interrupted_first_run_works(project: Path, moment: str, number: signal.Signals) -> None:
    (project / "hold").touch()
    process = setup(project)
    reached = {"venv": lambda: list(project.glob(".venv*/bin/python")), "pip": (project / "building").exists}
    wait_for(reached[moment], process)
    os.killpg(process.pid, number)
    _, complaint = process.communicate(timeout=WITHIN)
    assert (process.returncode, complaint) == ((130 if number == signal.SIGINT else -number), "")
    (project / "hold").unlink()
    assert_works(project)


def test_the_run_after_an_interrupted_change_works(project: Path) -> None:
    assert_works(project)
    (project / "building").unlink()
    (project / "hold").touch()
    os.utime(project / "constraints.txt")
    process = setup(project)
    wait_for((project / "building").exists, process)
    os.killpg(process.pid, signal.SIGINT)
    _, complaint = process.communicate(timeout=WITHIN)
    assert (process.returncode, complaint) == (130, "")
    assert not list((project / ".venv").glob("*.stamp")), "make would consider it complete"
    (project / "hold").unlink()
    assert_works(project)


def test_without_a_network_setup_reports_it_and_with_one_it_works(project: Path) -> None:
    (project / "fail").touch()
    assert_says_no_network(project)
    (project / "fail").unlink()
    assert_works(project)


def test_other_installed_packages_survive_failed_and_interrupted_changes(project: Path) -> None:
    assert_works(project)
    (project / ".venv/bin/else").touch()
    os.utime(project / "constraints.txt")
    (project / "fail").touch()
    assert_says_no_network(project)
    (project / "fail").unlink()
    (project / ".venv").rename(project / ".venv.old")
    assert_works(project)
    assert (project / ".venv/bin/else").exists()


def assert_says_no_network(project: Path) -> None:
    process = setup(project)
    _, complaint = process.communicate(timeout=WITHIN)
    assert process.returncode == 1
    assert "setup: the output of pip is in build/setup.log" in complaint
    assert complaint.endswith("setup: pip could not install: is there a network, and room on the disk?\n")
    assert "no network" in (project / "build/setup.log").read_text()


def test_a_second_setup_waits_for_the_first_and_installs_no_package(project: Path) -> None:
    (project / "hold").touch()
    first = setup(project)
    wait_for((project / "building").exists, first)
    second = setup(project)
    assert second.stdout is not None
    assert second.stdout.readline() == "setup: another setup is at work here: waiting for it ...\n"
    (project / "hold").unlink()
    for process in (first, second):
        said, complaint = process.communicate(timeout=WITHIN)
        assert (process.returncode, complaint) == (0, "")
    assert said == ""
    assert not [path for path in (project / ".venv/bin").iterdir() if b".venv.new" in path.read_bytes()]
    assert_works(project)
