"""Standard streams as a shell hands them over: closed, full, without a reader, or unable to show a file's name."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import ReadableBuffer

OUTPUT_FAILED = 1
"""Exit status if standard output cannot be written."""

_STANDARD_OUTPUT = 1


def run(command: Callable[[], int]) -> int:
    """Run a command and return its exit status.

    If standard output cannot be written, the status is 1, with one message on standard error. A closed pipe, as with
    `| head -1`, has no message.
    """
    _prepare()
    try:
        try:
            return command()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except _OutputError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STANDARD_OUTPUT)  # the interpreter flushes once more at its end
        if e.errno != errno.EPIPE:
            print(f"standard output: cannot be written: {e.strerror}", file=sys.stderr)
        return OUTPUT_FAILED


class _OutputError(Exception):
    """Standard output cannot be written. No OSError, which rich and typer would handle in ways of their own."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.errno, self.strerror = cause.errno, cause.strerror


class _Output(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int | None:  # type: ignore[override]  # as FileIO's own
        try:
            return super().write(data)
        except OSError as e:
            raise _OutputError(e) from None


def _prepare() -> None:
    """Replace characters that a terminal cannot show, and detect a failure of standard output."""
    if sys.stderr is None:  # closed: print() would take None for standard output
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (until the process ends)
    elif isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
    plain = sys.stdout
    if plain is not sys.__stdout__ or not isinstance(plain, io.TextIOWrapper):
        return  # closed, or captured by a test
    plain.flush()
    raw = _Output(_STANDARD_OUTPUT, "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=plain.encoding, errors="replace", line_buffering=plain.line_buffering
    )
