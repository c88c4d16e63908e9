"""Queries in SQL over the served views, for the command line and, as Arrow, for pandas, Polars and notebooks.

A query sees one state of all tables and can change nothing. It needs no JVM.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import duckdb
import pyarrow

from infra.deployed import contracts_in_service
from infra.settings import Settings, settings
from schemas.errors import TerminalError
from spark.serving import snapshot
from spark.serving.duck import connect

_EXPLAIN = re.compile(r"^\s*explain(\s+analyze\b|\s*\(\s*(analyze|format)\b[^)]*\))?", re.IGNORECASE)


class QueryError(TerminalError):
    """The SQL is wrong. The message is DuckDB's, which quotes the line at fault; for an unknown view it lists the
    views."""


def ask(sql: str, as_of: datetime | str | None = None, config: Settings | None = None) -> pyarrow.Table:
    """Returns the result of `sql` over the served views, as Arrow (`.to_pandas()`, `polars.from_arrow`). Times are UTC.

    `as_of` is a time (UTC if it names no zone) or the id of a run that published; the default is now. `config` are the
    settings of the installation. Raises `QueryError` and `NoSuchSnapshot`.
    """
    with asked(config or settings(), sql, as_of) as cursor:
        return cursor.to_arrow_table()


@contextmanager
def asked(config: Settings, sql: str, as_of: datetime | str | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yields the cursor of `sql` over the served views, with the arguments and the errors of `ask`."""
    contracts = list(contracts_in_service(config).values())
    with connect(config, contracts, snapshot.taken(config.lake_uri, contracts, as_of)) as connection:
        try:
            require_reads_only(connection, sql)
            yield connection.execute(sql)
        except duckdb.CatalogException as error:
            views = ", ".join(row[0] for row in connection.execute("show tables").fetchall())
            raise QueryError(f"{error}\n\nThere are: {views}") from error
        except duckdb.IOException as error:
            why = f"what was served as of {as_of} is not kept any more: {error}" if as_of else str(error)
            raise QueryError(why) from error
        except duckdb.Error as error:
            raise QueryError(str(error)) from error


def require_reads_only(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raises `QueryError` unless `sql` is at least one statement and each of them only reads."""
    statements = connection.extract_statements(sql)
    if not statements:  # nothing but blanks and comments
        raise QueryError("there is no SQL to run; `show tables` lists the views")
    for statement in statements:
        if not statement.query.strip():
            continue  # DuckDB made this statement itself: a PIVOT looks for its columns first
        if statement.type == duckdb.StatementType.EXPLAIN:
            explained = _EXPLAIN.sub("", statement.query, count=1)  # EXPLAIN ANALYZE would run the statement
            if explained == statement.query:
                raise QueryError("EXPLAIN must be the first word of its statement")
            require_reads_only(connection, explained)
        elif statement.type != duckdb.StatementType.SELECT:
            kind = statement.type.name.replace("_", " ")
            raise QueryError(f"a query only reads, and {kind} does not; to write a result into a file, use --output")
