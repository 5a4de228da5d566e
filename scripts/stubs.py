"""Generates service/pb from proto/, or with --check says whether it is up to date."""

from __future__ import annotations

import filecmp
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent.parent
PROTO = ROOT / "proto"
PB = Path("service/pb")


def generate(out: Path) -> None:
    """Write the stubs below `out`; the mapping of the root makes them import each other as service.pb."""
    protos = sorted(PROTO.rglob("*.proto"))
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", f"-I{PB}={PROTO}", *outputs, *map(str, protos)]) != 0:
        sys.exit("protoc refused a .proto; what it said stands above")


def check(fresh: Path) -> list[str]:
    """The generated files that are missing, stale or no longer wanted."""
    wanted, found = ({p.relative_to(root) for p in (root / PB).rglob("*_pb2*.py*")} for root in (fresh, ROOT))
    found = {path for path in found if "__pycache__" not in path.parts}
    differ = {p for p in wanted & found if not filecmp.cmp(fresh / p, ROOT / p, shallow=False)}
    return sorted(map(str, (wanted ^ found) | differ))


def main() -> None:
    """Generate in place, or compare."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        generate(fresh)
        if "--check" in sys.argv[1:]:
            if stale := check(fresh):
                sys.exit(f"not what proto/ says: {', '.join(stale)}; run `make stubs`")
        else:
            shutil.rmtree(ROOT / PB, ignore_errors=True)
            shutil.copytree(fresh / PB, ROOT / PB)


if __name__ == "__main__":
    main()
