"""What pyproject.toml asks for, one requirement a line: what is installed without building the project.

python scripts/requirements.py [export] [EXTRA ...]

Prints what serving needs, with `export` what exporting needs too, and the extras. With the extra `gpu` ONNX Runtime for
CUDA takes the place of the one for the CPU, which pip cannot express: both are one import package and overwrite each
other's files.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def client_requirements(folder: Path) -> list[str]:
    """What the client alone needs."""
    project = tomllib.loads((folder / "client" / "pyproject.toml").read_text())["project"]
    return sorted(project["dependencies"])


def requirements(folder: Path, names: list[str]) -> list[str]:
    """The requirements of the project in a folder, with those that its extras name of our two projects."""
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
