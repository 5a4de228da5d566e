"""The command line's look: `--help` in panels as typer draws them, `--version`, completion; without typer or rich.

The image that serves has neither, and `--help` is not to wait for them.
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
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, TextIO, get_args, get_origin

from service import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic.fields import FieldInfo

NARROWEST_HELP = 24  # columns: below that an option's help stands under its name
WIDEST_TYPE = 18
_OPTION, _DIM, _END = "\x1b[1;36m", "\x1b[2m", "\x1b[0m"


class Row(NamedTuple):
    """One option: its flags, its type in as many lines as it takes, and what there is to say of it."""

    flags: list[str]
    type: list[str]
    help: list[str]


class Parser(argparse.ArgumentParser):
    """The parser that pydantic-settings fills with a flag for each field.

    `headings` are those of `--help`, each with the first of its fields.
    """

    def __init__(
        self, fields: Mapping[str, FieldInfo], headings: Mapping[str, str], *, about: str, module: str, name: str
    ) -> None:
        by_name = Path(sys.argv[0]).name == name
        super().__init__(prog=name if by_name else f"python -m {module}", allow_abbrev=False)
        self._about = about
        self._rows = {field: _row(field, fields[field]) for field in fields}
        self._headings = {first: heading for heading, first in headings.items()}
        shown = self._rows["version"] = Row(["--version"], ["<bool>"], ["Show the version and exit."])
        self.add_argument(*shown.flags, action=_Show, text=f"digitserve {__version__}\n")
        shown = self._rows["completion"] = Row(
            ["--show-completion"], ["<bash|zsh|fish>"], [f"Show what makes a shell complete {name}, and exit."]
        )
        self.add_argument(*shown.flags, action=_ShowCompletion, choices=("bash", "zsh", "fish"), name=name)
        self._rows["help"] = Row(["--help"], ["<bool>"], ["Show this message and exit."])
        self._headings["version"] = "Options"

    @property
    def flags(self) -> list[str]:
        """Every flag, as it is typed."""
        return [flag for row in self._rows.values() for flag in row.flags]

    def format_usage(self) -> str:
        """The one line that typer has too."""
        return f"Usage: {self.prog} [OPTIONS]\n"

    def format_help(self) -> str:
        """All there is to say, for the width and the characters of this terminal."""
        width = shutil.get_terminal_size().columns
        look = _Look.of(sys.stdout)
        paragraphs = [self.format_usage().strip(), *re.split(r"\n\s*\n", self._about.strip())]
        lines = [line for paragraph in paragraphs for line in ("", *_wrapped(paragraph, width - 2))]
        lines = [f" {line}".rstrip() for line in lines] + [""]
        for title, rows in self._panels():
            lines += _panel(title, rows, width, look)
        return "\n".join(lines) + "\n\n"

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one sentence, with the flag that may be meant."""
        unknown = re.findall(r"--[\w-]+", message) if message.startswith("unrecognized") else []
        near = [match for flag in unknown for match in difflib.get_close_matches(flag, self.flags, 1, 0.7)]
        meant = f"; did you mean {', '.join(near)}?" if near else ""
        self.exit(2, f"{self.format_usage()}Try '{self.prog} --help' for help.\n\n{message}{meant}\n")

    def _panels(self) -> Iterator[tuple[str, list[Row]]]:
        """Heading and rows of each, those of every command first, as typer has them."""
        panels: dict[str, list[Row]] = {"Options": []}
        heading = "Options"
        for name, row in self._rows.items():
            heading = self._headings.get(name, heading)
            panels.setdefault(heading, []).append(row)
        yield from panels.items()

    def _print_message(self, message: str, file: object = None) -> None:
        """Write it at once: what cannot be written would be a traceback at the interpreter's end."""
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


class _Show(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, *, text: str) -> None:  # noqa: ARG002 (argparse gives it)
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0)
        self._text = text

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser._print_message(self._text, sys.stdout)  # noqa: SLF001 (what argparse's own actions call)
        parser.exit()


class _ShowCompletion(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, *, choices: tuple[str, ...], name: str) -> None:  # noqa: ARG002 (as above)
        super().__init__(option_strings, argparse.SUPPRESS, choices=choices)
        self._name = name

    def __call__(self, parser: argparse.ArgumentParser, _: object, shell: object, *__: object) -> None:
        assert isinstance(parser, Parser)
        parser._print_message(_completion(str(shell), self._name, parser.flags), sys.stdout)  # noqa: SLF001 (as above)
        parser.exit()


