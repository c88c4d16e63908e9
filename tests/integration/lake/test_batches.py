"""Files by Spark, commits by delta-rs: what Spark's own Delta reader, DuckDB and delta-rs make of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow
import pytest
from deltalake import DeltaTable, Field, Schema
from deltalake.exceptions import CommitFailedError
from deltalake.schema import PrimitiveType
from duckdb_extensions import import_extension
from pyspark.sql import DataFrame, SparkSession

from spark.speed import delta_append
from spark.speed.small_files import Upkeep

START = datetime(2024, 3, 31, 1, 59, 59, 999_999, tzinfo=UTC)

SCHEMA = "number bigint, at timestamp, name string, headers array<struct<key: string, value: binary>>, batch bigint"


@pytest.fixture
def table(tmp_path: Path) -> str:
    """An empty table with all of a bronze table's kinds of columns, which keeps statistics of three of them."""
    long, string = PrimitiveType("long"), PrimitiveType("string")
    fields = [Field("number", long), Field("at", PrimitiveType("timestamp")), Field("name", string)]
    headers = '{"type":"array","elementType":{"type":"struct","fields":[{"name":"key","type":"string","nullable":true,'
    headers += '"metadata":{}},{"name":"value","type":"binary","nullable":true,"metadata":{}}]},"containsNull":true}'
    fields += [Field.from_json(f'{{"name":"headers","type":{headers},"nullable":true,"metadata":{{}}}}')]
    fields += [Field("batch", long), Field("accepted", PrimitiveType("boolean")), Field("gone", string)]
    DeltaTable.create(
        str(tmp_path / "lake" / "t"),
        Schema(fields),
        partition_by=["accepted"],
        configuration={"delta.dataSkippingStatsColumns": "batch,at,name"},
    )
    return f"file:{tmp_path}/lake/t"


def rows(spark: SparkSession, numbers: range, batch: int) -> DataFrame:
    found = [
        (n, START + timedelta(microseconds=n), None if n % 3 else f"n{n}", [("k", bytearray(b"v"))], batch)
        for n in numbers
    ]
    return spark.createDataFrame(found, SCHEMA).selectExpr("*", "number % 5 > 0 as accepted")


def committed(uri: str) -> DeltaTable:
    return DeltaTable(uri.removeprefix("file:"))


