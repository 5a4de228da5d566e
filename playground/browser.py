"""Opens the page in the user's browser, if there is one."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import urllib.request
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_DESKTOPS = ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME")

ANSWERS_WITHIN = 60.0
"""Seconds that the page may take to answer before it is left to the person."""


def is_wanted(environment: Mapping[str, str], platform: str, *, is_terminal: bool) -> bool:
    """Whether a user is at a desktop of this machine: not in a pipe, nor over SSH."""
    if not is_terminal or "SSH_CONNECTION" in environment:
        return False
    return platform in ("darwin", "win32") or any(environment.get(name) for name in _DESKTOPS)


def open_when_answering(url: str, environment: Mapping[str, str]) -> None:
    """Open the page once it answers; return at once. The port must be listened on already."""
    threading.Thread(target=_open, args=(url, environment), name="browser", daemon=True).start()


def _open(url: str, environment: Mapping[str, str]) -> None:
    try:
        directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        directly.open(url, timeout=ANSWERS_WITHIN).close()
        # In a session of its own: a browser that is started here survives Ctrl-C and does not write to the terminal.
        subprocess.run(  # noqa: S603 (the one argument from outside is the address that was just listened on)
            _command(url, environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            check=False,
        )
    except OSError:
        return  # the address stands in the terminal


def _command(url: str, environment: Mapping[str, str]) -> list[str]:
    explorer = shutil.which("explorer.exe") if environment.get("WSL_DISTRO_NAME") else None
    if explorer and not environment.get("BROWSER"):
        return [explorer, url]  # the browser of Windows; Python's webbrowser knows none under WSL
    return [sys.executable, "-m", "webbrowser", url]
