"""What a command does before it imports what is slow: it deals with Ctrl-C, and names an extra that is missing."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def end_at_ctrl_c(module: str) -> None:
    """End with status 130 at Ctrl-C, where the module of that name is what was started; imports would be a traceback.

    A shell's job in the background ignores Ctrl-C, and so does the command then.
    """
    started = module == "__main__" or started_by_name()
    if started and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))


def started_by_name() -> bool:
    """Tell whether the program runs under its own name, as `digitserve-client` and not as `python -m client`."""
    return sys.argv[0].rpartition(os.sep)[2].startswith("digitserve")


@contextlib.contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """End the process with one sentence where the imports within it lack a package."""
    try:
        yield
    except ModuleNotFoundError as e:
        package = (e.name or "a package").partition(".")[0]
        sys.exit(f"{package}: is not installed; expected the extra {extra}: pip install 'digitserve[{extra}]'")
