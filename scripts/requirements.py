"""What pyproject.toml asks for, one requirement a line: the image installs it without building the project.

python scripts/requirements.py [EXTRA ...]
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """The dependencies that serving needs, and those of the extras named."""
    project = tomllib.loads(pyproject.read_text())["project"]
    return sorted({*project["dependencies"], *(r for e in extras for r in project["optional-dependencies"][e])})


if __name__ == "__main__":
    print("\n".join(requirements(Path("pyproject.toml"), sys.argv[1:])))
