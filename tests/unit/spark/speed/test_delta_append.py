"""The statistics of files that are appended, as Delta's own reader has them. No JVM."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from spark.speed import delta_append

YEARS = (1, 9, 10, 99, 100, 999, 1000, 1582, 1969, 1970, 2026, 9999)


@given(st.datetimes(timezones=st.sampled_from([None, UTC])))
def test_a_time_of_any_year_is_written_so_that_texts_are_in_the_order_of_times(time: datetime) -> None:
    text = delta_append._statistic(time)
    assert datetime.fromisoformat(text) == time.replace(tzinfo=UTC)
    assert len(text) == len("0001-01-01T00:00:00.000000Z")


def test_delta_reads_the_times_of_any_year_as_they_are_in_the_file(tmp_path: Path) -> None:
    type_ = pyarrow.timestamp("us", tz="UTC")
    schema = pyarrow.schema([("event_time", type_), ("year", pyarrow.int32())])
    table = DeltaTable.create(tmp_path, schema)
    (tmp_path / "batch").mkdir()
    spans = {year: (datetime(year, 1, 1, tzinfo=UTC), datetime(year, 12, 31, 23, tzinfo=UTC)) for year in YEARS}
    for year, span in spans.items():
        columns = {"event_time": pyarrow.array(span, type_), "year": pyarrow.array([year, year], pyarrow.int32())}
        parquet.write_table(pyarrow.table(columns), tmp_path / "batch" / f"{year}.parquet")
    table.create_write_transaction([*delta_append._actions(table, "batch")], mode="append", schema=table.schema())
    files = pyarrow.table(DeltaTable(tmp_path).get_add_actions(flatten=True)).to_pylist()
    assert {file["min.year"]: (file["min.event_time"], file["max.event_time"]) for file in files} == spans
