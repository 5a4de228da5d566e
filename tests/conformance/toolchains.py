"""Builds what the conformance tests run: the tools of the gRPC world, and the clients of examples/.

Everything lands below build/ and is kept until its version or its sources change. A language that this machine
lacks skips its tests by name; what cannot be built fails them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

TOOLS = ROOT / "build" / "tools"
EXAMPLES = ROOT / "examples"
BUILT = ROOT / "build" / "examples"
BUILDS_WITHIN = 1200  # seconds; buf takes minutes on two cores

GO_TOOLS = {
    "grpcurl": "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4",
    "grpc-health-probe": "github.com/grpc-ecosystem/grpc-health-probe@v0.4.62",
    "ghz": "github.com/bojand/ghz/cmd/ghz@v0.93.0",
    "buf": "github.com/bufbuild/buf/cmd/buf@v1.75.0",
}


def program(name: str) -> str:
    """A program of this machine; skips the test without it."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name}: not found on this machine")
    return found


def build(*command: str | Path, folder: Path, **environment: str | Path) -> None:
    """Run one step of a build; fails the test with what it printed."""
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
    """A published Go program at its pinned version; Go's checksum database vouches for its sources."""
    go = program("go")
    module = GO_TOOLS[name]
    folder = TOOLS / f"{name}@{module.rsplit('@', 1)[1]}"
    if not (folder / name).exists():
        build(go, "install", module, folder=ROOT, GOBIN=folder, GOFLAGS="-buildvcs=false")
    return folder / name


def h2spec() -> Path:
    """h2spec with gRPC's headers in its requests: no option of it sets them, so grpc.patch does before it is built."""
    go = program("go")
    sources = ROOT / "tests" / "conformance" / "h2spec"
    folder, done = TOOLS / "h2spec", TOOLS / "h2spec" / "built"
    state = digest(sources)
    if not done.exists() or done.read_text() != state:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sources, folder)
        build(go, "mod", "vendor", folder=folder, GOFLAGS="")
        # Inside a repository `git apply` passes over paths that are ignored there; the ceiling hides the repository.
        build(program("git"), "apply", "grpc.patch", folder=folder, GIT_CEILING_DIRECTORIES=TOOLS)
        build(go, "build", "-mod=vendor", "-o", "h2spec", ".", folder=folder, GOFLAGS="-buildvcs=false")
        done.write_text(state)
    return folder / "h2spec"


def digest(*folders: Path) -> str:
    """SHA-256 of the sources in these folders, so that a change of any builds anew."""
    sha = hashlib.sha256()
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            sha.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()


@dataclass(frozen=True)
class Client:
    """The two programs of examples/LANGUAGE, and the folder they run in."""

    predict: list[str | Path]
    check: list[str | Path]
    folder: Path


def go_client() -> Client:
    go, folder, out = program("go"), EXAMPLES / "go", BUILT / "go"
    build("sh", "generate.sh", folder=folder, PROTOC=f"{sys.executable} -m grpc_tools.protoc", GOFLAGS="-mod=readonly")
    build(go, "build", "-mod=readonly", "-buildvcs=false", "-o", f"{out}/", "./predict", "./check", folder=folder)
    return Client([out / "predict"], [out / "check"], folder)


CLIENTS = {"go": go_client}
