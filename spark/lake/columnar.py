"""Delta tables as relations of DuckDB, by the files that their logs name: those that may have the rows that are wanted.

The batch layer computes with it, so its cost follows the rows that it asks for and not what a table has besides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow
from deltalake import DeltaTable
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import DataType, StructField, StructType, TimestampType

from spark.lake.names import local_path

Wanted = Callable[["File"], bool]
"""Whether a file may have rows that are wanted."""

ROWS_AT_ONCE = 200_000
"""Rows that are handed on from DuckDB at once."""

STEP = timedelta(milliseconds=1)
"""Spark cuts the times in a file's statistics to milliseconds."""


class File:
    """A file of a table as the table's log describes it: `path`, and what may stand in its columns."""

    def __init__(self, path: str, described: Mapping[str, Any]) -> None:
        self.path = path
        self._described = described

    def partition(self, column: str) -> Any:
        """Returns the value that a partition column has in the file."""
        return self._described[f"partition.{column}"]

    def least(self, column: str) -> Any:
        """Returns a bound below the values of the column in the file; None if there is none."""
        return self._described.get(f"min.{column}")

    def may_hold(self, column: str, least: Any = None, most: Any = None) -> bool:
        """Returns whether the file may have rows whose `column` is from `least` to `most`, both included; a bound that
        is None does not bound. A file without statistics of the column may have any."""
        low, high = self._described.get(f"min.{column}"), self._described.get(f"max.{column}")
        if low is None or high is None:
            return True
        if isinstance(high, datetime):
            high = high + STEP if high < high.max.replace(tzinfo=high.tzinfo) - STEP else high
        return (most is None or low <= most) and (least is None or high >= least)


def connect(memory: str, spilled: Path | None = None) -> duckdb.DuckDBPyConnection:
    """Returns a connection in memory in which times are UTC. It holds at most `memory` (such as `1g`), and what is more
    goes to the folder `spilled`."""
    connection = duckdb.connect(config={"preserve_insertion_order": "false", "memory_limit": _bytes(memory)})
    connection.execute("set TimeZone = 'UTC'")
    if spilled is not None:
        connection.execute(f"set temp_directory = {quoted(str(spilled))}")
    return connection


