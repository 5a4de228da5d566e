"""A release: one version, a changelog of a fixed form, and release notes from the changelog."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from scripts.release_notes import notes, versions
from service import __version__

CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
MAX_LINES = 2


def sections() -> list[tuple[str, str]]:
    """Return the heading and text of each version, the newest first."""
    parts = re.split(r"^## (.+)\n", CHANGELOG, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def test_every_part_has_the_version_of_the_server() -> None:
    assert set(versions().values()) == {__version__}


def test_the_crates_lock_file_has_the_version_too() -> None:
    lock = (ROOT / "native/Cargo.lock").read_text()
    assert f'name = "digitserve-native"\nversion = "{__version__}"' in lock


def test_the_newest_section_is_unreleased_and_the_others_are_dated() -> None:
    first, *released = [heading for heading, _ in sections()]
    assert first == "Unreleased"
    assert [heading for heading in released if not re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", heading)] == []
    dates = [heading.split(" - ")[1] for heading in released]
    assert dates == sorted(dates, reverse=True)


@pytest.mark.parametrize(("heading", "text"), sections(), ids=[heading.split()[0] for heading, _ in sections()])
def test_a_section_has_known_kinds_in_their_order(heading: str, text: str) -> None:
    kinds = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert kinds == [kind for kind in KINDS if kind in kinds], heading


def test_an_entry_has_two_lines_at_most() -> None:
    entries = re.findall(r"^- .+(?:\n  .+)*", CHANGELOG, re.MULTILINE)
    assert len(entries) > 20
    assert [entry for entry in entries if entry.count("\n") >= MAX_LINES] == []


def test_the_notes_of_the_version_are_its_section() -> None:
    done = run(f"v{__version__}")
    assert (done.returncode, done.stderr) == (0, "")
    section = next(text for heading, text in sections() if heading.startswith(f"{__version__} - "))
    assert done.stdout.strip() == section.strip()


def test_a_tag_without_a_section_or_of_another_version_fails_by_name() -> None:
    done = run("v9.9.9")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"service/__init__.py: version is {__version__}; expected 9.9.9, as in the tag" in done.stderr
    assert "CHANGELOG.md: no section; expected `## 9.9.9 - DATE`" in done.stderr


def test_an_undated_section_is_no_release() -> None:
    with pytest.raises(KeyError):
        notes("## 1.0.0\n\n- New.\n", "1.0.0")
    assert notes("## 1.0.0 - 2027-01-01\n\n- New.\n\n## 0.1.0 - 2026-11-26\n\n- Old.\n", "1.0.0") == "- New."


def run(tag: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "release_notes.py", tag]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_an_issue_form_has_a_name_a_description_and_unique_fields(name: str) -> None:
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())
    assert {"name", "description", "body"} <= form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)
