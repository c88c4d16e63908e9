"""`millrace query`: SQL over the served views, in DuckDB, with no JVM and no server."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Literal, get_args

import typer

from infra import strict_json

if TYPE_CHECKING:
    import duckdb

Format = Literal["table", "csv", "json", "parquet"]

FEW_COLUMNS = 6
"""So many columns are printed beside each other however long their values are: a value too long for its column is
folded."""


def query(
    sql: Annotated[str, typer.Argument(help='For example "from departures_by_origin_1h where final limit 5".')],
    format_: Annotated[
        str | None,
        typer.Option("--format", help="table, csv, json or parquet; default: what FILE is called, or table."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to this file.")] = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            metavar="TIME|RUN", help="The views as they were at a time (ISO-8601, UTC) or when a run published."
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document: a list of rows.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Rows the table shows at most (the others hold all).")] = 100,
) -> None:
    """Ask the served views with SQL. `show tables` lists them.

    Views: <aggregate>_1m, _5m and _1h (with `source` batch or speed and `final`), <stream>_events,
    <stream>_dead_letters, <stream>_letters (one row a dead letter, with its status), ledger, publications, quality,
    moves, replays, audits. Times are UTC. A query sees one state of all tables, whatever is published meanwhile, and
    can change nothing.
    """
    from infra.settings import settings
    from spark.serving.ask import asked

    wanted = _format(format_ or ("json" if json_ else "csv" if csv else None), output)
    with asked(settings(), sql, as_of) as cursor:
        _print(cursor, wanted, output, limit)


def _format(named: str | None, output: Path | None) -> Format:
    if named is None and output is not None:
        named = output.suffix.removeprefix(".")
    from spark.serving.ask import QueryError

    for known in get_args(Format):
        if known == (named or "table"):
            if known == "parquet" and output is None and sys.stdout.isatty():
                raise QueryError("Parquet is no text: name a file with --output, or send it through a pipe")
            return known  # type: ignore[no-any-return]
    raise QueryError(f"{named or 'a file without a suffix'} is no format; there are: {', '.join(get_args(Format))}")


def _print(cursor: duckdb.DuckDBPyConnection, wanted: Format, output: Path | None, limit: int) -> None:
    if output is None:
        _write(cursor, wanted, sys.stdout.buffer, limit)
        return
    from spark.serving.ask import QueryError

    # The file appears whole or not at all.
    part = output.with_name(f".{output.name}.part")
    try:
        with part.open("wb") as file:
            _write(cursor, wanted, file, limit)
        part.replace(output)
    except OSError as error:
        raise QueryError(f"cannot write {output}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _write(cursor: duckdb.DuckDBPyConnection, wanted: Format, file: IO[bytes], limit: int) -> None:
    if wanted == "parquet":
        _write_parquet(cursor, file)
        return
    names = [column[0] for column in cursor.description or []]
    if wanted == "table" and file is sys.stdout.buffer:
        print_table(names, cursor.fetchall(), limit)
        return
    words = TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    if wanted == "json":
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        words.write(strict_json.dumps(rows, default=text) + "\n")
    elif wanted == "csv":
        _write_csv(names, cursor.fetchall(), words)
    else:
        print_table(names, cursor.fetchall(), limit, words)
    words.detach()


def _write_parquet(cursor: duckdb.DuckDBPyConnection, file: IO[bytes]) -> None:
    from pyarrow.parquet import ParquetWriter

    batches = cursor.to_arrow_reader()
    with ParquetWriter(file, batches.schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)


def text(value: object) -> str:
    """Returns the text of a value that the format has no type for: times as ISO-8601, bytes as hex, decimals
    with all of their digits."""
    from datetime import date, datetime
    from decimal import Decimal

    if isinstance(value, (date, datetime)):
        return value.isoformat()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Decimal):
        return f"{value:f}"  # `str` writes 1E-18 and 0E-9
    return value.hex() if isinstance(value, bytes) else str(value)


def _write_csv(names: list[str], rows: list[tuple[object, ...]], file: IO[str]) -> None:
    import csv

    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([value if value is None or type(value) in (int, float, str) else text(value) for value in row]
                     for row in rows)  # fmt: skip


def _shown(value: object) -> str:
    """Returns a value as people read it: a time without its zone, which is always UTC, and without seconds that are 0;
    a number with three decimals at most."""
    from datetime import datetime

    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat(" ").removesuffix(":00")
    if isinstance(value, float) and value == value and 1e-3 <= abs(value) < 1e15:
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return text(value)


def print_table(
    names: list[str], rows: list[tuple[object, ...]], limit: int = 1_000_000, file: IO[str] | None = None
) -> None:
    """Prints rows as a table for people, `limit` of them at most, and their number, to `file` (default: standard
    output). Where the terminal has no room for many columns, each row is printed by itself, its columns below each
    other."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A `Text` shows brackets as they are; rich would take them for markup in a str.
    shown = [[Text(_shown(value), overflow="fold") for value in row] for row in rows[:limit]]
    console = Console(file=file)
    if not console.is_terminal:
        console.width = 10_000  # a file or a pipe has no edge
    table = Table(header_style="bold")
    for column, name in enumerate(names):
        numbers = bool(rows) and all(type(row[column]) in (int, float, type(None)) for row in rows[:limit])
        table.add_column(Text(name), justify="right" if numbers else "left")
    for cells in shown:
        table.add_row(*cells)
    needed = console.measure(table, options=console.options.update(width=10_000)).maximum
    if needed <= console.width or len(names) <= FEW_COLUMNS:
        console.print(table)
    else:
        for number, cells in enumerate(shown, 1):
            console.rule(f"{number}", align="left", style="dim")
            record = Table.grid(padding=(0, 2))
            for name, cell in zip(names, cells, strict=True):
                record.add_row(Text(name, "bold"), cell)
            console.print(record)
    more = f", {len(rows) - limit:,} more not shown (--limit)" if len(rows) > limit else ""
    console.print(f"{len(shown):,} {'row' if len(shown) == 1 else 'rows'}{more}", style="dim")
