"""The programs that digitserve runs under one name; each is `python -m` its module too."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

CLONE = Path(__file__).parent.parent


class Program(NamedTuple):
    """A module with a `__main__`, and the line that `digitserve --help` shows."""

    module: str
    about: str


PROGRAMS = {
    "serve": Program("service", "Serve a model.onnx over gRPC until Ctrl-C."),
    "export": Program("export", "Write the trained network as model.onnx; train, measure and draw it."),
    "play": Program("playground", "Serve the page that draws digits and shows every layer."),
    "ray": Program("ray_serve", "Serve a model.onnx on a Ray cluster."),
    "bench": Program("bench", "Compare this server with others; in a clone."),
}


def run(name: str, arguments: list[str]) -> int:
    """Run a program with its own arguments and return its exit status."""
    program = PROGRAMS[name]
    if program.module == "bench" and not (CLONE / "bench" / "__main__.py").exists():
        print("bench: is not installed; expected a clone of the project, which has `make bench`", file=sys.stderr)
        return 1
    sys.argv = [f"{_own_name()} {name}", *arguments]  # which its `--help` shows
    return int(import_module(f"{program.module}.__main__").main())


def _own_name() -> str:
    return "digitserve" if Path(sys.argv[0]).stem == "digitserve" else "python -m digitserve"
