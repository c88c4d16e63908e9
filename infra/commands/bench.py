"""`millrace bench`: what the machine can do, measured beside what others would have written."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer

bench = typer.Typer(no_args_is_help=True)


@bench.callback()
def about() -> None:
    """Measure on this machine, with servers and data of its own that are gone afterwards."""


@bench.command()
def ingest(
    events: Annotated[int, typer.Option(min=1000, help="Events to be timed; a quarter more make the JVMs warm.")] = (
        4_000_000
    ),
    partitions: Annotated[int, typer.Option(min=1, max=64, help="Partitions of the topic.")] = 4,
    json_: Annotated[bool, typer.Option("--json", help="End with one JSON document.")] = False,
) -> None:
    """Time the catch-up of the whole ingest, beside a textbook Spark job on the same topic, and compare results."""
    arguments = ["--events", str(events), "--partitions", str(partitions), *(["--json"] if json_ else [])]
    _run("ingest", arguments)


def _run(name: str, arguments: list[str]) -> None:
    """A benchmark is a program of its own: it needs what only the checkout has."""
    from infra.settings import PROJECT

    command = [sys.executable, "-m", f"tests.benchmarks.{name}", *arguments]
    raise typer.Exit(subprocess.run(command, cwd=PROJECT, check=False).returncode)
