"""Names are standard terms: no identifier or file name has a word of the former dialect."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMER = {
    "company": "adaptive batch size",
    "stranger": "unauthenticated",
    "patience": "the timeout's name",
    "outbox": "span export",
    "keeper": "device recovery",
    "sentence": "message",
    "trouble": "error, unhealthy reason",
    "caller": "client",
    "callers": "clients",
    "asked": "request, forced",
    "told": "notified, logged",
    "heard": "received",
    "came": "arrivals",
    "held": "gated, locked",
    "given": "the argument's name",
    "found": "result",
    "kept": "the container's name",
    "said": "output, message",
    "whole": "complete",
    "together": "batch",
    "unwell": "unhealthy",
    "stuck": "stalled",
    "squash": "activation",
    "nonsense": "out of distribution",
    "nothing": "no-op",
    "door": "admission",
    "look": "poll, reload",
    "ask": "call, probe",
    "tell": "notify, log",
    "hear": "receive",
    "refuse": "reject",
    "refusal": "rejection",
    "refused": "rejected",
    "spelled": "name, code",
}
"""Forbidden names, without leading and trailing underscores, and their replacements."""
PACKAGES = (
    *("service", "export", "client", "digitserve", "playground", "ray_serve", "commandline"),
    *("bench", "scripts", "fuzz"),
)
PYTHON = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py") if "pb" not in path.parts)
RUST = sorted(path for path in (ROOT / "native").rglob("*.rs") if "target" not in path.parts)


def python_names(path: Path) -> Iterator[tuple[str, int]]:
    """Yield every name that a file defines, with its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno


def rust_names(path: Path) -> Iterator[tuple[str, int]]:
    declared = r"\b(?:fn|struct|enum|trait|mod|const|static|type|let(?: mut)?)\s+(\w+)|^\s*(?:pub(?:\(\w+\))? )?(\w+): "
    for number, line in enumerate(path.read_text().splitlines(), 1):
        for match in re.finditer(declared, line.partition("//")[0]):
            yield match[1] or match[2], number


@pytest.mark.parametrize("path", [*PYTHON, *RUST], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_name_is_a_word_of_the_former_dialect(path: Path) -> None:
    names = python_names(path) if path.suffix == ".py" else rust_names(path)
    words = [(name.strip("_").lower(), number) for name, number in [(path.stem, 0), *names]]
    former = [f"line {number}: {word}; expected {FORMER[word]}" for word, number in words if word in FORMER]
    assert not former
