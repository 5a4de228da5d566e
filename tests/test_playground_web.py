"""The files of the page: built from the committed weights and sources, small, and complete in one folder."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT
from playground_page import STATIC

from playground.gateway import FILES

if TYPE_CHECKING:
    from pathlib import Path

sys.path.insert(0, str(ROOT / "scripts"))
import page_numbers

WEB = ROOT / "playground" / "web"
LARGEST = 150_000
"""Bytes of all files, compressed."""


@pytest.fixture(scope="module")
def packages() -> Path:
    """playground/web with its packages installed; it needs node and, on first use, the registry."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node: not found on this machine")
    if not (WEB / "node_modules").exists():
        done = npm("ci", "--no-fund", "--no-audit")
        if done.returncode:
            pytest.skip(f"the packages of playground/web cannot be installed: {done.stderr.strip()[-200:]}")
    return WEB


def npm(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_COLOR": "1", "CI": "1"}
    return subprocess.run(
        [shutil.which("npm") or "npm", *arguments],
        cwd=WEB,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_numbers_are_those_of_the_committed_networks() -> None:
    found = page_numbers.read()
    assert found == page_numbers.numbers(found["recording"]), "update them: python scripts/page_numbers.py"


def test_the_page_is_small() -> None:
    files = [path for path in STATIC.iterdir() if path.is_file()]
    assert {path.name for path in files} == {"index.html", *FILES}
    assert sum(len(gzip.compress(path.read_bytes(), 9)) for path in files) <= LARGEST


def test_the_page_loads_no_module_and_no_file_of_another_host() -> None:
    html = (STATIC / "index.html").read_text()
    assert 'type="module"' not in html, "a page from disk cannot load a module"
    assert "crossorigin" not in html
    assert 'src="/' not in html
    assert 'href="/' not in html


@pytest.mark.slow
def test_the_committed_build_matches_the_sources(packages: Path, tmp_path: Path) -> None:
    done = npm("run", "build", "--", "--outDir", str(tmp_path), "--emptyOutDir")
    assert done.returncode == 0, done.stdout + done.stderr
    built = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_bytes() for path in STATIC.iterdir() if path.name != "numbers.js"}
    assert packages == WEB
    assert built == committed, "update it: make web"


@pytest.mark.slow
def test_the_units_of_the_page_pass(packages: Path) -> None:
    done = npm("test")
    assert done.returncode == 0, done.stdout + done.stderr
    assert packages == WEB


def test_make_page_makes_one_folder_without_node(tmp_path: Path) -> None:
    make = shutil.which("make")
    assert make
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("rm", "cp", "mkdir", "sh"):
        (tools / name).symlink_to(shutil.which(name) or name)
    done = subprocess.run(
        [make, "page", f"OUT={tmp_path / 'page'}"],
        cwd=ROOT,
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = {path.name: path.read_bytes() for path in (tmp_path / "page").iterdir()}
    assert made == {path.name: path.read_bytes() for path in STATIC.iterdir()}
    assert (tmp_path / "page" / "index.html").as_uri() in done.stdout
