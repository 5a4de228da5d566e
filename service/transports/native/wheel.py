"""The wheel of the native transport: a library outside the project's own package, which may be missing."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from service import __version__
from service.errors import StartError

NAME = "digitserve_native"


def load() -> Any:
    """Import the wheel."""
    return import_module(NAME)


def problem() -> str:
    """Return why this server cannot use the wheel; empty if it can."""
    if find_spec(NAME) is None:
        return "the wheel digitserve-native is not installed"
    try:
        version = load().__version__
    except ImportError as e:
        return f"the wheel digitserve-native does not load: {e}"
    if version != __version__:
        return f"the wheel digitserve-native has version {version}; expected {__version__}"
    return ""


def create_server(*positional: Any, **options: Any) -> Any:
    """Construct the wheel's `Server`; StartError if the wheel is from another commit of the same version."""
    try:
        return load().Server(*positional, **options)
    except TypeError as e:
        raise StartError(
            f"the wheel digitserve-native does not match the server: {e}; run `make native`, or choose grpcio"
        ) from e
