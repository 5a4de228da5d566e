"""The wheel of the native transport: a library outside the project's own package, which may be missing."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from service import __version__

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