class _Look(NamedTuple):
    corners: str
    option: str
    dim: str
    end: str

    @classmethod
    def of(cls, stream: Any) -> _Look:
        """Lines where they can be encoded, colour where a terminal is looked at that has not asked for none."""
        corners = "╭─╮│╰╯" if (getattr(stream, "encoding", "") or "").lower().startswith("utf") else "+-+|++"
        coloured = stream is not None and stream.isatty() and not os.environ.get("NO_COLOR")
        return cls(corners, *((_OPTION, _DIM, _END) if coloured else ("", "", "")))


def _completion(shell: str, name: str, flags: list[str]) -> str:
    if shell == "fish":
        return "".join(f"complete -c {name} -l {flag.removeprefix('--')}\n" for flag in flags)
    zsh = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return f"{zsh}complete -o default -W '{' '.join(flags)}' {name}\n"


def _row(name: str, field: FieldInfo) -> Row:
    flag = name.replace("_", "-")
    switch = field.annotation is bool
    flags = [f"--{flag}", f"--no-{flag}"] if switch else [f"--{flag}"]
    default = ("" if field.default else "no-") + flag if switch else field.default
    told = [field.description or "", f"[env var: DIGITS_{name.upper()}]"]
    if default not in (None, ""):
        told.append(f"[default: {default}]")
    return Row(flags, _type(field), told)


def _type(field: FieldInfo) -> list[str]:
    """As typer tells it, the bounds of a number in a line of their own."""
    if get_origin(field.annotation) is Literal:
        return _wrapped(f"<{'| '.join(get_args(field.annotation))}>", WIDEST_TYPE)
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not type(None)]
    name = kinds[0].__name__.lower()
    bounds = {sign: getattr(one, sign) for one in field.metadata for sign in ("ge", "gt", "le") if hasattr(one, sign)}
    if not bounds:
        return [f"<{name}>"]
    low = f"{bounds['gt']}<" if "gt" in bounds else f"{bounds['ge']}<="
    return [f"<{name} range>", f"[{low}x<={bounds['le']}]"]


def _panel(title: str, rows: list[Row], width: int, look: _Look) -> list[str]:
    top_left, line, top_right, side, bottom_left, bottom_right = [*look.corners]
    inner = width - 4
    first = max(len(flag) for row in rows for flag in row.flags)
    second = max(len(part) for row in rows for part in row.type)
    beside = inner - first - second - 4 >= NARROWEST_HELP
    shown = [cells for row in rows for cells in (_beside(row, first, second, inner) if beside else _under(row, inner))]
    dim = (look.dim, look.end)
    return [
        f"{line} {title} ".join((top_left, line * (width - len(title) - 5) + top_right)).join(dim),
        *(
            f"{side.join(dim)} {look.option}{head}{look.end}{tail:<{inner - len(head)}} {side.join(dim)}"
            for head, tail in shown
        ),
        f"{bottom_left}{line * (width - 2)}{bottom_right}".join(dim),
    ]


def _beside(row: Row, first: int, second: int, inner: int) -> Iterator[tuple[str, str]]:
    """Lines as (flag, the rest): flags, type and help in columns."""
    text = [line for part in row.help for line in _wrapped(part, inner - first - second - 4)]
    for flag, kind, line in zip_longest(row.flags, row.type, text, fillvalue=""):
        yield f"{flag:<{first}}", f"  {kind:<{second}}  {line}"


def _under(row: Row, inner: int) -> Iterator[tuple[str, str]]:
    """The same one under the other, for a narrow terminal."""
    for flag in row.flags:
        yield flag[:inner], ""
    for part in (*row.type, *row.help):
        yield from (("", f"  {line}") for line in _wrapped(part, inner - 2))


def _wrapped(text: str, width: int) -> list[str]:
    """Lines; a type's values, set apart by a space for the wrapping, are joined again."""
    lines = textwrap.wrap(" ".join(text.split()), max(width, 8), break_on_hyphens=False)
    return [line.replace("| ", "|") for line in lines]
