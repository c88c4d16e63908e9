"""`millrace sql`: opens DuckDB's own shell on the served views."""

from __future__ import annotations

from typing import Annotated

import typer


def sql(
    command: Annotated[
        str | None, typer.Option("--command", "-c", help="Run this instead of asking for statements, and end.")
    ] = None,
) -> None:
    """Open DuckDB's shell on the catalog file with the served views; `.tables` lists them, `.help` helps, Ctrl-D ends.

    The file is `.millrace/catalog.duckdb` (`MILLRACE_CATALOG`), brought up to date first; any DuckDB client opens it.
    Its windows are those of the newest publication; in windows that are not final, distinct counts and quantiles are
    null, and `millrace query` has their estimates. It opens read-only.
    """
    import os
    import sys
    from pathlib import Path

    from infra.settings import settings
    from schemas.errors import TerminalError
    from spark.serving.duck import write_catalog

    file = write_catalog(settings())
    shell = Path(sys.executable).with_name("duckdb")
    if not shell.exists():
        raise TerminalError(f"{shell} is missing; `uv sync --frozen` installs it")
    arguments = ["-readonly", "-cmd", "set TimeZone = 'UTC'", *(["-c", command] if command else []), str(file)]
    sys.stdout.flush()
    os.execv(shell, [str(shell), *arguments])
