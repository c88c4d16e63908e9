"""`millrace logs`: prints the end of a program's log."""

from __future__ import annotations

import subprocess
from typing import Annotated

import typer

from schemas.errors import TerminalError


class NoSuchLog(TerminalError):
    """There is no log of that name; the message lists the names."""


def logs(
    service: Annotated[
        str | None, typer.Argument(help="A name of the list, or the start of several: `airflow` is all of Airflow.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing what is added, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines from the end of each log.")] = 100,
) -> None:
    """Print the end of a service's log; without a name, list the logs.

    Logs of Airflow's tasks are in the Airflow UI.
    """
    from infra.settings import settings

    folder = settings().log_dir
    files = {path.stem: path for path in sorted(folder.glob("*.log"))}
    if service is None:
        for path in files.values():
            typer.echo(f"{path.stem:24}{path}")
        return
    chosen = [files[service]] if service in files else [files[name] for name in files if name.startswith(service)]
    if not chosen:
        raise NoSuchLog(f"no log {service!r} in {folder}; there are: {', '.join(files) or 'none yet'}")
    # `-F` also follows a log that is rotated.
    subprocess.run(["tail", "-n", str(lines), *(["-F"] if follow else []), *map(str, chosen)], check=False)
