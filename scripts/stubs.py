"""Generate the server's and the client's stubs from proto/, or check with --check that they are up to date.

Both packages register a contract under its path below proto/, so that one process can hold both.

The compiler is that of the oldest grpcio and protobuf that pyproject.toml allows. Generated code runs with these and
newer versions, including protobuf's next major version, but not with older ones.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROTO = ROOT / "proto"
STUBS = {
    "service/pb": ("digits", "grpc", "inference"),
    "client/digitserve_client/pb": ("digits",),
}
"""Folders of stubs, with the parts of proto/ in each."""
COMPILER = "grpcio-tools==1.75.1"
"""It determines the lower bounds of grpcio (1.75.1) and protobuf (6.31.1) in pyproject.toml."""
TOOLS = ROOT / ".venv" / "stubs"


class CompilerMissingError(Exception):
    """The pinned compiler is not installed and cannot be installed."""


def compiler() -> Path:
    """Return the folder that holds the compiler, installed there on first use.

    The folder is separate, because in the tests' environment the compiler would require protobuf below 7.
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
        except OSError:  # another run installed it first
            shutil.rmtree(f"{scratch}.whole")
    return folder


def generate(out: Path) -> None:
    """Write the stubs below `out`."""
    for folder, contracts in STUBS.items():
        package = folder.removeprefix("client/").replace("/", ".")
        _compile(out / folder, [path for name in contracts for path in sorted((PROTO / name).rglob("*.proto"))])
        for path in (out / folder).rglob("*.py*"):
            path.write_text(_import_within(package, path.read_text()))


def _compile(out: Path, protos: list[Path]) -> None:
    out.mkdir(parents=True)
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *outputs, *map(str, protos)]
    if subprocess.run(command, env={**os.environ, "PYTHONPATH": str(compiler())}, check=False).returncode:
        sys.exit("protoc rejected a .proto; its message is above")


def _import_within(package: str, stub: str) -> str:
    """Name a stub, and those that it imports, by their package: protoc names them by their path below proto/."""
    stub = re.sub(
        r"^from ((?!google)\S+) import (\w+_pb2) as", rf"from {package}.\1 import \2 as", stub, flags=re.MULTILINE
    )
    return re.sub(r"(?<=AndMessages\(DESCRIPTOR, ')", f"{package}.", stub)


def check(fresh: Path) -> list[str]:
    """Return the generated files that are missing, stale or obsolete."""
    wanted, present = (
        {path.relative_to(root) for folder in STUBS for path in (root / folder).rglob("*_pb2*.py*")}
        for root in (fresh, ROOT)
    )
    present = {path for path in present if "__pycache__" not in path.parts}
    differ = {path for path in wanted & present if not filecmp.cmp(fresh / path, ROOT / path, shallow=False)}
    return sorted(map(str, (wanted ^ present) | differ))


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
                sys.exit(f"not up to date with proto/: {', '.join(stale)}; run `make stubs`")
        else:
            for folder in STUBS:
                shutil.rmtree(ROOT / folder, ignore_errors=True)
                shutil.copytree(fresh / folder, ROOT / folder)


if __name__ == "__main__":
    main()
