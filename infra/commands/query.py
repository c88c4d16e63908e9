"""`millrace query`: SQL over the served views, in DuckDB, with no JVM and no server."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from schemas.errors import TerminalError


class QueryError(TerminalError):
    """The SQL is wrong; the message is DuckDB's, which names the place, and lists the views for an unknown one."""


def query(
    sql: Annotated[str, typer.Argument(help='For example "from departures_by_origin_1h where final limit 5".')],
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document: a list of rows.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Rows the table shows at most (JSON and CSV print all).")] = 100,
) -> None:
    """Ask the served views with SQL. `show tables` lists them.

    Views: <aggregate>_1m, _5m and _1h (with `source` batch or speed and `final`), <stream>_events,
    <stream>_dead_letters, <stream>_letters (one row a dead letter, with its status), ledger, publications, quality,
    moves, replays, audits. Times are UTC.
    """
    import duckdb

    from infra.settings import settings
    from spark.serving.duck import connect

    with connect(settings()) as connection:
        try:
            cursor = connection.execute(sql)
            if cursor is None:  # nothing but blanks and comments
                raise QueryError("there is no SQL to run; `show tables` lists the views")
            names = [column[0] for column in cursor.description or []]
            rows = cursor.fetchall()
        except duckdb.CatalogException as error:
            views = ", ".join(row[0] for row in connection.execute("show tables").fetchall())
            raise QueryError(f"{error}\n\nThere are: {views}") from error
        except duckdb.Error as error:
            raise QueryError(str(error)) from error
    if json_:
        typer.echo(json.dumps([dict(zip(names, row, strict=True)) for row in rows], default=text))
    elif csv:
        _print_csv(names, rows)
    else:
        print_table(names, rows, limit)


def text(value: object) -> str:
    """How a value that JSON has no type for is written: times as ISO-8601, bytes as hex."""
    from datetime import date, datetime

    if isinstance(value, (date, datetime)):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else str(value)


def _print_csv(names: list[str], rows: list[tuple[object, ...]]) -> None:
    import csv
    import sys

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(
        [value if value is None or isinstance(value, (int, float, str)) else text(value) for value in row]
        for row in rows
    )


def print_table(names: list[str], rows: list[tuple[object, ...]], limit: int = 1_000_000) -> None:
    """Rows as a table for people, `limit` of them at most, and their number."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold")
    for name in names:
        table.add_column(Text(name), overflow="fold")
    for row in rows[:limit]:
        # As text: brackets in data are no markup.
        cells = ("" if value is None else value if isinstance(value, str) else text(value) for value in row)
        table.add_row(*(Text(cell) for cell in cells))
    console = Console()
    if not console.is_terminal:
        console.width = 10_000  # a file or a pipe has no edge
    console.print(table)
    more = f", {len(rows) - limit:,} more not shown (--limit)" if len(rows) > limit else ""
    console.print(f"{min(len(rows), limit):,} rows{more}", style="dim")
