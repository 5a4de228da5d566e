"""Build the programs of the conformance tests: public gRPC tools, and the clients of examples/.

The programs are below build/ until their version or their sources change. Tests are skipped if their language is not
installed, and fail if a build fails.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOOLS = ROOT / "build" / "tools"
EXAMPLES = ROOT / "examples"
BUILT = ROOT / "build" / "examples"
BUILDS_WITHIN = 1200  # seconds; buf takes minutes on 2 cores

GO_TOOLS = {
    "grpcurl": "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4",
    "grpc-health-probe": "github.com/grpc-ecosystem/grpc-health-probe@v0.4.62",
    "ghz": "github.com/bojand/ghz/cmd/ghz@v0.93.0",
    "buf": "github.com/bufbuild/buf/cmd/buf@v1.75.0",
}


def program(name: str) -> str:
    """Find an installed program, or skip the test."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name}: not found on this machine")
    return found


def build(*command: str | Path, folder: Path, **environment: str | Path) -> None:
    """Run one step of a build, or fail the test with its output."""
    built = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=BUILDS_WITHIN,
    )
    if built.returncode:
        pytest.fail(f"{' '.join(map(str, command))}: failed in {folder}:\n{built.stdout[-3000:]}")


def go_tool(name: str) -> Path:
    """Install a published Go program at its pinned version; Go's checksum database verifies its sources."""
    go = program("go")
    module = GO_TOOLS[name]
    folder = TOOLS / f"{name}@{module.rsplit('@', 1)[1]}"
    if not (folder / name).exists():
        build(go, "install", module, folder=ROOT, GOBIN=folder, GOFLAGS="-buildvcs=false")
    return folder / name


def h2spec() -> Path:
    """Build h2spec with gRPC's headers in its requests. It has no option for them, so grpc.patch adds them."""
    go = program("go")
    sources = ROOT / "tests" / "conformance" / "h2spec"
    folder = TOOLS / "h2spec"
    with built_once(folder, sources) as needed:
        if needed:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(sources, folder)
            build(go, "mod", "vendor", folder=folder, GOFLAGS="")
            # Inside a repository, `git apply` skips ignored paths. The ceiling hides the repository.
            build(program("git"), "apply", "grpc.patch", folder=folder, GIT_CEILING_DIRECTORIES=TOOLS)
            build(go, "build", "-mod=vendor", "-o", "h2spec", ".", folder=folder, GOFLAGS="-buildvcs=false")
    return folder / "h2spec"


@contextmanager
def built_once(folder: Path, *sources: Path) -> Iterator[bool]:
    """Report whether these sources need a build; record the build in the folder if the body succeeds."""
    sha = hashlib.sha256()
    for path in sorted(path for source in sources for path in (source, *source.rglob("*")) if path.is_file()):
        sha.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    note = folder / "sources.sha256"
    needed = not note.exists() or note.read_text() != sha.hexdigest()
    yield needed
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(sha.hexdigest())


@dataclass(frozen=True)
class Client:
    """The two programs of examples/LANGUAGE, and their working folder."""

    predict: list[str | Path]
    check: list[str | Path]
    folder: Path


def go_client() -> Client:
    go, folder, out = program("go"), EXAMPLES / "go", BUILT / "go"
    build("sh", "generate.sh", folder=folder, PROTOC=f"{sys.executable} -m grpc_tools.protoc", GOFLAGS="-mod=readonly")
    build(go, "build", "-mod=readonly", "-buildvcs=false", "-o", f"{out}/", "./predict", "./check", folder=folder)
    return Client([out / "predict"], [out / "check"], folder)


def node_client() -> Client:
    node, folder = program("node"), EXAMPLES / "node"
    with built_once(BUILT / "node", folder / "package-lock.json") as needed:
        if needed:
            build(program("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund", folder=folder)
    return Client([node, "predict.js"], [node, "check.js"], folder)


def rust_client() -> Client:
    folder, out = EXAMPLES / "rust", BUILT / "rust"
    build(program("cargo"), "build", "--quiet", "--locked", "--bins", "--target-dir", out, folder=folder)
    return Client([out / "debug" / "predict"], [out / "debug" / "check"], folder)


def java_client() -> Client:
    java, mvn, folder = program("java"), program("mvn"), EXAMPLES / "java"
    with built_once(BUILT / "java", folder / "pom.xml", folder / "src", ROOT / "proto") as needed:
        if needed:
            build(mvn, "--quiet", "--batch-mode", "clean", "process-classes", folder=folder)
    command: list[str | Path] = [java, "-cp", "target/classes:target/lib/*"]
    return Client([*command, "examples.Predict"], [*command, "examples.Check"], folder)


CLIENTS = {"go": go_client, "java": java_client, "node": node_client, "rust": rust_client}
