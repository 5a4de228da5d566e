"""The examples that need no compiler, run as in their README; tests/conformance runs the others."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from shutil import which
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ANSWERS_WITHIN, ROOT, serving
from http_requests import http_address

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import ServiceProcess

EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "notebook" / "digits.ipynb"
needs_curl = pytest.mark.skipif(which("curl") is None, reason="curl: not found on this machine")


@pytest.fixture(scope="module")
def server(model_path: Path) -> Iterator[ServiceProcess]:
    with serving(model_path, "--http-port", "0") as service:
        yield service


def run(server: ServiceProcess, folder: str, *command: str | Path) -> str:
    """Run an example in its folder; return its output."""
    environment = {**os.environ, "DIGITS_ADDRESS": server.address, "HTTP_ADDRESS": http_address(server)}
    environment |= {"MPLBACKEND": "agg", "no_proxy": "*"}
    done = subprocess.run(
        command,
        cwd=EXAMPLES / folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=ANSWERS_WITHIN,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def cells(kind: str) -> list[str]:
    notebook: dict[str, Any] = json.loads(NOTEBOOK.read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_the_python_example_reads_a_digit(server: ServiceProcess) -> None:
    assert run(server, "python", sys.executable, "predict.py") == "digit 0, activation 0.98\n"


@needs_curl
def test_curl_reads_a_digit_as_json(server: ServiceProcess) -> None:
    reply = json.loads(run(server, "curl", "./predict.sh"))
    assert reply["digits"] == [0]
    assert round(reply["activations"][0][0], 2) == 0.98


@needs_curl
def test_curl_explains_two_neurons_as_json(server: ServiceProcess) -> None:
    reply = json.loads(run(server, "curl", "./explain.sh"))
    assert reply["digits"] == [0]
    output, hidden = reply["explanations"][0]
    assert (output["neuron"], hidden["neuron"]) == ({"layer": 3, "index": 0}, {"layer": 1, "index": 0})
    assert output["bias"] + sum(output["contributions"]) == pytest.approx(reply["sums3"][0][0], abs=1e-4)


@needs_curl
def test_curl_infers_three_digits_from_a_binary_tensor(server: ServiceProcess) -> None:
    reply = json.loads(run(server, "curl", "./infer.sh"))
    assert reply["outputs"] == [{"name": "digit", "datatype": "INT64", "shape": [3], "data": [0, 0, 0]}]


def test_the_notebook_runs_from_its_first_cell_to_its_last(server: ServiceProcess) -> None:
    code = "\n".join(cells("code"))
    ast.parse(code)
    printed = run(server, "notebook", sys.executable, "-c", code)
    assert re.match(r"9\d of 100 right, \d+ sure\n", printed), printed


def test_the_notebook_holds_no_output() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    assert [cell for cell in notebook["cells"] if cell.get("outputs") or cell.get("execution_count")] == []


def test_the_readme_names_each_folder() -> None:
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    assert set(re.findall(r"^\| `(\w+)` \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE)) == folders
