"""A sixth stream that nothing in the code knows of: its files, its events, and hand-written SQL for all that must be
made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

START = datetime(2013, 1, 10, tzinfo=UTC)
"""In the month of the data sets, so that the gauges have weather."""

SCHEMA = {
    "type": "record",
    "name": "Tide",
    "fields": [
        {"name": "measured_at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "gauge", "type": "string"},
        {"name": "origin", "type": "string", "doc": "The airport nearby, by whose weather the gauge stands."},
        {"name": "level", "type": "double", "doc": "Metres."},
    ],
}

CONTRACT = """
stream: tides
description: Water levels at gauges.
owner: harbour
topic: {partitions: 2, replication: 1, retention: 30d}
compatibility: BACKWARD
key: [gauge]
event_id: [measured_at, gauge]
event_time: measured_at
allowed_lateness: 1h
rules:
  - {name: level_is_physical, predicate: level between -20 and 20, reason: level is outside -20 to 20 metres}
aggregates:
  - name: tides_by_gauge
    description: Levels by gauge.
    dimensions: [gauge]
    windows: [1m, 5m, 1h]
    measures:
      - {name: readings, kind: count}
      - {name: highest, kind: max, of: level}
velocity:
  - {name: restless_gauges, description: Gauges that measure more often than they should., key: [gauge], within: 10m,
     more_than: 6}
sessions:
  - name: watches
    description: Readings of a gauge without a pause.
    key: [gauge]
    gap: 5m
    measures: [{name: highest, kind: max, of: level}]
joins:
  - {name: tides_with_weather, description: Levels with the weather of the hour before., other: weather, on: [origin],
     before: 1h, kind: left, fields: [level], other_fields: [wind_speed]}
references:
  - {name: gauges, description: The level from which a gauge's shore is under water., file: gauges.csv, key: [gauge]}
alerts:
  - {name: flood, description: The shore is under water., predicate: level > gauges.flood_level, severity: critical,
     references: [gauges]}
quality:
  ranges: {level: [-20, 20]}
  references: {gauges: {}}
"""

GAUGES = "gauge,flood_level\nnorth,2.9\nsouth,2.95\neast,3.0\nwest,3.0\n"


def write(folder: Path) -> None:
    """The whole of what a new stream takes."""
    folder.mkdir()
    (folder / "v1.avsc").write_text(json.dumps(SCHEMA))
    (folder / "stream.yaml").write_text(CONTRACT)
    (folder / "gauges.csv").write_text(GAUGES)


def reading(gauge: str, at: timedelta, level: float) -> dict[str, Any]:
    origin = {"north": "JFK", "south": "LGA"}.get(gauge, "nowhere")
    return {"measured_at": START + at, "gauge": gauge, "origin": origin, "level": level}


def readings() -> list[dict[str, Any]]:
    """Five hours: two gauges in turn, each minute; the north one is silent for 40 minutes and restless for one."""
    minutes = [("north" if n % 2 else "south", timedelta(minutes=n), n / 100) for n in range(300)]
    steady = [reading(*one) for one in minutes if one[0] == "south" or not 100 < one[1].total_seconds() / 60 < 140]
    restless = [reading("north", timedelta(minutes=200, seconds=5 * n), 1.5) for n in range(1, 9)]
    return sorted(steady + restless, key=lambda one: one["measured_at"])


CLOSING = reading("west", timedelta(hours=12), 0.0)
"""After it everything before is final."""

ORACLE = {
    **{
        f"tides_by_gauge_{window}": f"""
        select time_bucket(interval '{span}', measured_at) as window_start, gauge, count(*) as readings,
            max(level) as highest
        from tides group by all"""
        for window, span in {"1m": "1 minute", "5m": "5 minutes", "1h": "1 hour"}.items()
    },
    "restless_gauges": """
        with done as (select gauge, measured_at, count(*) over (partition by gauge order by epoch_us(measured_at)
                range between 599999999 preceding and current row) as done from tides),
            seen as (select *, lag(done) over w as before, lag(measured_at) over w as before_at from done
                window w as (partition by gauge order by measured_at))
        select gauge, measured_at as event_time, done from seen
        where done > 6 and not coalesce(before > 6 and measured_at - before_at < interval '10 minutes', false)""",
    "watches": """
        with begun as (select *, coalesce(measured_at - lag(measured_at) over w > interval '5 minutes', true) as begins
                from tides window w as (partition by gauge order by measured_at)),
            numbered as (select *, sum(begins::int) over (partition by gauge order by measured_at) as nth from begun)
        select gauge, min(measured_at) as session_start, max(measured_at) + interval '5 minutes' as session_end,
            count(*) as events, max(level) as highest
        from numbered group by gauge, nth""",
    "tides_with_weather": """
        select t.measured_at as event_time, t.gauge, t.origin, t.level, w.event_time as weather_event_time,
            w.origin as weather_origin, w.wind_speed as weather_wind_speed
        from tides t left join weather w on w.origin = t.origin
            and w.event_time > t.measured_at - interval '1 hour' and w.event_time <= t.measured_at""",
    "tides_alerts": """
        select 'flood' as alert, 'critical' as severity, measured_at as event_time, gauge from tides join
            (values ('north', 2.9), ('south', 2.95), ('east', 3.0), ('west', 3.0)) as gauges(name, flood_level)
            on name = gauge where level > flood_level""",
}
"""View to its exact rows, by hand-written SQL over `tides` and `weather` in DuckDB."""

SHOWN = {"tides_alerts": "alert, severity, event_time, record ->> 'gauge' as gauge"}
"""How a view is asked for the columns of its oracle, where it has them not by name."""


def learn(truth: duckdb.DuckDBPyConnection, events: Iterable[dict[str, Any]]) -> None:
    """The oracle hears of the readings from the test, not from the platform."""
    truth.execute("create table if not exists tides (measured_at timestamptz, gauge text, origin text, level double)")
    truth.executemany("insert into tides values (?, ?, ?, ?)", [list(event.values()) for event in events])
