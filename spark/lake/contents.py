"""Appends a few rows to tables of `system/`, and reads what a table holds from its log alone. Needs no JVM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow
from deltalake import DeltaTable, write_deltalake
from pyspark.sql.pandas.types import to_arrow_schema

from spark.lake.names import local_path, system
from spark.lake.table_schemas import SYSTEM

CHANGES_NO_ROW = {"OPTIMIZE", "ADD COLUMN", "ADD COLUMNS", "SET TBLPROPERTIES", "VACUUM START", "VACUUM END"}
"""Operations in the history of a Delta table that change none of its rows."""


def append_rows(lake_uri: str, name: str, rows: list[dict[str, Any]]) -> None:
    """Appends `rows` to the table `system/<name>`. Columns that a row does not have are null."""
    append_columns(lake_uri, name, {column: [row.get(column) for row in rows] for column in SYSTEM[name].names})


def append_columns(lake_uri: str, name: str, columns: Mapping[str, list[Any]]) -> None:
    """Appends rows, given as their columns, to the table `system/<name>`. Times must be UTC.

    It is done without Spark, which takes a second and more for a commit.
    """
    schema = to_arrow_schema(SYSTEM[name], timezone="UTC")
    arrays = [pyarrow.array(columns[field.name], field.type) for field in schema]
    write_deltalake(local_path(system(lake_uri, name)), pyarrow.Table.from_arrays(arrays, schema=schema), mode="append")


def batches(uri: str) -> tuple[int, int] | None:
    """Returns the least and the greatest `batch` of the rows of a bronze or speed table, from the file statistics in
    the log; None if there are no rows or no table."""
    path = local_path(uri)
    if not DeltaTable.is_deltatable(path):
        return None
    files = pyarrow.table(DeltaTable(path).get_add_actions(flatten=True))
    if "max.batch" not in files.column_names:
        return None
    least = [batch for batch in files["min.batch"].to_pylist() if batch is not None]
    greatest = [batch for batch in files["max.batch"].to_pylist() if batch is not None]
    return (min(least), max(greatest)) if least else None


def newest_batch(uri: str) -> int | None:
    """Returns the greatest `batch` of the rows of a bronze or speed table; None if there are no rows or no table."""
    found = batches(uri)
    return found[1] if found else None


def rows(uri: str) -> int:
    """Returns the number of rows of a table, from its log alone; 0 if there is no table."""
    path = local_path(uri)
    if not DeltaTable.is_deltatable(path):
        return 0
    return int(DeltaTable(path).count())


def newest_append(uri: str, app_id: str) -> int | None:
    """Returns the `version` of the newest append that was committed for `app_id` (Delta's transaction identifier), also
    of one without rows; None before the first append."""
    path = local_path(uri)
    if not DeltaTable.is_deltatable(path):
        return None
    version: int | None = DeltaTable(path).transaction_version(app_id)
    return version
