"""Startup of a command, before its slow imports: handle Ctrl-C, and name an extra that is missing."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def exit_on_interrupt(module: str) -> None:
    """Exit with status 130 at Ctrl-C, if the module of that name is the program; an import would print a traceback.

    A shell starts background jobs with SIGINT ignored; the program keeps that.
    """
    is_program = module == "__main__" or is_installed_script()
    if is_program and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))


def is_installed_script() -> bool:
    """Return whether the program is the installed script: `digitserve`, not `python -m digitserve`."""
    return sys.argv[0].rpartition(os.sep)[2].startswith("digitserve")


def program_name(module: str) -> str:
    """Return how the user started the program, for its usage line."""
    from service import usage  # noqa: PLC0415 (after Ctrl-C is handled)

    return usage.program_name(module)


@contextlib.contextmanager
def require_extra(extra: str) -> Iterator[None]:
    """Exit with one sentence if an import within it lacks a package."""
    try:
        yield
    except ModuleNotFoundError as e:
        sys.exit(missing_extra(extra, e.name or "a package"))


def missing_extra(extra: str, *modules: str) -> str:
    """Return the message for modules that are not installed."""
    names = ", ".join(module.partition(".")[0] for module in modules)
    return f"{names}: not installed; expected the extra {extra}: pip install 'digitserve[{extra}]'"