class Queries:
    """Queries in a `connection` that `connect` has made. Relations are given and returned as SQL."""

    connection: duckdb.DuckDBPyConnection

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Returns the rows of a query. Its times are best asked for as numbers: Python makes no instants of some."""
        found: list[tuple[Any, ...]] = self.connection.execute(sql).fetchall()
        return found

    def has_rows(self, relation: str, predicate: str = "true") -> bool:
        """Returns whether the relation has rows that fulfil the predicate."""
        return bool(self.rows(f"select 1 from {relation} where {predicate} limit 1"))

    def keep(self, name: str, sql: str) -> str:
        """Computes the rows of a query into a table of this connection, and returns it as an identifier."""
        self.connection.execute(f"create or replace temp table {ident(name)} as {sql}")
        return ident(name)

    def reader(self, sql: str, schema: StructType) -> pyarrow.RecordBatchReader:
        """Returns the rows of a query as Arrow, in the types of `schema`, whose columns it has in that order."""
        wanted = to_arrow_schema(schema, timezone="UTC")
        found = self.connection.execute(sql).to_arrow_reader(ROWS_AT_ONCE)
        return pyarrow.RecordBatchReader.from_batches(wanted, (batch.cast(wanted) for batch in found))

    def scan(self, uri: str, schema: StructType, wanted: Wanted = lambda file: True) -> str:
        """Returns `scan` in this connection."""
        return scan(self.connection, uri, schema, wanted)


def scan(
    connection: duckdb.DuckDBPyConnection, uri: str, schema: StructType, wanted: Wanted = lambda file: True
) -> str:
    """Returns a SQL relation with the rows of the `wanted` files of the table at `uri`, and with the columns of
    `schema`, null where the table did not have them yet. Partition columns are not among them. A table that does not
    exist has no rows."""
    return scan_of_path(connection, local_path(uri), schema, wanted)


def scan_of_path(
    connection: duckdb.DuckDBPyConnection, path: str, schema: StructType, wanted: Wanted = lambda file: True
) -> str:
    """Returns `scan` of the table in the folder `path`."""
    chosen, partitioned = [], set[str]()
    if DeltaTable.is_deltatable(path):
        table = DeltaTable(path)
        partitioned = set(table.metadata().partition_columns)
        chosen = [f"{path}/{file.path}" for file in _files(table, schema, partitioned) if wanted(file)]
    columns = [field for field in schema if field.name not in partitioned]
    nothing = f"nothing_{'_'.join(path.rsplit('/', 3)[1:])}"
    connection.register(nothing, to_arrow_schema(StructType(columns), timezone="UTC").empty_table())
    if not chosen:
        return f"(select {names(columns)} from {ident(nothing)})"
    listed = ", ".join(quoted(_no_pattern(file)) for file in chosen)
    parquet = f"read_parquet([{listed}], hive_partitioning = false, union_by_name = true)"
    return f"(select {names(columns)} from (from {ident(nothing)} union all by name from {parquet}))"


def _no_pattern(path: str) -> str:
    """The path in which no character stands for others."""
    return re.sub(r"[*?\[]", r"[\g<0>]", path)


def _files(table: DeltaTable, schema: StructType, partitioned: set[str]) -> list[File]:
    described = pyarrow.table(table.get_add_actions(flatten=True))
    asked = {f"{bound}.{field.name}" for field in schema for bound in ("min", "max")}
    asked |= {f"partition.{name}" for name in partitioned} | {"path"}
    kept = described.select([name for name in described.column_names if name in asked])
    return [File(row["path"], row) for row in kept.to_pylist()]


def names(columns: list[StructField]) -> str:
    """Returns the columns as a list of SQL."""
    return ", ".join(ident(field.name) for field in columns)


def ident(name: str) -> str:
    """Returns `name` as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


def quoted(text: str) -> str:
    """Returns `text` as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def type_name(type_: DataType) -> str:
    """Returns DuckDB's name of a scalar Spark type."""
    name = type_.simpleString()
    return {"timestamp": "timestamptz", "timestamp_ntz": "timestamp", "string": "varchar", "binary": "blob"}.get(
        name, name
    )


def instant(time: datetime) -> str:
    """Returns a timestamp with time zone as SQL. Raises ValueError for a time without a time zone."""
    return f"make_timestamptz({micros(time)})"


def delta_instant(time: datetime) -> str:
    """Returns a time as delta-rs reads it in predicates: its own literals count nanoseconds, which do not reach all
    years. Raises ValueError for a time without a time zone."""
    return f"""arrow_cast('{instant_text(time)}', 'Timestamp(Microsecond, Some("UTC"))')"""


def instant_text(time: datetime) -> str:
    """Returns a time as ISO 8601 in UTC with microseconds. Raises ValueError for a time without a time zone."""
    return (_EPOCH + timedelta(microseconds=micros(time))).isoformat(timespec="microseconds").replace("+00:00", "Z")


def micros(time: datetime) -> int:
    """Returns a time as microseconds since 1970. Raises ValueError for a time without a time zone."""
    if time.tzinfo is None:
        raise ValueError(f"an instant needs a time zone, got {time!r}")
    return (time - _EPOCH) // timedelta(microseconds=1)


_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def _bytes(memory: str) -> str:
    """A size as the JVM has it (`1200m`, or a number of bytes) as DuckDB has it."""
    unit = {"k": "KiB", "m": "MiB", "g": "GiB", "t": "TiB"}.get(memory[-1].lower())
    return f"{memory[:-1]}{unit}" if unit else f"{memory}B"


def text_of(column: str, type_: DataType) -> str:
    """Returns a value of a key as text, as Spark writes it."""
    if isinstance(type_, TimestampType):  # without the offset, which is always that of UTC
        return f"cast({column} at time zone 'UTC' as varchar)"
    return f"cast({column} as varchar)"
