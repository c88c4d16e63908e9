"""`millrace check`: validates the contracts."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from infra import strict_json


def check(
    streams: Annotated[list[str] | None, typer.Argument(help="Streams to check; all of them if none is named.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Validate the contracts: model, names, Avro compatibility of each version, good and bad examples.

    No server is needed. Every problem is reported with file, line and field; the exit code is 1 when there are any.
    """
    from infra.settings import settings
    from schemas.contract.check import check as problems_of

    root = settings().contracts
    problems = problems_of(root, streams)
    if json_:
        rows = [{**asdict(problem), "file": str(problem.file)} for problem in problems]
        typer.echo(strict_json.dumps({"ok": not problems, "contracts": str(root), "problems": rows}))
    else:
        for problem in problems:
            typer.echo(str(problem))
        typer.echo(f"{len(problems)} problems in {root}" if problems else f"the contracts in {root} are right")
    if problems:
        raise typer.Exit(1)
