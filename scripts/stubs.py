"""Generates service/pb from proto/, or with --check says whether it is up to date.

The compiler is that of the oldest grpcio and protobuf that pyproject.toml allows: generated code runs with what made it
and with newer ones, of protobuf's next major version too, and refuses to run with older ones.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROTO = ROOT / "proto"
PB = Path("service/pb")
COMPILER = "grpcio-tools==1.75.1"
"""The lower bounds of grpcio (1.75.1) and protobuf (6.31.1) in pyproject.toml follow from it."""
TOOLS = ROOT / ".venv" / "stubs"


class CompilerMissingError(Exception):
    """The pinned compiler is not here and cannot be installed."""


def compiler() -> Path:
    """Return the folder that holds the compiler, installed there on first use.

    By itself: beside what the tests use it would hold protobuf below 7, which it needs for none of this.
    """
    folder = TOOLS / COMPILER
    if not folder.exists():
        TOOLS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=TOOLS) as scratch:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            done = subprocess.run([*pip, "--target", scratch, COMPILER], capture_output=True, text=True, check=False)
            if done.returncode:
                raise CompilerMissingError(f"{COMPILER}: cannot be installed: {done.stderr.strip()}")
            shutil.copytree(scratch, f"{scratch}.whole")
        try:
            Path(f"{scratch}.whole").rename(folder)
        except OSError:  # another run was quicker
            shutil.rmtree(f"{scratch}.whole")
    return folder


def generate(out: Path) -> None:
    """Write the stubs below `out`; the mapping of the root makes them import each other as service.pb."""
    protos = sorted(PROTO.rglob("*.proto"))
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PB}={PROTO}", *outputs, *map(str, protos)]
    if subprocess.run(command, env={**os.environ, "PYTHONPATH": str(compiler())}, check=False).returncode:
        sys.exit("protoc refused a .proto; what it said stands above")


def check(fresh: Path) -> list[str]:
    """The generated files that are missing, stale or no longer wanted."""
    wanted, committed = ({p.relative_to(root) for p in (root / PB).rglob("*_pb2*.py*")} for root in (fresh, ROOT))
    committed = {path for path in committed if "__pycache__" not in path.parts}
    differ = {p for p in wanted & committed if not filecmp.cmp(fresh / p, ROOT / p, shallow=False)}
    return sorted(map(str, (wanted ^ committed) | differ))


def main() -> None:
    """Generate in place, or compare."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        try:
            generate(fresh)
        except CompilerMissingError as error:
            sys.exit(str(error))
        if "--check" in sys.argv[1:]:
            if stale := check(fresh):
                sys.exit(f"not what proto/ says: {', '.join(stale)}; run `make stubs`")
        else:
            shutil.rmtree(ROOT / PB, ignore_errors=True)
            shutil.copytree(fresh / PB, ROOT / PB)


if __name__ == "__main__":
    main()
