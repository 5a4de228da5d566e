"""The imports that tests/import_table.py allows; all others are forbidden."""

from __future__ import annotations

import ast
import functools
import graphlib
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT
from import_table import BEGIN, END, FOLDERS, PAGE, TABLE, render

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = {package.name: package for package in TABLE}
SOURCES = sorted(
    path
    for name in {package.name.partition(".")[0] for package in TABLE}
    for path in (ROOT / FOLDERS.get(name, name)).rglob("*.py")
)


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removeprefix("client.").removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCES}


def package_of(module: str) -> str:
    """Return the package of the table that contains a module."""
    return max((name for name in PACKAGES if f"{module}.".startswith(f"{name}.")), key=len)


def imported(path: Path, *, at_run_time: bool = False) -> set[str]:
    """Return the modules that a file imports; at run time without late ones and those for type checkers."""
    modules = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if at_run_time else ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from service.handlers import digits` imports a module, `from service.errors import X` a name.
            modules |= {
                name if (name := f"{node.module}.{alias.name}") in MODULES else node.module or ""
                for alias in node.names
            }
    return {module for module in modules if module.partition(".")[0] not in sys.stdlib_module_names}


def is_ours(module: str) -> bool:
    return module in MODULES


@functools.cache
def used() -> dict[str, set[str]]:
    """The imports of each package: our packages, and third parties by their top-level name."""
    found: dict[str, set[str]] = {name: set() for name in PACKAGES}
    for module, path in MODULES.items():
        for other in imported(path):
            found[package_of(module)].add(package_of(other) if is_ours(other) else other.partition(".")[0])
    return {name: others - {name} for name, others in found.items()}


def test_a_package_imports_only_packages_above_it_in_the_table() -> None:
    names = [package.name for package in TABLE]
    for i, package in enumerate(TABLE):
        assert set(package.ours) <= set(names[:i]), package.name


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_has_exactly_the_imports_of_the_table(name: str) -> None:
    assert sorted(used()[name]) == sorted({*PACKAGES[name].ours, *PACKAGES[name].third_party})


def test_no_module_imports_itself_through_others() -> None:
    graph = {module: imported(path, at_run_time=True) & MODULES.keys() for module, path in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # a CycleError names the modules of a cycle


def test_no_file_is_over_300_lines_and_no_function_over_40() -> None:
    """Only the body of a function counts, because a command's options are in its signature."""
    for path in SOURCES:
        if "pb" in path.parts:
            continue
        text = path.read_text()
        assert len(text.splitlines()) <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[ast.get_docstring(node) is not None :] or node.body
                assert (node.end_lineno or 0) - body[0].lineno < 40, f"{path}: {node.name}"


def test_the_page_shows_the_table() -> None:
    assert BEGIN + render() + END in PAGE.read_text(), "update it: python tests/import_table.py"


KNOW_ONNX_RUNTIME = {
    "service/inference/model.py",
    "service/inference/built_in.py",
    "service/inference/plugins.py",
    "service/inference/provider_diagnostics.py",
    "service/inference/providers.py",
    "service/inference/sessions.py",
}


def test_only_model_and_provider_modules_import_onnx_runtime_and_no_server_module_imports_onnx() -> None:
    served = {path.relative_to(ROOT).as_posix(): imported(path) for path in SOURCES if path.parts[-2] != "export"}
    assert {name for name, modules in served.items() if "onnxruntime" in modules} == KNOW_ONNX_RUNTIME
    assert not [name for name, modules in served.items() if "onnx" in modules or "export" in modules]


@pytest.mark.parametrize("module", ["service.inference.model", "export.graph"])
def test_the_telemetry_of_onnx_runtime_is_disabled_before_its_import(module: str) -> None:
    look = f"""
import os, sys
class AtImport:
    def find_spec(self, name, *_):
        if name == "onnxruntime":
            print("ORT_DISABLE_TELEMETRY", os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, AtImport())
import {module}
"""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    seen = subprocess.run(
        [sys.executable, "-c", look], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert seen.stdout == "ORT_DISABLE_TELEMETRY 1\n"


def test_every_module_begins_with_a_docstring() -> None:
    for path in SOURCES:
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        assert docstring, path
        assert docstring.split("\n")[0].endswith((".", ":", '?"')), f"{path}: {docstring.splitlines()[0]}"


def test_the_stubs_are_generated_from_the_protos(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import stubs  # noqa: PLC0415 (a script, not a package)
    finally:
        sys.path.pop(0)
    try:
        stubs.generate(tmp_path)
    except stubs.CompilerMissingError as error:
        pytest.skip(str(error))
    assert stubs.check(tmp_path) == []


def test_every_behaviour_in_rust_and_python_is_in_the_table_with_its_tests() -> None:
    _, table = PAGE.read_text().split("| behaviour | native/src | service | tests |\n|---|---|---|---|\n")
    for row in table.split("\n\n")[0].splitlines():
        _, _, rust, python, tests, _ = row.split("|")
        assert all((ROOT / "native" / "src" / name).is_file() for name in re.findall(r"`(.+?)`", rust)), row
        assert all((ROOT / "service" / name).is_file() for name in re.findall(r"`(.+?)`", python)), row
        for name in re.findall(r"`(.+?)`", tests):
            file, _, test = name.partition("::")
            assert f"def {test}" in (ROOT / "tests" / f"{file}.py").read_text(), name
