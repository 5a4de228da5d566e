"""Prose is plain technical English: scripts/prose.py has no findings in it, and finds the habits that it lists."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT

from scripts.prose import HABITS, MAX_WORDS, PAGES, SOURCES, files, findings

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = {
    "Whoever negotiates OpenMetrics gets exemplars.": "Whoever",
    "An emptied file locks nobody out.": "nobody",
    "The server tells what was wrong.": "what",
    "Too few file handles end nothing.": "nothing",
    "Watchers hear of it.": "hear",
    "The server is told.": "told",
    "It asks the file.": "asks",
    "The log says more.": "says",
    "It takes grpcio where the wheel is not installed.": "where",
    "The page is written anew.": "anew",
    "The run goes on.": "goes on",
    "It costs some 18 us.": "some ",
    "The caller waits.": "caller",
    "The call is refused.": "refused",
    "It is a stranger.": "stranger",
    "Nearly all are let in.": "let in",
    "The line is full.": "The line is full",
    "It ends with a sentence.": "a sentence",
    "None but for health.": "but for",
    "The limit is in force.": "in force",
    "It is held to a schema.": "is held to",
    "Nine minutes pass.": "Nine minutes",
}
"""Sentences with the habit that each shows, in the order of HABITS."""

PLAIN = (
    "The server rejects a call without a token.",
    "Which network? [But what is a neural network?](https://example.com/what-nobody-said)",
    "The folder where the versions are is read once.",
    "`--refuse-callers nobody` is code.",
    "The port is closed: connection refused.",
    "```sh\nnobody told whoever asked   # some 100 callers\n```",
)


@pytest.mark.parametrize("page", PAGES)
def test_a_listed_page_has_no_finding(page: str) -> None:
    assert [str(finding) for finding in findings(page, (ROOT / page).read_text())] == []


@pytest.mark.parametrize(
    "path", [file for source in SOURCES for file in files(ROOT / source)], ids=lambda path: path.name
)
def test_a_listed_program_has_no_finding(path: Path) -> None:
    assert [str(finding) for finding in findings(path.name, path.read_text())] == []


PROGRAMS = {
    "docstrings": ("x.py", '"""Nobody reads it.\n\nA server.\n\n    nobody\n"""\n', [1]),
    "those of attributes": ("x.py", 'x = 1\n"""Seconds\nthat nobody waits."""\n', [3]),
    "comments": ("x.py", "# A server\n# that nobody runs.\nx = 1  # nobody\n", [2, 3]),
    "messages": ("x.py", 'raise ValueError(f"{x}: nobody asked")\n', [1, 1]),
    "not names": ("x.py", 'x = "nobody"  # noqa: E501\n', []),
    "not programs": ("x.py", 'x = """\nnobody = lambda told: told\nnobody(1)\n"""\n', []),
    "not recorded output": ("x.py", 'x = "[E:device] nobody told it"\n', []),
    "comments of Rust": ("x.rs", "//! A server\n//! that nobody runs.\nlet nobody = 1;\n/// Nobody.\n", [2, 4]),
    "comments of YAML": ("x.yml", "nobody: 1\n# nobody\n", [2]),
}


@pytest.mark.parametrize(("name", "text", "lines"), PROGRAMS.values(), ids=PROGRAMS)
def test_the_prose_of_a_program_is_checked(name: str, text: str, lines: list[int]) -> None:
    assert [finding.line for finding in findings(name, text)] == lines


def test_every_habit_has_an_example() -> None:
    assert len(EXAMPLES) == len(HABITS)


@pytest.mark.parametrize(("sentence", "habit"), EXAMPLES.items())
def test_a_habit_is_found(sentence: str, habit: str) -> None:
    assert repr(habit) in [finding.problem for finding in findings("page", sentence)]


@pytest.mark.parametrize("text", PLAIN)
def test_plain_english_and_code_have_no_finding(text: str) -> None:
    assert list(findings("page", text)) == []


def test_a_long_sentence_is_found_at_its_line_outside_tables() -> None:
    limit, long = " ".join(["word"] * MAX_WORDS), " ".join(["word"] * (MAX_WORDS + 1))
    page = f"# Title\n\n{limit}. {limit}.\n{long}.\n\n| {long} |\n"
    assert [str(finding) for finding in findings("page", page)] == [
        f"page:4: sentence of {MAX_WORDS + 1} words; expected at most {MAX_WORDS}"
    ]


def test_a_finding_names_its_line_across_code_and_list_items() -> None:
    page = "```sh\nmake\n```\n\n- one item\n- an item that\n  nobody reads\n"
    assert [(finding.line, finding.problem) for finding in findings("page", page)] == [(7, "'nobody'")]


def test_the_program_reports_and_fails(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("Nobody reads it.\n")
    command = [sys.executable, ROOT / "scripts" / "prose.py", tmp_path / "page.md"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == f"{tmp_path}/page.md:1: 'Nobody'; expected the actor: client, server, operator\n"
