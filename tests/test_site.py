"""The documentation as a site: its reference pages match the code, and its links are valid."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml
from conftest import ROOT

from service.config import Settings

if TYPE_CHECKING:
    from pathlib import Path

DOCS = ROOT / "docs"
needs_sphinx = pytest.mark.skipif(
    importlib.util.find_spec("sphinx") is None, reason="Sphinx is not installed: `make docs` installs it"
)


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Build the pages below a folder with the options of `make docs`."""
    (options,) = re.findall(r"^SPHINX := \S+sphinx-build (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    command = [sys.executable, "-m", "sphinx", *options.split(), "--builder", "html", source, out]
    return subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=300)


def test_the_reference_pages_are_those_of_the_code() -> None:
    command = [sys.executable, ROOT / "scripts" / "reference.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_reference_has_a_heading_for_each_option() -> None:
    found = re.findall(r"^### `--([\w-]+)`$", (DOCS / "configuration.md").read_text(), re.MULTILINE)
    assert [name.replace("-", "_") for name in found] == list(Settings.model_fields)


def test_the_reference_has_each_alert() -> None:
    page = (DOCS / "alerts.md").read_text()
    rules = (ROOT / "deploy/prometheus").rglob("*rules*/*.yml")
    groups = [group for path in [*rules, ROOT / "deploy/prometheus/envoy/rules.yml"] for group in read(path)["groups"]]
    alerts = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    assert len(alerts) > 20
    assert {alert for alert in alerts if f"| [{alert}](" not in page} == set()


def read(path: Path) -> dict[str, list[dict[str, list[dict[str, str]]]]]:
    return dict(yaml.safe_load(path.read_text()))


def test_the_check_of_ci_builds_the_site() -> None:
    (needed,) = re.findall(r"^check: (.*?) ##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "docs" in needed.split()


def test_the_index_leads_to_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w./-]+)\)", (DOCS / "index.md").read_text()))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.*") if path.suffix in (".md", ".rst")}
    assert pages - linked == {"index.md"}


@needs_sphinx
@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_needs_no_other_host(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "docs/index.html" in (tmp_path / "index.html").read_text()
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    assert len(pages) > 30
    loaded = re.compile(
        r"<(?:script|img|iframe)\b[^>]*\bsrc=\"(?:https?:)?//|<link\b[^>]*stylesheet[^>]*\bhref=\"(?:https?:)?//"
    )
    assert [name for name, page in pages.items() if loaded.search(page)] == []
    styles = {path.name: path.read_text() for path in tmp_path.rglob("*.css")}
    assert [name for name, style in styles.items() if re.search(r"url\(['\"]?(https?:)?//|@import", style)] == []


@needs_sphinx
@pytest.mark.slow
@pytest.mark.parametrize("link", ["other.md#no-such-heading", "no-such-page.md", "#no-such-heading", "../no-such-file"])
def test_a_broken_link_fails_the_build(tmp_path: Path, link: str) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(DOCS / "site", docs / "site")
    shutil.copy(DOCS / "conf.py", docs)
    (docs / "index.md").write_text("# Index\n\n## Pages\n\n- [Other](other.md)\n")
    (docs / "other.md").write_text(f"# Other\n\n[link]({link})\n")
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode == 1
    assert "docs/other.md:3: WARNING: " in done.stderr, done.stderr
