"""The modules of the native crate: their layers, their uses, and the size of files and functions."""

from __future__ import annotations

import re
from graphlib import CycleError, TopologicalSorter

import pytest
from conftest import ROOT

from service.transports.native.callbacks import PendingPrediction, PythonCallbacks

SOURCES = ROOT / "native" / "src"
MAX_LINES = 300
MAX_FUNCTION_LINES = 40


def sources() -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted(SOURCES.glob("*.rs"))}


def without_tests(text: str) -> str:
    """Remove unit tests, which are at the end of a file and may use modules of later layers."""
    return text.split("#[cfg(test)]\n#[path", 1)[0].split("#[cfg(test)]\nmod tests", 1)[0]


def uses(text: str, modules: set[str]) -> set[str]:
    """Return the modules whose paths occur in the text, by `use` or in full."""
    grouped = re.findall(r"\bcrate::\{([^;]*)\};", text)
    names = {*re.findall(r"\bcrate::(\w+)", text), *(name for group in grouped for name in re.findall(r"\w+", group))}
    return names & modules


def graph(texts: dict[str, str]) -> dict[str, set[str]]:
    modules = set(texts) - {"lib"}
    return {name: uses(without_tests(texts[name]), modules) - {name} for name in modules}


def layers(text: str) -> list[list[str]]:
    """Return the groups of `mod` lines in lib.rs, in order."""
    groups = [re.findall(r"^mod (\w+);$", paragraph, re.MULTILINE) for paragraph in text.split("\n\n")]
    return [group for group in groups if group]


def circle(modules: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(modules).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def later(modules: dict[str, set[str]], layered: list[list[str]]) -> list[str]:
    level = {name: at for at, layer in enumerate(layered) for name in layer}
    return [f"{name} -> {used}" for name, found in modules.items() for used in found if level[used] > level[name]]


def test_every_module_is_in_a_layer() -> None:
    tests = {path.stem for path in SOURCES.glob("*_tests.rs")}
    assert sorted(name for layer in layers(sources()["lib"]) for name in layer) == sorted(
        set(sources()) - tests - {"lib"}
    )


def test_the_modules_have_no_cycle_and_use_no_later_layer() -> None:
    texts = {name: text for name, text in sources().items() if not name.endswith("_tests")}
    found = graph(texts)
    assert sum(map(len, found.values())) > 2 * len(found), "too few uses were parsed"
    assert circle(found) == []
    assert later(found, layers(texts["lib"])) == []


@pytest.mark.parametrize(
    "use",
    [
        "use crate::call::Call;",
        "use crate::{call, sync};",
        "type Call = crate::call::Call;",
        "use crate::call::{self};",
    ],
)
def test_a_cycle_is_detected_in_every_form_of_use(use: str) -> None:
    texts = {
        "lib": "mod call;\nmod queue;\n\nmod sync;\n",
        "call": "use crate::queue::Entry;\n",
        "queue": use,
        "sync": "",
    }
    found = graph(texts)
    assert set(circle(found)) == {"call", "queue"}
    assert later({"call": {"sync"}}, layers(texts["lib"])) == ["call -> sync"]


def test_files_and_functions_are_short() -> None:
    long_files = {name: lines for name, text in sources().items() if (lines := len(text.splitlines())) > MAX_LINES}
    assert long_files == {}
    # rustfmt writes a function's end at the indentation of its start.
    function = re.compile(r"^( *)(?:pub )?(?:const )?(?:async )?fn (\w+)[^{]*\{\n.*?^\1\}$", re.MULTILINE | re.DOTALL)
    lengths = {
        f"{name}::{match[2]}": match[0].count("\n") + 1
        for name, text in sources().items()
        for match in function.finditer(without_tests(text))
    }
    assert len(lengths) > 100, "too few functions were parsed"
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


def public_methods(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")}


def test_rust_calls_exactly_the_methods_of_the_python_callbacks() -> None:
    texts = sources()
    callbacks = set(re.findall(r'intern!\(py, "(\w+)"\)', texts["python_host"]))
    pending = set(re.findall(r'pending\.call_method\d\(py, "(\w+)"', texts["responder"]))
    assert callbacks == public_methods(PythonCallbacks)
    assert pending == public_methods(PendingPrediction)
