"""`millrace lineage`: how data flows from topics to tables and views."""

from __future__ import annotations

from typing import Annotated

import typer

from infra import strict_json


def lineage(
    name: Annotated[
        str | None, typer.Argument(help="A topic, table or view: show only what it is made of and what is made of it.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document: a list of edges.")] = False,
) -> None:
    """Show how data flows from topic to table to view, and which process or DAG makes each step.

    It is derived from the contracts. Tables are named by their folder in the lake, for example bronze/flights.
    """
    from infra.commands.query import print_table
    from infra.deployed import contracts_in_service
    from infra.settings import settings
    from spark.lineage.graph import around, edges

    found = edges(contracts_in_service(settings()).values())
    if name is not None:
        found = around(found, name)
    if json_:
        typer.echo(strict_json.dumps([vars(edge) for edge in found]))
    else:
        print_table(["of", "is made", "by"], [(edge.source, edge.target, edge.by) for edge in found])
