"""The appends of the streaming driver to a Delta table, and what it reads back of them: Spark writes the files of a
batch, delta-rs commits them (docs/decisions/0014-files-by-spark-commits-by-delta-rs.md).

The files of an attempt are in a folder of their own, `<table>/batch-<version>-<random>/`. Before the commit they belong
to nothing, and `spark.speed.small_files` removes what a crash leaves of them. The commit names each file with its
number of rows and, for the columns that the table keeps statistics of, least, greatest and nulls, taken from the
Parquet footers.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.fs import DeltaStorageHandler
from deltalake.transaction import AddAction, RemoveAction
from pyarrow import parquet
from pyarrow.fs import FileSelector, FileSystem, FileType, PyFileSystem
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from schemas.contract.model import Contract
from spark.lake import names, table_schemas

FOLDER = "batch-"
"""How the name of an attempt's folder begins."""


def append(
    frame: DataFrame, uri: str, app_id: str, version: int, may_commit: Callable[[], None] = lambda: None
) -> None:
    """Appends `frame` to the table at `uri` once: nothing is written when `app_id` already committed `version` or a
    later one (a retried batch). Columns that only the table has are null; a type that differs from the table's is cast.
    `may_commit` is called when all is written, right before the commit, and also if the commit is there already: a
    process that must not commit must not go on. Raises ValueError for a column that the table lacks, and what Spark,
    Delta and `may_commit` raise."""
    table = DeltaTable(names.local_path(uri))
    written = table.transaction_version(app_id)
    if written is not None and written >= version:
        may_commit()
        return
    partitions = table.metadata().partition_columns
    folder = f"{FOLDER}{version}-{uuid.uuid4().hex}"
    fitted = _fitted(frame, table, uri).write
    (fitted.partitionBy(partitions) if partitions else fitted).parquet(f"{uri}/{folder}")
    actions: list[AddAction | RemoveAction] = [*_actions(table, folder)]
    may_commit()
    table.create_write_transaction(
        actions,
        mode="append",
        schema=table.schema(),
        partition_by=partitions,
        commit_properties=CommitProperties(app_transactions=[Transaction(app_id, version)]),
    )


def stamp(number: int) -> Column:
    """`number` as a column that is the same in every row, for `batch`.

    A literal would be a part of the generated code, so each batch's code would be new to the JVM: compiled again, and
    interpreted until it is. An element of an array is data.
    """
    return F.get(F.array(F.lit(number).cast("bigint")), F.pmod(F.spark_partition_id(), F.lit(1)))


@dataclass(frozen=True)
class Written:
    """A batch as bronze holds it: the number of rows, whether replays may have sent some of them, and the `accepted`
    and `rejected` ones (columns of bronze without `accepted`)."""

    rows: int
    rows_rejected: int
    replays: bool
    accepted: DataFrame
    rejected: DataFrame


def written(spark: SparkSession, lake_uri: str, contract: Contract, number: int) -> Written:
    """The rows of batch `number` in bronze, found by the file statistics of the log: after an append they are whole
    files, which are read as they are and counted without reading. Files that a compaction has mixed are searched."""
    uri = names.bronze(lake_uri, contract.stream)
    table, accepted = DeltaTable(names.local_path(uri)), "partition.accepted"
    files = pyarrow.table(table.get_add_actions(flatten=True)).to_pylist()
    mine = [file for file in files if _may_hold(file, number)]
    if all(file["min.batch"] == file["max.batch"] == number for file in mine):
        schema = table_schemas.bronze_schema(contract)
        columns = StructType([field for field in schema.fields if field.name != "accepted"])

        def rows(of: bool) -> DataFrame:
            paths = [f"{uri}/{file['path']}" for file in mine if file[accepted] is of]
            return spark.read.schema(columns).parquet(*paths) if paths else spark.createDataFrame([], columns)

        counts = {of: sum(file["num_records"] for file in mine if file[accepted] is of) for of in (True, False)}
        replays = any(file.get("max.attempt") != 0 for file in mine)  # one without statistics may have some
        return Written(sum(counts.values()), counts[False], replays, rows(True), rows(False))
    found = spark.read.format("delta").load(uri).where(F.col("batch") == number)
    [counted] = found.agg(F.count("*"), F.count_if(~F.col("accepted")), F.count_if(F.col("attempt") > 0)).collect()
    total, rejected, again = counted
    verdict = F.col("accepted")
    return Written(
        total, rejected, again > 0, found.where(verdict).drop("accepted"), found.where(~verdict).drop("accepted")
    )


