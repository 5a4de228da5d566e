"""What pyproject.toml asks for, one requirement a line: what is installed without building the project.

python scripts/requirements.py [EXTRA ...]

With the extra `gpu` ONNX Runtime for CUDA takes the place of the one for the CPU, which pip cannot express: both are
one import package and overwrite each other's files.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """The dependencies that serving needs, and those of the extras named and of the extras that these name."""
    project = tomllib.loads(pyproject.read_text())["project"]
    requirements, open_ = set(project["dependencies"]), list(extras)
    while open_:
        for requirement in project["optional-dependencies"][open_.pop()]:
            if ours := re.fullmatch(rf"{project['name']}\[(.+)\]", requirement):
                open_ += ours[1].split(",")
            else:
                requirements.add(requirement)
    return sorted(requirements - {"onnxruntime"} if "gpu" in extras else requirements)


if __name__ == "__main__":
    print("\n".join(requirements(Path("pyproject.toml"), sys.argv[1:])))
