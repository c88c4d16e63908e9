"""`millrace tables`: how large the Delta tables are, and who writes them."""

from __future__ import annotations

from typing import Annotated

import typer

from infra import strict_json


def tables(
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document: a list of tables.")] = False,
) -> None:
    """Show rows, files and disk use of every Delta table, and the process that writes it.

    `on disk` counts the log and the files of all versions that can still be read; the DAG `maintain` removes the rest.
    """
    from infra.commands.query import print_table, text
    from infra.deployed import contracts_in_service
    from infra.settings import settings
    from spark.lake.maintenance import usage

    config = settings()
    found = usage(config.lake_uri, contracts_in_service(config).values())
    if json_:
        typer.echo(strict_json.dumps([vars(table) for table in found], default=text))
        return
    rows: list[tuple[object, ...]] = [
        (its.table, its.owner, f"{its.rows:,}", f"{its.files:,}", _size(its.bytes), _size(its.bytes_on_disk))
        for its in found
    ]
    print_table(["table", "written by", "rows", "files", "newest", "on disk"], rows)
    typer.echo(f"{_size(sum(table.bytes_on_disk for table in found))} on disk")


def _size(count: int) -> str:
    """Bytes in MiB, as people compare them."""
    return f"{count / 2**20:,.1f} MiB"