def files(uri: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pyarrow.table(committed(uri).get_add_actions(flatten=True)).to_pylist()
    return found


def in_spark(spark: SparkSession, uri: str, where: str = "true") -> list[int]:
    return sorted(row.number for row in spark.read.format("delta").load(uri).where(where).collect())


def test_a_batch_is_one_commit_that_every_reader_understands(spark: SparkSession, table: str) -> None:
    delta_append.append(rows(spark, range(20), 7), table, "app", 7)
    assert (committed(table).version(), committed(table).transaction_version("app")) == (1, 7)
    assert in_spark(spark, table) == [*range(20)]
    assert in_spark(spark, table, f"at > timestamp '{START + timedelta(microseconds=17):%F %T.%f}Z'") == [18, 19]
    assert in_spark(spark, table, "batch = 8") == []
    columns = committed(table).to_pyarrow_table().sort_by("number").to_pylist()
    assert [row["number"] for row in columns] == [*range(20)]
    assert columns[6] == {
        "number": 6, "at": START + timedelta(microseconds=6), "name": "n6", "headers": [{"key": "k", "value": b"v"}],
        "batch": 7, "accepted": True, "gone": None,
    }  # fmt: skip
    import_extension("delta")
    with duckdb.connect() as connection:
        connection.execute("load delta")
        scan = f"select count(*), sum(number) from delta_scan('{table.removeprefix('file:')}') where not accepted"
        assert connection.execute(scan).fetchone() == (4, 30)


def test_statistics_are_those_of_the_rows(spark: SparkSession, table: str) -> None:
    delta_append.append(rows(spark, range(20), 7).coalesce(1), table, "app", 7)
    by_verdict = {file["partition.accepted"]: file for file in files(table)}
    rejected = by_verdict[False]  # 0, 5, 10, 15
    assert (rejected["num_records"], rejected["min.batch"], rejected["max.batch"]) == (4, 7, 7)
    assert (rejected["min.at"], rejected["max.at"]) == (START, START + timedelta(microseconds=15))
    assert (rejected["min.name"], rejected["max.name"], rejected["null_count.name"]) == ("n0", "n15", 2)
    assert "min.number" not in rejected, "the table keeps none of it"
    assert by_verdict[True]["num_records"] == 16
    nameless = rows(spark, range(1, 3), 8).coalesce(1)
    delta_append.append(nameless, table, "app", 8)
    [file] = [file for file in files(table) if file["min.batch"] == 8]
    assert (file["null_count.name"], file["min.name"]) == (2, None)


def test_a_batch_comes_once(spark: SparkSession, table: str) -> None:
    for _ in range(2):
        delta_append.append(rows(spark, range(20), 7), table, "app", 7)
    delta_append.append(rows(spark, range(20, 25), 6), table, "app", 6)
    assert in_spark(spark, table) == [*range(20)]
    delta_append.append(rows(spark, range(20, 25), 6), table, "next generation", 6)
    assert in_spark(spark, table) == [*range(25)]


def test_a_batch_without_rows_is_noted(spark: SparkSession, table: str) -> None:
    delta_append.append(rows(spark, range(20), 7).where("number < 0"), table, "app", 7)
    assert (committed(table).transaction_version("app"), files(table)) == (7, [])


def test_without_the_lease_files_are_left_and_nothing_is_committed(spark: SparkSession, table: str) -> None:
    def lost() -> None:
        raise RuntimeError("another driver was started")

    with pytest.raises(RuntimeError, match="another driver"):
        delta_append.append(rows(spark, range(20), 7), table, "app", 7, lost)
    place = Path(table.removeprefix("file:"))
    assert (committed(table).version(), in_spark(spark, table)) == (0, [])
    assert [*place.rglob("*.parquet")], "they were written before the lease was asked"
    delta_append.append(rows(spark, range(20), 7), table, "app", 7)
    assert in_spark(spark, table) == [*range(20)]
    Upkeep([table], timedelta(0)).clean()
    assert in_spark(spark, table) == [*range(20)]
    assert len([*place.glob("batch-*")]) == 1, "those that were left are gone, and their folder"


def test_a_driver_that_slept_before_its_commit_is_refused_by_delta(spark: SparkSession, table: str) -> None:
    """It asked for the lease in time; another driver has committed the batch before it wakes."""

    def slept() -> None:
        delta_append.append(rows(spark, range(20), 7), table, "app", 7)

    with pytest.raises(CommitFailedError):
        delta_append.append(rows(spark, range(20), 7), table, "app", 7, slept)
    assert in_spark(spark, table) == [*range(20)]


def test_types_are_the_tables_and_unknown_columns_are_refused(spark: SparkSession, table: str) -> None:
    narrow = rows(spark, range(5), 7).selectExpr("accepted", "cast(number as int) as number", "at", "batch")
    delta_append.append(narrow, table, "app", 7)
    assert in_spark(spark, table) == [*range(5)]
    with pytest.raises(ValueError, match="has no column colour"):
        delta_append.append(rows(spark, range(5), 8).selectExpr("*", "'red' as colour"), table, "app", 8)


def test_a_stream_over_the_table_reads_each_batch_once(spark: SparkSession, table: str, tmp_path: Path) -> None:
    taken: list[int] = []

    def take(frame: DataFrame, _: int) -> None:
        taken.extend(row.number for row in frame.collect())

    def run() -> None:
        source = spark.readStream.format("delta").option("skipChangeCommits", "true").load(table)
        query = source.writeStream.option("checkpointLocation", str(tmp_path / "state")).foreachBatch(take)
        query.trigger(availableNow=True).start().awaitTermination(60)

    delta_append.append(rows(spark, range(10), 7), table, "app", 7)
    run()
    delta_append.append(rows(spark, range(10, 15), 8), table, "app", 8)
    run()
    assert sorted(taken) == [*range(15)]
