"""Delta tables in DuckDB: all rows that are wanted, from the files that may have them and from no other."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import LongType, StringType, StructField, StructType, TimestampType

from spark.lake import columnar
from spark.lake.columnar import File

T0 = datetime(2024, 1, 1, tzinfo=UTC)
SCHEMA = StructType(
    [
        StructField("batch", LongType()),
        StructField("event_time", TimestampType()),
        StructField("note", StringType()),
    ]
)


def table(*rows: dict[str, Any]) -> pyarrow.Table:
    return pyarrow.Table.from_pylist(list(rows), to_arrow_schema(SCHEMA, timezone="UTC"))


def found(uri: str, wanted: Any = lambda file: True, schema: StructType = SCHEMA) -> list[tuple[Any, ...]]:
    connection = columnar.connect("200m")
    relation = columnar.scan(connection, uri, schema, wanted)
    return connection.execute(f"select batch from {relation} order by all").fetchall()


def row(batch: int, hour: float = 0, note: str | None = None) -> dict[str, Any]:
    return {"batch": batch, "event_time": T0 + timedelta(hours=hour), "note": note}


def test_files_that_cannot_have_a_row_are_not_read(tmp_path: Path) -> None:
    """They are gone, so who reads them fails."""
    path = str(tmp_path / "t")
    for batch in range(4):
        write_deltalake(path, table(row(batch, batch), row(batch, batch + 0.5)), mode="append")
    kept = {action["path"] for action in actions(path) if action["min.batch"] == 2}
    for action in actions(path):
        if action["path"] not in kept:
            (tmp_path / "t" / action["path"]).unlink()
    assert found(f"file:{path}", lambda file: file.may_hold("batch", 2, 2)) == [(2,), (2,)]
    of_hour = (T0 + timedelta(hours=2.1), T0 + timedelta(hours=2.2))
    assert found(f"file:{path}", lambda file: file.may_hold("event_time", *of_hour)) == [(2,), (2,)]
    with pytest.raises(Exception, match="No files found"):
        found(f"file:{path}")


def actions(path: str) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = pyarrow.table(DeltaTable(path).get_add_actions(flatten=True)).to_pylist()
    return listed


@settings(max_examples=200, deadline=None)
@given(
    times=st.lists(st.integers(0, 5000), min_size=1, max_size=5),
    bounds=st.tuples(st.none() | st.integers(0, 5000), st.none() | st.integers(0, 5000)),
    cut=st.booleans(),
)
def test_a_file_with_a_row_that_is_wanted_is_never_left_out(
    times: list[int], bounds: tuple[int | None, int | None], cut: bool
) -> None:
    """Times in microseconds; Spark cuts those of its statistics to milliseconds."""

    def instant(micros: int | None) -> datetime | None:
        return None if micros is None else T0 + timedelta(microseconds=micros)

    def stated(micros: int) -> datetime | None:
        return instant(micros // 1000 * 1000 if cut else micros)

    least, most = bounds
    file = File("f", {"min.event_time": stated(min(times)), "max.event_time": stated(max(times))})
    wanted = any((least is None or time >= least) and (most is None or time <= most) for time in times)
    assert file.may_hold("event_time", instant(least), instant(most)) or not wanted


def test_a_file_without_statistics_may_have_any_row() -> None:
    assert File("f", {}).may_hold("batch", 1, 2)
    assert File("f", {"min.batch": 1, "max.batch": None}).may_hold("batch", 5, 6)
    assert not File("f", {"min.batch": 1, "max.batch": 3}).may_hold("batch", 5, 6)


def test_the_last_instant_of_all_has_no_next_one() -> None:
    end = datetime.max.replace(tzinfo=UTC)
    assert File("f", {"min.t": T0, "max.t": end}).may_hold("t", end, end)


def test_a_column_that_came_later_is_null_in_older_files_and_a_missing_table_is_empty(tmp_path: Path) -> None:
    path = str(tmp_path / "t")
    write_deltalake(path, table(row(1)).drop(["note"]))
    write_deltalake(path, table(row(2, note="new")), mode="append", schema_mode="merge")
    connection = columnar.connect("200m")
    for schema in (SCHEMA, StructType([*SCHEMA, StructField("newest", LongType())])):
        relation = columnar.scan(connection, f"file:{path}", schema)
        assert connection.execute(f"select note from {relation} order by batch").fetchall() == [(None,), ("new",)]
    relation = columnar.scan(connection, f"file:{tmp_path}/none", SCHEMA)
    assert connection.execute(f"select count(*) from {relation}").fetchall() == [(0,)]


@pytest.mark.parametrize("name", ["a b", "ä", "x?y", "x*y", "o'clock", "#1", "{a,b}"])
def test_any_folder_can_hold_a_table(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "t"
    path.mkdir(parents=True)
    for other in ("a", "b", "xzy"):  # what a pattern would match besides
        write_deltalake(str(tmp_path / other / "t"), table(row(9)))
    write_deltalake(str(path), table(row(1)))
    connection = columnar.connect("200m")
    relation = columnar.scan_of_path(connection, str(path), SCHEMA)
    assert connection.execute(f"select batch from {relation}").fetchall() == [(1,)]


def test_times_are_instants_whatever_the_year() -> None:
    chance = random.Random(3)
    connection = columnar.connect("200m")
    for year in (1, 999, 1600, 1970, 2024, 9999):
        time = datetime(year, chance.randint(1, 12), 5, chance.randint(0, 23), tzinfo=UTC) + timedelta(microseconds=7)
        at = columnar.instant(time)
        query = f"select epoch_us({at}), strftime({at}, '%Y-%m-%dT%H:%M:%S.%fZ')"
        assert connection.execute(query).fetchall() == [(columnar.micros(time), columnar.instant_text(time))]
    with pytest.raises(ValueError, match="time zone"):
        columnar.micros(T0.replace(tzinfo=None))
