"""`millrace doctor`: checks the machine."""

from __future__ import annotations

from typing import Annotated

import typer

from infra import strict_json


def doctor(json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """Check whether this machine is fit: Python, Java, folders, disk, memory, ports and every byte of the JVM parts.

    Each finding says what to do. The exit code is 1 when anything is wrong.
    """
    from infra.local import stack
    from infra.settings import settings

    findings = stack.examine(settings())
    fit = all(finding.ok for finding in findings)
    if json_:
        typer.echo(strict_json.dumps({"fit": fit, "findings": [finding.document() for finding in findings]}))
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for finding in findings:
            table.add_row("[green]ok[/]" if finding.ok else "[red]wrong[/]", finding.check, Text(finding.message))
        Console().print(table)
    if not fit:
        raise typer.Exit(1)
