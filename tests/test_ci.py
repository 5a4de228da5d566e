"""The commands that CI runs, and the skipped tests that it accepts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

TESTS = """
import os
import pytest

@pytest.mark.skipif("TOOL" not in os.environ, reason="needs the tool: install it")
def test_with_a_tool(): pass

def test_without(): pass
"""
WHOLE = """
import pytest
pytest.skip("no 'browser' here", allow_module_level=True)
"""
ACCEPTED = """
[[skip]]
tests = "test_some::*"
reason = "needs the tool: *"
without = ["{command}"]
why = "not installed"

[[skip]]
tests = "test_whole"
reason = "no 'browser' here"
why = "checked by hand"
"""


def report(folder: Path, name: str, **environment: str) -> Path:
    """Run the tests above; return pytest's report."""
    (folder / "test_some.py").write_text(TESTS)
    (folder / "test_whole.py").write_text(WHOLE)
    command = [sys.executable, "-m", "pytest", "--quiet", f"--rootdir={folder}", f"--junitxml={folder / name}"]
    env = {**os.environ, **environment, "PYTEST_ADDOPTS": ""}
    subprocess.run([*command, "-c", os.devnull, folder], cwd=folder, env=env, check=True, capture_output=True)
    return folder / name


def listed(*reports: Path, accepted: str) -> tuple[int, list[str]]:
    """Run scripts/skips.py with that table; return its exit status and its lines."""
    table = reports[0].parent / "accepted.toml"
    table.write_text(accepted)
    command = [sys.executable, ROOT / "scripts" / "skips.py", "--accepted", table, *reports]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_every_skip_is_listed_with_its_reason_and_why_it_is_accepted(tmp_path: Path) -> None:
    assert listed(report(tmp_path, "a.xml"), accepted=ACCEPTED.format(command="no-such-command")) == (
        0,
        [
            "skipped    1 of test_some::*: needs the tool: install it (not installed)",
            "skipped    1 of test_whole: no 'browser' here (checked by hand)",
        ],
    )


def test_a_skip_that_is_not_accepted_is_named_and_fails(tmp_path: Path) -> None:
    status, lines = listed(report(tmp_path, "a.xml"), accepted=ACCEPTED.replace("test_some", "test_other"))
    assert status == 1
    assert lines[-1].startswith("skipped and not accepted: test_some::test_with_a_tool: needs the tool: install it; ")


def test_a_skip_for_lack_of_an_installed_command_fails(tmp_path: Path) -> None:
    assert listed(report(tmp_path, "a.xml"), accepted=ACCEPTED.format(command="sh"))[0] == 1


def test_a_test_that_another_run_executes_is_not_listed(tmp_path: Path) -> None:
    reports = report(tmp_path, "a.xml"), report(tmp_path, "b.xml", TOOL="1")
    for order in (reports, reports[::-1]):
        _, lines = listed(*order, accepted=ACCEPTED.format(command="sh"))
        assert lines == ["skipped    1 of test_whole: no 'browser' here (checked by hand)"]


def test_a_missing_report_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "skips.py", tmp_path / "none.xml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        f"skips: {tmp_path}/none.xml: no such file; expected a report of pytest\n",
    )


MAKE = """#!/bin/sh
if command -v cargo >/dev/null; then cargo=cargo; else cargo=none; fi
echo "$* $cargo $PYTEST_ADDOPTS" >> "$CALLS"
"""


RUNS = ("plain", "e2e", "check", "conformance")


@pytest.mark.parametrize("with_cargo", [True, False])
def test_ci_runs_the_commands_of_the_readme_before_any_build(tmp_path: Path, *, with_cargo: bool) -> None:
    clone, tools, cargo = (tmp_path / name for name in ("clone", "tools", "cargo"))
    for folder in (clone / ".ci", clone / "scripts", clone / ".venv" / "bin", tools, cargo):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", clone / ".ci" / "run")
    programs = {tools / "make": MAKE, cargo / "cargo": "#!/bin/sh\n"}
    for name in ("scripts/test-tools", ".venv/bin/python"):
        programs[clone / name] = f'#!/bin/sh\necho "{name} $*" >> "$CALLS"\n'
    for path, text in programs.items():
        path.write_text(text)
        path.chmod(0o755)
    folders = [tools, *([cargo] if with_cargo else []), "/usr/bin", "/bin"]
    if any((path / "cargo").exists() for path in map(Path, ("/usr/bin", "/bin"))):
        pytest.skip("cargo is among the programs of the system")
    env = {"PATH": ":".join(map(str, folders)), "CALLS": str(tmp_path / "calls")}
    subprocess.run([clone / ".ci" / "run"], env=env, check=True)
    there = "cargo" if with_cargo else "none"
    assert (tmp_path / "calls").read_text().splitlines() == [
        "test none --junitxml=build/ci/plain.xml",
        "scripts/test-tools ",
        *(["native cargo "] if with_cargo else []),
        f"e2e {there} --junitxml=build/ci/e2e.xml",
        f"check {there} --junitxml=build/ci/check.xml",
        f"conformance {there} --junitxml=build/ci/conformance.xml",
        f".venv/bin/python scripts/skips.py {' '.join(f'build/ci/{run}.xml' for run in RUNS)}",
    ]
