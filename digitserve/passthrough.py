"""The programs of digitserve as commands of typer: for `digitserve --help`, and for a shell's completion."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import typer
from typer.core import TyperCommand

from digitserve.programs import PROGRAMS, run

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem


def add_program(app: typer.Typer, name: str) -> None:
    """Add a program that takes its arguments, `--help` too, as they are."""

    def command(context: typer.Context) -> None:
        raise typer.Exit(run(name, context.args))

    settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    app.command(name, cls=_Program, help=PROGRAMS[name].about, context_settings=settings)(command)


class _Program(TyperCommand):
    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete what the program itself takes after the arguments that are there."""
        from click.shell_completion import CompletionItem, ShellComplete  # noqa: PLC0415 (for a shell alone)

        module = PROGRAMS[str(self.name)].module
        if (app := getattr(import_module(f"{module}.__main__"), "app", None)) is not None:
            command = typer.main.get_command(app)
            return ShellComplete(command, {}, str(self.name), "").get_completions(ctx.args, incomplete)
        flags = import_module(f"{module}.config").flags()
        return [CompletionItem(flag) for flag in flags if flag.startswith(incomplete)]
