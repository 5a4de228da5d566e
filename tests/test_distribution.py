"""The distributions as pip installs them: server and client work separately, outside the clone."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from typing import TYPE_CHECKING, Any

import digitserve_client
import pytest
from conftest import ANSWERS_WITHIN, ROOT, SAMPLES, ServiceProcess, serving
from environments import exclusive, install, python_with, requirements
from import_table import TABLE

import service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from email.message import Message
    from pathlib import Path

IMPORT_PACKAGES = {
    "digitserve": {"commandline", "digitserve", "export", "playground", "ray_serve", "service"},
    "digitserve_client": {"digitserve_client"},
}
NAMES_OF = {"google": "protobuf", "grpc_health": "grpcio-health-checking", "grpc": "grpcio"}
"""Distributions by import packages with another name."""


def pyproject(folder: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())


def test_server_client_and_native_transport_have_one_version() -> None:
    crate = tomllib.loads((ROOT / "native" / "Cargo.toml").read_text())
    assert {service.__version__, digitserve_client.__version__, crate["package"]["version"]} == {service.__version__}


def test_every_distribution_has_the_metadata_of_pypi() -> None:
    for folder in (".", "client", "native"):
        project = pyproject(folder)["project"]
        assert project["authors"] == [{"name": "The digitserve authors"}]
        assert project["license"] == "Apache-2.0"
        assert project["keywords"] == sorted(project["keywords"])
        assert project["classifiers"] == sorted(project["classifiers"])
        assert not [line for line in project["classifiers"] if line.startswith("License ::")], (
            "the field license states it"
        )
        assert project["requires-python"] == ">=3.11"
        assert "  " not in project["description"]
    assert (ROOT / "client" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_client_has_the_bounds_of_the_server() -> None:
    assert set(pyproject("client")["project"]["dependencies"]) <= set(pyproject(".")["project"]["dependencies"])


def test_the_service_imports_only_packages_of_the_serving_image() -> None:
    """The serving image installs only the other packages: scripts/requirements.py without `export`."""
    left_out = pyproject(".")["tool"]["digitserve"]["export-dependencies"]
    serving_needs = {
        NAMES_OF.get(name, name)
        for package in TABLE
        if package.name.partition(".")[0] == "service"
        for name in package.third_party
    }
    assert not serving_needs & set(left_out)
    assert set(left_out) <= set(pyproject(".")["project"]["dependencies"])


@pytest.fixture
def python_of() -> Iterator[Callable[..., Path]]:
    """A function that installs these wheels, and no other of ours, into one environment and returns its Python."""

    def with_wheels(*wheels: Path) -> Path:
        python = python_with("digitserve", *requirements("export", "client"), constrained=True)
        install(python, *wheels)
        return python

    with exclusive("digitserve-in-use"):
        yield with_wheels


@pytest.fixture(scope="module")
def client_alone(wheels: dict[str, Path]) -> Path:
    """The Python of `pip install 'digitserve-client[image]'`."""
    python = python_with("digitserve-client", *requirements("client alone"), "pillow", constrained=True)
    install(python, wheels["digitserve_client"])
    return python


def run(*command: str | Path, cwd: Path, status: int = 0) -> str:
    """Run a command in an environment that names no folder of the clone; return its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=ANSWERS_WITHIN
    )
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


@pytest.mark.slow
def test_each_wheel_installs_its_import_packages_and_no_other(wheels: dict[str, Path]) -> None:
    for name, wheel in wheels.items():
        with zipfile.ZipFile(wheel) as archive:
            top = {entry.partition("/")[0] for entry in archive.namelist()}
        assert {one for one in top if not one.endswith(".dist-info")} == IMPORT_PACKAGES[name]


