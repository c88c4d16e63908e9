"""The catalog file: any DuckDB client finds the views in it, without Python functions. No JVM."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow
import pytest
from deltalake import DeltaTable, write_deltalake
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from infra.settings import Settings
from schemas.contract.catalog import catalog
from spark.lake import contents, names, table_schemas, tables
from spark.lake.publications import Publication
from spark.serving.duck import connect, write_catalog
from tests.support.command_line import millrace

FLIGHTS = catalog()["flights"]
[BY_ORIGIN, _] = FLIGHTS.aggregates
T0 = datetime(2024, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def append(uri: str, schema: StructType, row: dict[str, Any]) -> int:
    arrow = to_arrow_schema(schema, timezone="UTC")
    path = names.local_path(uri)
    write_deltalake(
        path, pyarrow.Table.from_pylist([{n: row.get(n) for n in arrow.names}], schema=arrow), mode="append"
    )
    return int(DeltaTable(path).version())


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    """An hour that is final and one that is open, of one airport."""
    config = Settings(home=tmp_path)
    tables.create(config.lake_uri, FLIGHTS)
    opened = {"window_start": T0 + HOUR, "origin": "JFK", "count_of_rows": 7, "batch": 1}
    place = (config.lake_uri, "flights", BY_ORIGIN.name)
    append(names.speed(*place), table_schemas.speed_schema(FLIGHTS, BY_ORIGIN), opened)
    publish(config, 1)
    return config


def publish(config: Settings, hours: int) -> None:
    place = (config.lake_uri, "flights", BY_ORIGIN.name)
    start = T0 + (hours - 1) * HOUR
    row = {"window": "1h", "window_start": start, "window_end": start + HOUR, "hour": start, "run_id": f"r{hours}"}
    row |= {"origin": "JFK", "scheduled": 40, "tail_numbers": 33, "p95_dep_delay": 12.0}
    version = append(names.batch(*place), table_schemas.batch_schema(FLIGHTS, BY_ORIGIN), row)
    published = Publication(
        f"r{hours}", "flights", T0 + hours * HOUR, 1, 1, 1, T0 + hours * HOUR, {BY_ORIGIN.name: version}
    )
    contents.append_rows(config.lake_uri, "publications", [published.row])


SQL = "select scheduled, tail_numbers, p95_dep_delay, source, final from departures_by_origin_1h order by window_start"


def plain(file: Path) -> list[Any]:
    """What a client that knows nothing of us sees."""
    with duckdb.connect(file, read_only=True) as client:
        return client.execute(SQL).fetchall()


def test_a_plain_client_finds_the_views_and_no_estimates(home: Settings) -> None:
    assert plain(write_catalog(home)) == [(40, 33, 12.0, "batch", True), (7, None, None, "speed", False)]
    assert [path.name for path in home.home.iterdir()].count("catalog.duckdb") == 1


def test_a_client_that_has_it_open_goes_on_while_it_is_written_again(home: Settings) -> None:
    with duckdb.connect(write_catalog(home), read_only=True) as client:
        before = client.execute(SQL).fetchall()
        publish(home, 2)
        write_catalog(home)
        assert client.execute(SQL).fetchall() == before
    assert [row[-1] for row in plain(home.catalog_file)] == [True, True]


def test_the_shell_opens_it_up_to_date_and_read_only(home: Settings) -> None:
    publish(home, 2)
    done = millrace(
        home.home, "sql", "--command", "select 'final: ' || count(*) from departures_by_origin_1h where final"
    )
    assert "final: 2" in done.stdout, done.stderr
    assert "read-only" in millrace(home.home, "sql", "--command", "create table t as select 1").stderr


def test_a_column_that_a_table_did_not_have_yet_is_null(tmp_path: Path) -> None:
    """As a query of now finds it at a time before there was the measure, or the version of the platform."""
    config = Settings(home=tmp_path)
    fewer = [one.model_copy(update={"measures": one.measures[:1]}) for one in FLIGHTS.aggregates]
    before = FLIGHTS.model_copy(update={"aggregates": fewer})
    tables.create(config.lake_uri, before)
    opened = {"window_start": T0, "origin": "JFK", "count_of_rows": 7, "batch": 1}
    speed = names.speed(config.lake_uri, "flights", BY_ORIGIN.name)
    append(speed, table_schemas.speed_schema(before, fewer[0]), opened)
    with connect(config, [FLIGHTS]) as views:
        assert views.execute(SQL).fetchall() == [(7, 0, None, "speed", False)]
        assert views.execute("select count(*) from flights_events").fetchall() == [(0,)]
