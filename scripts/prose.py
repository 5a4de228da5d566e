"""Check prose for plain technical English: the habits of HABITS, and sentences of more than MAX_WORDS words.

    python scripts/prose.py [PATH ...]     without PATH, PAGES and SOURCES

A path is a page (.md), a program (.py, .rs: docstrings, comments, messages), a YAML file (comments), or a folder of
them. Code is not checked, nor is the length of sentences in tables. Status 1 with findings.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from prose_blocks import blocks_of

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PAGES = (
    *("README.md", "SECURITY.md", "CONTRIBUTING.md"),
    *(f"docs/{name}.md" for name in ("architecture", "client", "conformance", "deploying", "faults", "gpu")),
    *(f"docs/{name}.md" for name in ("inside", "kubernetes", "licences", "native", "open-inference-protocol")),
    *(f"docs/{name}.md" for name in ("operating", "performance", "ray", "scaling", "scoring", "training")),
    *(f"docs/{name}.md" for name in ("index", "getting-started", "concepts", "glossary", "configuration", "metrics")),
    *(f"docs/{name}.md" for name in ("alerts", "command-line", "notebook", "runbook", "upgrading")),
    *("examples/README.md", "export/weights/README.md", "samples/README.md"),
)
"""The pages that `make prose` checks. A page joins the list when it has no findings."""

SOURCES: tuple[str, ...] = (
    *(
        "service",
        "commandline",
        "digitserve",
        "playground",
        "ray_serve",
        "bench",
        "client",
        "native",
        "tests",
        "scripts",
    ),
    *("export", "examples", "fuzz", "deploy", ".github", "proto", "docker-compose.yml"),
    *(f"compose.{name}.yml" for name in ("alertmanager", "gpu", "scale", "tls", "tokens", "webgpu")),
)
"""The folders and files of programs that `make prose` checks, likewise."""

SUFFIXES = {".md", ".py", ".rs", ".yml", ".yaml"}
GENERATED = {"pb", "target", "node_modules", "_minpb.py"}
EXAMPLES = {"scripts/prose.py", "tests/test_prose.py"}
"""Files that contain the habits as data."""

MAX_WORDS = 25

PLACES = ("folder", "directory", "file", "path", "host", "machine", "node", "page", "place", "row", "column", "point")
UNITS = "cores|rounds|seconds|minutes|hours|days|nodes|workers|million|thousand|times"
NUMBERS = "ten|eleven|twelve|thirteen|fifteen|sixteen|twenty|thirty|forty|fifty|sixty|eighty|hundreds?|dozens?"
HABITS = {
    r"\b(whoever|whomever|whatever|whichever|wherever)\b": "a noun that names the actor or the thing",
    r"\b(some|no|any|every)body('s)?\b|\b(some|any)one\b|\bno one\b": "the actor: client, server, operator",
    r"\bwhat\b(?![^.;|]*\?)": "a noun phrase instead of a headless relative",
    r"\bnothing\b": "an assertion; no-op server",
    r"\b(hears?|heard|hearing)\b": "receives, detects",
    r"\b(tells?|told|telling)\b": "reports, logs, sends",
    r"\b(asks?|asked|asking)\b": "requests, sends, calls",
    r"\b(says?|said|saying)\b": "reports, states, logs; a heading or a field that contains the text",
    "".join(rf"(?<!\b{place} )(?<!\b{place}s )" for place in PLACES) + r"\bwhere\b": "if or when; where is for places",
    r"\b(anew|for ever|beside|as ever|give or take|at hand|at a time|all the same|by itself alone)\b": "a plain adverb",
    r"\b(goes|go|going|went) on\b": "continue",
    r"\bsome (?=[\d])": "about",
    r"\b(callers?)\b": "client",
    r"(?<!\bconnection )\b(refus(e|es|ed|ing|als?))\b": "reject",
    r"\b(strangers?)\b": "unauthenticated client",
    r"\blet in\b": "authenticate, admit",
    r"\b(waiting line|lines? of (images|waiting)|(full|the) line (is full|of images))\b": "queue",
    r"\b(a|the) sentence\b": "message",
    r"\b(but for)\b": "except",
    r"\bin (company|force|hand)\b": "a plain verb or adjective",
    r"\bwants? to be\b|\bis held to\b|\bheld (against|to)\b": "compared with, checked against",
    rf"\b({NUMBERS})\b|\b(two|three|four|five|six|seven|eight|nine)\s+({UNITS})\b": "digits",
}
"""Habits of translated prose, as regular expressions, and the expected expressions."""


class Finding(NamedTuple):
    """One fault of a page."""

    page: str
    line: int
    problem: str
    expected: str

    def __str__(self) -> str:
        """`page:line: problem; expected X`."""
        return f"{self.page}:{self.line}: {self.problem}; expected {self.expected}"


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """Yield each sentence of a block, with its offset."""
    offset = 0
    for end in [*re.finditer(r"(?<!e\.g)(?<!i\.e)[.!?][)*\"]*(?=\s)", text), None]:
        stop = end.end() if end else len(text)
        yield offset + len(text[offset:stop]) - len(text[offset:stop].lstrip()), text[offset:stop]
        offset = stop


def words(text: str) -> int:
    """Count the words that hold a letter or a digit."""
    return sum(bool(re.search(r"\w", word)) for word in text.split())


def findings(page: str, text: str) -> Iterator[Finding]:
    """Yield the findings of a file."""
    for block in blocks_of(Path(page).suffix, text):
        for habit, expected in HABITS.items():
            for match in re.finditer(habit, block.text, re.IGNORECASE):
                line = block.line + block.text.count("\n", 0, match.start())
                yield Finding(page, line, f"{match[0]!r}", expected)
        for offset, prose in [] if block.is_table else sentences(block.text):
            if (count := words(prose)) > MAX_WORDS:
                line = block.line + block.text.count("\n", 0, offset)
                yield Finding(page, line, f"sentence of {count} words", f"at most {MAX_WORDS}")


def files(path: Path) -> Iterator[Path]:
    """Yield the files with prose below a path, without generated ones."""
    below = sorted(path.rglob("*")) if path.is_dir() else [path]
    below = [file for file in below if file.suffix in SUFFIXES and not GENERATED & set(file.parts)]
    return (file for file in below if shown(file) not in EXAMPLES)


def main() -> int:
    """Print the findings; return the exit status."""
    parser = argparse.ArgumentParser(description="Check prose for plain technical English.")
    parser.add_argument(
        "paths", nargs="*", default=(*PAGES, *SOURCES), metavar="PATH", help="path below the clone's root"
    )
    paths = [file for path in parser.parse_args().paths for file in files(ROOT / path)]
    results = [result for path in paths for result in findings(shown(path), path.read_text())]
    for result in results:
        print(result)
    return bool(results)


def shown(path: Path) -> str:
    """Return the path relative to the clone, if it is in the clone."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main())