@pytest.mark.slow
def test_each_wheel_carries_its_metadata_licence_and_data(wheels: dict[str, Path]) -> None:
    server, client = (zipfile.ZipFile(wheels[name]) for name in ("digitserve", "digitserve_client"))
    for archive in (server, client):
        about = metadata(archive)
        assert (about["Author"], about["License-Expression"]) == ("The digitserve authors", "Apache-2.0")
        assert about["Description-Content-Type"] == "text/markdown"
        assert [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert "digitserve_client/py.typed" in client.namelist()
    assert metadata(client).get_all("Provides-Extra") == ["heic", "image"]
    assert {path.name for path in SAMPLES.glob("*ubyte")} <= {
        name.rpartition("/")[2] for name in server.namelist() if name.startswith("commandline/samples/")
    }
    assert "export/weights/sigmoid.safetensors" in server.namelist()


def metadata(archive: zipfile.ZipFile) -> Message:
    [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(archive.read(name).decode())


@pytest.mark.slow
def test_the_server_alone_exports_serves_and_names_the_extras_of_other_commands(
    wheels: dict[str, Path], python_of: Callable[..., Path], tmp_path: Path, digits: Any
) -> None:
    command = python_of(wheels["digitserve"]).with_name("digitserve")
    assert "serve" in run(command, "--help", cwd=tmp_path)
    assert "wrote model.onnx" in run(command, "export", cwd=tmp_path)
    with started(command, tmp_path) as one, digitserve_client.DigitsClient(one.address) as client:
        assert client.predict(digits[::10]).digits.shape == (10,)
    for arguments in (("predict", "a.png"), ("health",), ("demo",)):
        said = run(command, *arguments, cwd=tmp_path, status=1)
        assert said == "digitserve_client: not installed; expected the extra client: pip install 'digitserve[client]'\n"
    said = run(command, "play", cwd=tmp_path, status=1)
    assert "expected the extra play: pip install 'digitserve[play]'" in said
    said = run(command, "bench", cwd=tmp_path, status=1)
    assert said.startswith("bench: is not installed; expected a clone of the project")


@contextlib.contextmanager
def started(command: Path, folder: Path) -> Iterator[ServiceProcess]:
    """Run `digitserve serve` in the folder, until the end of the block."""
    arguments = ["serve", "--transport", "grpcio", "--port", "0", "--metrics-port", "0", "--log-format", "json"]
    one = ServiceProcess(subprocess.Popen([command, *arguments], cwd=folder, stderr=subprocess.PIPE, text=True))
    try:
        one.wait_for("serving")
        yield one
        assert one.stop() == 0
    finally:
        one.close()


@pytest.mark.slow
def test_installed_commands_work_in_an_empty_folder(
    wheels: dict[str, Path], python_of: Callable[..., Path], tmp_path: Path
) -> None:
    command = python_of(*wheels.values()).with_name("digitserve")
    run(command, "export", cwd=tmp_path)
    with started(command, tmp_path) as one:
        assert run(command, "health", "--address", one.address, cwd=tmp_path) == "SERVING\n"
        assert "10 handwritten digits" in run(command, "demo", "--address", one.address, cwd=tmp_path)
        picture = SAMPLES / "digits-100-images-idx3-ubyte"
        told = run(command, "predict", picture, "--json", "--limit", "3", "--address", one.address, cwd=tmp_path)
        assert [answer["image"] for answer in json.loads(told)] == [0, 1, 2]


PROGRAM = """
import asyncio, io, sys
import service, client  # the user's own
import numpy as np
from digitserve_client import AsyncDigitsClient, DigitsClient, to_mnist

async def main() -> None:
    async with AsyncDigitsClient(sys.argv[1]) as client:
        print((await client.predict(sys.argv[2])).digits[:3].tolist())

with DigitsClient(sys.argv[1]) as found:
    print(found.predict(to_mnist(sys.argv[2])).digits[:3].tolist())
asyncio.run(main())
print(service.OWN, client.OWN)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder with modules that have the names of folders of this clone."""
    (tmp_path / "client").mkdir()
    (tmp_path / "service.py").write_text("OWN = 'my service'\n")
    (tmp_path / "client" / "__init__.py").write_text("OWN = 'my client'\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


@pytest.fixture(scope="module")
def shared(model_path: Path) -> Iterator[ServiceProcess]:
    with serving(model_path) as one:
        yield one


@pytest.mark.slow
def test_the_client_works_in_a_folder_with_other_service_and_client_modules(
    client_alone: Path, project: Path, shared: ServiceProcess
) -> None:
    told = run(
        client_alone, "program.py", shared.address, SAMPLES / "digits-100-images-idx3-ubyte", cwd=project
    ).splitlines()
    assert told[0] == told[1]
    assert told[2] == "my service my client"


@pytest.mark.slow
def test_the_client_alone_is_light_and_typed(client_alone: Path, project: Path) -> None:
    listed = json.loads(run(client_alone, "-m", "pip", "list", "--format", "json", cwd=project))
    assert not {"onnxruntime", "onnx", "pydantic", "typer", "digitserve"} & {one["name"] for one in listed}
    mypy = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", project / "cache"]
    said = run(*mypy, "--python-executable", client_alone, "program.py", cwd=project)
    assert said.startswith("Success")
