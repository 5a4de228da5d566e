"""Print requirements from pyproject.toml, one per line, for an installation without a build of the project.

python scripts/requirements.py [export] [EXTRA ...]

It prints the requirements of serving, of exporting with `export`, and of the extras. With the extra `gpu`, ONNX Runtime
for CUDA replaces the one for the CPU. pip cannot express this: both have the same import package and overwrite each
other's files.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def client_requirements(folder: Path) -> list[str]:
    """Return the requirements of the client alone."""
    project = tomllib.loads((folder / "client" / "pyproject.toml").read_text())["project"]
    return sorted(project["dependencies"])


def requirements(folder: Path, names: list[str]) -> list[str]:
    """Return the requirements of the project in a folder, including extras that name our two projects."""
    server, client = (tomllib.loads((folder / path / "pyproject.toml").read_text()) for path in (".", "client"))
    projects = {project["project"]["name"]: project["project"] for project in (server, client)}
    only_export = set() if "export" in names else set(server["tool"]["digitserve"]["export-dependencies"])
    requirements_ = set(projects["digitserve"]["dependencies"]) - only_export
    remaining = [("digitserve", name) for name in names if name != "export"]
    while remaining:
        name, extra = remaining.pop()
        for requirement in projects[name]["optional-dependencies"][extra]:
            ours = re.fullmatch(r"(digitserve(?:-client)?)\[(.+)\]", requirement)
            if ours is None:
                requirements_.add(requirement)
                continue
            requirements_ |= set(projects[ours[1]]["dependencies"]) - only_export
            remaining += [(ours[1], each) for each in ours[2].split(",")]
    return sorted(requirements_ - {"onnxruntime"} if "gpu" in names else requirements_)


if __name__ == "__main__":
    print("\n".join(requirements(Path(), sys.argv[1:])))
