"""A few rows put into a table, and what a table holds, from its log alone and without a JVM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow
from deltalake import DeltaTable, write_deltalake
from pyspark.sql.pandas.types import to_arrow_schema

from spark.lake.names import local_path, system
from spark.lake.tables import SYSTEM


def append_rows(lake_uri: str, name: str, rows: list[dict[str, Any]]) -> None:
    """`append_columns` of a few rows. Columns that a row does not have are null."""
    append_columns(lake_uri, name, {column: [row.get(column) for row in rows] for column in SYSTEM[name].names})


def append_columns(lake_uri: str, name: str, columns: Mapping[str, list[Any]]) -> None:
    """Appends rows, given as their columns, to the table `system/<name>`, without a JVM: a commit takes Spark a second
    and more."""
    schema = to_arrow_schema(SYSTEM[name], timezone="UTC")
    arrays = [pyarrow.array(columns[field.name], field.type) for field in schema]
    write_deltalake(local_path(system(lake_uri, name)), pyarrow.Table.from_arrays(arrays, schema=schema), mode="append")


def batches(uri: str) -> tuple[int, int] | None:
    """The least and the greatest `batch` of the rows of bronze or speed, from the log's file statistics. None without
    rows."""
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
    """The greatest `batch` of the rows of bronze or speed. None without rows."""
    found = batches(uri)
    return found[1] if found else None


def rows(uri: str) -> int:
    """How many rows the table has, from the log alone; 0 without a table."""
    path = local_path(uri)
    if not DeltaTable.is_deltatable(path):
        return 0
    return int(DeltaTable(path).count())


def newest_append(uri: str, app_id: str) -> int | None:
    """The version that an append committed last for `app_id`, also if it had no rows. None before the first."""
    path = local_path(uri)
    if not DeltaTable.is_deltatable(path):
        return None
    version: int | None = DeltaTable(path).transaction_version(app_id)
    return version
