"""`--help` in the panels of typer, and `--version`, without typer or rich.

The server's image has neither, and `--help` would wait for their import.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import re
import shutil
import sys
import textwrap
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, NoReturn, TextIO, get_args, get_origin

from service import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic.fields import FieldInfo

MIN_HELP_WIDTH = 24  # columns; in less the help of an option is below its name
MAX_TYPE_WIDTH = 18
_OPTION, _DIM, _END = "\x1b[1;36m", "\x1b[2m", "\x1b[0m"


def program_name(module: str) -> str:
    """Return how the user started a program: by `python -m`, or as a command of digitserve, which names it so."""
    name = Path(sys.argv[0]).name
    return name if "digitserve " in name else f"python -m {module}"


class Row(NamedTuple):
    """One option: its flags, the lines of its type, and its help."""

    flags: list[str]
    type: list[str]
    help: list[str]


class Parser(argparse.ArgumentParser):
    """The parser to which pydantic-settings adds a flag for each field.

    `headings` maps each heading of `--help` to the first field below it.
    """

    def __init__(
        self, fields: Mapping[str, FieldInfo], headings: Mapping[str, str], *, about: str, module: str
    ) -> None:
        super().__init__(prog=program_name(module), allow_abbrev=False)
        self._about = about
        self._rows = {field: _make_row(field, fields[field]) for field in fields}
        self._headings = {first: heading for heading, first in headings.items()}
        shown = self._rows["version"] = Row(["--version"], ["<bool>"], ["Show the version and exit."])
        self.add_argument(*shown.flags, action=_PrintAction, text=f"digitserve {__version__}\n")
        self._rows["help"] = Row(["--help"], ["<bool>"], ["Show this message and exit."])
        self._headings["version"] = "Options"

    @property
    def flags(self) -> list[str]:
        """Every flag."""
        return [flag for row in self._rows.values() for flag in row.flags]

    def format_usage(self) -> str:
        """Return the usage line of typer."""
        return f"Usage: {self.prog} [OPTIONS]\n"

    def format_help(self) -> str:
        """Return the help text for the width and the encoding of this terminal."""
        width = shutil.get_terminal_size().columns
        style = _Style.of(sys.stdout)
        paragraphs = [self.format_usage().strip(), *re.split(r"\n\s*\n", self._about.strip())]
        lines = [line for paragraph in paragraphs for line in ("", *_wrap(paragraph, width - 2))]
        lines = [f" {line}".rstrip() for line in lines] + [""]
        for title, rows in self._panels():
            lines += _render_panel(title, rows, width, style)
        return "\n".join(lines) + "\n\n"

    def error(self, message: str) -> NoReturn:
        """Print the error in one sentence with the most similar flag, and exit."""
        unknown = re.findall(r"--[\w-]+", message) if message.startswith("unrecognized") else []
        similar = [match for flag in unknown for match in difflib.get_close_matches(flag, self.flags, 1, 0.7)]
        hint = f"; did you mean {', '.join(similar)}?" if similar else ""
        self.exit(2, f"{self.format_usage()}Try '{self.prog} --help' for help.\n\n{message}{hint}\n")

    def _panels(self) -> Iterator[tuple[str, list[Row]]]:
        """Yield the heading and rows of each panel, the common options first, as typer does."""
        panels: dict[str, list[Row]] = {"Options": []}
        heading = "Options"
        for name, row in self._rows.items():
            heading = self._headings.get(name, heading)
            panels.setdefault(heading, []).append(row)
        yield from panels.items()

    def _print_message(self, message: str, file: object = None) -> None:
        """Write and flush: a failed write would be a traceback when the interpreter exits."""
        to_output = file is sys.stdout
        stream: TextIO | None = sys.stdout if to_output else sys.stderr
        if stream is None:  # closed
            return
        try:
            encoding = stream.encoding or "ascii"
            stream.write(message.encode(encoding, "replace").decode(encoding))
            stream.flush()
        except OSError as e:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if to_output and e.errno != errno.EPIPE:
                self._print_message(f"standard output: cannot be written: {e.strerror}\n")
            sys.exit(1)


class _PrintAction(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, *, text: str) -> None:  # noqa: ARG002 (argparse gives it)
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0)
        self._text = text

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser._print_message(self._text, sys.stdout)  # noqa: SLF001 (as argparse's own actions do)
        parser.exit()


class _Style(NamedTuple):
    corners: str
    option: str
    dim: str
    end: str

    @classmethod
    def of(cls, stream: Any) -> _Style:
        """Use line characters if the encoding has them, and colours on a terminal unless NO_COLOR is set."""
        corners = "╭─╮│╰╯" if (getattr(stream, "encoding", "") or "").lower().startswith("utf") else "+-+|++"
        coloured = stream is not None and stream.isatty() and not os.environ.get("NO_COLOR")
        return cls(corners, *((_OPTION, _DIM, _END) if coloured else ("", "", "")))


def _make_row(name: str, field: FieldInfo) -> Row:
    flag = name.replace("_", "-")
    switch = field.annotation is bool
    flags = [f"--{flag}", f"--no-{flag}"] if switch else [f"--{flag}"]
    default = ("" if field.default else "no-") + flag if switch else field.default
    help_ = [field.description or "", f"[env var: DIGITS_{name.upper()}]"]
    if default not in (None, ""):
        help_.append(f"[default: {default}]")
    return Row(flags, _type_lines(field), help_)


def _type_lines(field: FieldInfo) -> list[str]:
    """Return the type as typer shows it, with the bounds of a number on a line of their own."""
    if get_origin(field.annotation) is Literal:
        return _wrap(f"<{'| '.join(get_args(field.annotation))}>", MAX_TYPE_WIDTH)
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not type(None)]
    kind, *metadata = get_args(kinds[0]) if get_origin(kinds[0]) is Annotated else kinds[:1]
    name = kind.__name__.lower()
    bounds = {
        sign: getattr(one, sign)
        for one in (*field.metadata, *metadata)
        for sign in ("ge", "gt", "le")
        if hasattr(one, sign)
    }
    if not bounds:
        return [f"<{name}>"]
    low = f"{bounds['gt']}<" if "gt" in bounds else f"{bounds['ge']}<="
    return [f"<{name} range>", f"[{low}x<={bounds['le']}]"]


def _render_panel(title: str, rows: list[Row], width: int, style: _Style) -> list[str]:
    top_left, line, top_right, side, bottom_left, bottom_right = [*style.corners]
    inner = width - 4
    first = max(len(flag) for row in rows for flag in row.flags)
    second = max(len(part) for row in rows for part in row.type)
    fits_columns = inner - first - second - 4 >= MIN_HELP_WIDTH
    lines = [
        line
        for row in rows
        for line in (_in_columns(row, first, second, inner) if fits_columns else _stacked(row, inner))
    ]
    dim = (style.dim, style.end)
    return [
        f"{line} {title} ".join((top_left, line * (width - len(title) - 5) + top_right)).join(dim),
        *(
            f"{side.join(dim)} {style.option}{head}{style.end}{tail:<{inner - len(head)}} {side.join(dim)}"
            for head, tail in lines
        ),
        f"{bottom_left}{line * (width - 2)}{bottom_right}".join(dim),
    ]


def _in_columns(row: Row, first: int, second: int, inner: int) -> Iterator[tuple[str, str]]:
    """Yield lines as (flag, rest), with flags, type and help in columns."""
    text = [line for part in row.help for line in _wrap(part, inner - first - second - 4)]
    for flag, kind, line in zip_longest(row.flags, row.type, text, fillvalue=""):
        yield f"{flag:<{first}}", f"  {kind:<{second}}  {line}"


def _stacked(row: Row, inner: int) -> Iterator[tuple[str, str]]:
    """Yield the same lines below each other, for a narrow terminal."""
    for flag in row.flags:
        yield flag[:inner], ""
    for part in (*row.type, *row.help):
        yield from (("", f"  {line}") for line in _wrap(part, inner - 2))


def _wrap(text: str, width: int) -> list[str]:
    """Wrap to lines, and rejoin the values of a type, which have a space between them for the wrapping."""
    lines = textwrap.wrap(" ".join(text.split()), max(width, 8), break_on_hyphens=False)
    return [line.replace("| ", "|") for line in lines]
