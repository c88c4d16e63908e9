"""`millrace tables`: how large the Delta tables are, and who writes them."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def tables(
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document: a list of tables.")] = False,
) -> None:
    """Show rows, files and disk use of every Delta table, and the process that writes it.

    `on disk` counts the files of all versions that can still be read, and the log; the DAG `maintain` removes the rest.
    """
    from infra.commands.query import print_table, text
    from infra.settings import settings
    from schemas.contract.catalog import catalog
    from spark.lake.maintenance import usage

    config = settings()
    found = usage(config.lake_uri, catalog(config.contracts).values())
    if json_:
        typer.echo(json.dumps([vars(one) for one in found], default=text))
        return
    rows: list[tuple[object, ...]] = [
        (one.table, one.owner, f"{one.rows:,}", f"{one.files:,}", _size(one.bytes), _size(one.bytes_on_disk))
        for one in found
    ]
    print_table(["table", "written by", "rows", "files", "newest", "on disk"], rows)
    typer.echo(f"{_size(sum(one.bytes_on_disk for one in found))} on disk")


def _size(count: int) -> str:
    """Bytes in MiB, as people compare them."""
    return f"{count / 2**20:,.1f} MiB"
