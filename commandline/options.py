"""Options of every command: its version, and the files and folders that it writes, checked before its work begins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from service import __version__


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(f"digitserve {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
]


def writable_file(path: Path) -> Path:
    """Return a file's path; ValueError if the file cannot be written. Its folder must exist."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected a file")
    if not path.parent.is_dir():
        raise ValueError(f"folder {path.parent} does not exist; expected a file in an existing folder")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{path} cannot be written; expected a file that you may write")
    return path


def writable_folder(path: Path) -> Path:
    """Return a folder's path; ValueError if it cannot be created or written. The command creates it and its parents."""
    existing = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not existing.is_dir():
        raise ValueError(f"{existing} is a file; expected a folder")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"{existing} cannot be written; expected a folder that you may write")
    return path


def _output_file(path: Path | None) -> Path | None:
    return None if path is None else _refusing(writable_file, path)


def _output_folder(path: Path | None) -> Path | None:
    return None if path is None else _refusing(writable_folder, path)


def _refusing(check: Any, path: Path) -> Path:
    try:
        return Path(check(path))
    except (OSError, ValueError) as e:
        raise typer.BadParameter(str(e)) from None


def output_file(*names: str, help: str, **settings: Any) -> Any:  # noqa: A002 (typer's own word)
    """An option for a file to write: invalid usage, status 2, if it cannot be written."""
    return typer.Option(*names, help=help, callback=_output_file, **settings)


def output_folder(*names: str, help: str, **settings: Any) -> Any:  # noqa: A002 (as above)
    """An option for a folder to write into, which the command creates and prints."""
    return typer.Option(*names, help=help, callback=_output_folder, **settings)