def _may_hold(file: Mapping[str, Any], number: int) -> bool:
    """Whether a file may have rows of the batch; one without statistics may."""
    least, most = file.get("min.batch"), file.get("max.batch")
    return least is None or most is None or least <= number <= most


def _fitted(frame: DataFrame, table: DeltaTable, uri: str) -> DataFrame:
    """The columns of `frame` in the order and with the types of the table."""
    wanted = {field.name: field.dataType for field in StructType.fromJson(json.loads(table.schema().to_json()))}
    present = {field.name: field.dataType for field in frame.schema}
    if foreign := present.keys() - wanted.keys():
        raise ValueError(f"{uri} has no column {', '.join(sorted(foreign))}; `millrace stream deploy` adds new ones")
    return frame.select(
        *(
            F.col(f"`{name}`")
            if present[name].simpleString() == type_.simpleString()
            else F.col(f"`{name}`").cast(type_).alias(name)
            for name, type_ in wanted.items()
            if name in present
        )
    )


def _actions(table: DeltaTable, folder: str) -> Iterator[AddAction]:
    """The action that adds a file to the table, for each file in `folder` that has rows."""
    files: FileSystem = PyFileSystem(DeltaStorageHandler.from_table(table._table))
    metadata = table.metadata()
    described = metadata.configuration.get("delta.dataSkippingStatsColumns")
    columns = described.split(",") if described else [field.name for field in table.schema().fields]
    for info in files.get_file_info(FileSelector(folder, recursive=True)):
        if info.type != FileType.File or info.extension != "parquet":
            continue
        with files.open_input_file(info.path) as source:
            footer = parquet.read_metadata(source)
        if not footer.num_rows:
            continue
        partition = dict(part.split("=", 1) for part in info.path.split("/") if "=" in part)
        yield AddAction(
            path=info.path,
            size=info.size,
            partition_values={name: partition[name] for name in metadata.partition_columns},
            modification_time=int(time.time() * 1000),
            data_change=True,
            stats=json.dumps(_statistics(footer, columns)),
        )


def _statistics(footer: parquet.FileMetaData, columns: list[str]) -> dict[str, Any]:
    """The statistics of a file, as Delta's protocol describes them under "Per-file Statistics"; a column that the
    footer has no complete statistics of is left out."""
    leaves = {footer.schema.column(index).path: index for index in range(footer.num_columns)}
    least: dict[str, Any] = {}
    most: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for name in columns:
        if name not in leaves:
            continue
        groups = [footer.row_group(index).column(leaves[name]).statistics for index in range(footer.num_row_groups)]
        if not all(group is not None and group.has_null_count for group in groups):
            continue
        nulls[name] = sum(group.null_count for group in groups)
        if nulls[name] < footer.num_rows and all(group.has_min_max or not group.num_values for group in groups):
            bounded = [group for group in groups if group.has_min_max]
            least[name] = _statistic(min(group.min for group in bounded))
            most[name] = _statistic(max(group.max for group in bounded))
    return {"numRecords": footer.num_rows, "minValues": least, "maxValues": most, "nullCount": nulls}


def _statistic(value: Any) -> Any:
    """`value` as statistics have it. Delta reads times as UTC, and Spark writes them as such."""
    if isinstance(value, datetime):  # `%Y` does not fill years before 1000 up with zeros
        return f"{value.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"
    return value
