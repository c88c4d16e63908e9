"""The command line `millrace`. Each command is a module of `infra.commands`."""

from __future__ import annotations

import sys

import typer

from infra.commands import stack

app = typer.Typer(
    name="millrace",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command(rich_help_panel="The stack")(stack.up)
app.command(rich_help_panel="The stack")(stack.down)


def main() -> None:
    """Runs the command line; errors made for people are printed without a trace, with exit code 1."""
    from schemas.errors import MillraceError

    try:
        app()
    except MillraceError as error:
        sys.stderr.write(f"millrace: {error}\n")
        sys.exit(1)
