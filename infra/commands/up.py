"""`millrace up`: starts the servers."""

from __future__ import annotations

from typing import Annotated

import typer


def up(
    services: Annotated[
        list[str] | None,
        typer.Argument(help="postgres, kafka, registry, docs or airflow; all of them if none is named."),
    ] = None,
) -> None:
    """Start the servers, and wait until all of them are healthy.

    What runs already is left alone; a service whose configuration changed is restarted. The machine is checked
    first, as `millrace doctor` does. Ctrl-C stops what was started.
    """
    from rich.console import Console

    from infra.commands.progress import steps
    from infra.local import stack
    from infra.settings import settings

    config = settings()
    console = Console(stderr=True)
    with steps(console, "Starting Millrace") as report:
        stack.up(config, services or (), report)
