"""Upkeep of the tables: what is served and what can be read back stays the same while files go. No JVM."""

from __future__ import annotations

import json
import os
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake
from pyspark.sql.pandas.types import to_arrow_schema

from infra.settings import PROJECT, Settings
from schemas.contract.catalog import load
from schemas.contract.model import Retention
from spark.lake import contents, maintenance, names, retention, table_schemas, tables
from spark.lake.maintenance import TableMaintenance, maintain, usage
from spark.lake.publications import Publication, publications
from spark.serving.ask import QueryError, ask
from spark.serving.snapshot import NoSuchSnapshot, taken

WEATHER = load(PROJECT / "schemas" / "streams" / "weather")
[AGGREGATE] = WEATHER.aggregates
T0 = datetime(2024, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Lake:
    """A lake of weather, of which each `publish` makes one more hour final."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home, contracts=_only_weather(home))
        self.uri = self.settings.lake_uri
        tables.create(self.uri, WEATHER)
        self.batch = names.local_path(names.batch(self.uri, "weather", AGGREGATE.name))

    def write(self, hour: int, run_id: str) -> None:
        schema = to_arrow_schema(table_schemas.batch_schema(WEATHER, AGGREGATE), timezone="UTC")
        start = T0 + timedelta(hours=hour)
        row = {"window": "1h", "window_start": start, "window_end": start + timedelta(hours=1), "hour": start}
        row |= {"origin": "JFK", "readings": hour, "run_id": run_id}
        arrow = pyarrow.Table.from_pylist([{name: row.get(name) for name in schema.names}], schema=schema)
        write_deltalake(self.batch, arrow, mode="append")

    def publish(self, hour: int) -> None:
        run_id, through = f"run {hour}", T0 + timedelta(hours=hour + 1)
        self.write(hour, run_id)
        versions = {AGGREGATE.name: DeltaTable(self.batch).version()}
        published = Publication(run_id, "weather", through, hour, 1, 1, NOW + timedelta(hours=hour), versions)
        contents.append_rows(self.uri, "publications", [published.row])

    def maintain(self, after: int) -> dict[str, TableMaintenance]:
        done = maintain(self.uri, [WEATHER], "batch", "m", NOW + timedelta(hours=after))
        return {one.table: one for one in done}

    def served(self, as_of: str | None = None) -> list[int]:
        sql = "select readings from weather_by_origin_1h where final order by window_start"
        return [row["readings"] for row in ask(sql, as_of, self.settings).to_pylist()]

    def age(self, by: timedelta) -> None:
        """Makes what was removed from the batch table so far look removed longer ago."""
        for path in Path(self.batch, "_delta_log").glob("*.json"):
            actions = [json.loads(line) for line in path.read_text().splitlines()]
            for action in actions:
                if "remove" in action:
                    action["remove"]["deletionTimestamp"] -= int(by / timedelta(milliseconds=1))
            path.write_text("\n".join(map(json.dumps, actions)))

    def files(self) -> int:
        return len(list(Path(self.batch).glob("*.parquet")))


def _only_weather(home: Path) -> Path:
    (home / "schemas").mkdir(parents=True)
    (home / "schemas" / "weather").symlink_to(PROJECT / "schemas" / "streams" / "weather")
    return home / "schemas"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake(tmp_path)
    for hour in range(4):
        made.publish(hour)
    return made


def batch_of(done: dict[str, TableMaintenance]) -> TableMaintenance:
    return done[f"batch/weather/{AGGREGATE.name}"]


def test_small_files_are_joined_and_what_is_served_is_the_same(lake: Lake) -> None:
    done = batch_of(lake.maintain(after=4))
    assert (done.compacted, done.removed) == (4, 0), "nothing is removed that time travel reaches"
    assert lake.served() == [0, 1, 2, 3]
    last = publications(lake.uri, "weather")[-1]
    assert (last.run_id, last.final_through, last.through_batch) == ("maintain m", T0 + timedelta(hours=4), 3)
    assert last.versions == {AGGREGATE.name: DeltaTable(lake.batch).version()}, "queries read the large file"
    assert last.kind == "maintain"
    assert batch_of(lake.maintain(after=5)).compacted == 0
    assert len(publications(lake.uri, "weather")) == 5, "nothing done, nothing published"


def test_a_lake_from_before_publications_had_a_kind_is_kept_up_and_known_by_the_runs_names(lake: Lake) -> None:
    path = names.local_path(names.system(lake.uri, "publications"))

    def forget_kinds() -> None:
        older = DeltaTable(path).to_pyarrow_table().drop_columns(["kind"])
        write_deltalake(path, older, mode="overwrite", schema_mode="overwrite")

    forget_kinds()
    lake.maintain(after=4)
    assert [one.kind for one in publications(lake.uri, "weather")] == ["reconcile"] * 4 + ["maintain"]
    forget_kinds()
    assert [one.kind for one in publications(lake.uri, "weather")] == ["reconcile"] * 4 + ["maintain"]
    assert lake.served() == [0, 1, 2, 3]


def test_time_travel_reaches_back_as_far_as_promised_and_no_further(lake: Lake) -> None:
    lake.maintain(after=4)
    lake.age(maintenance.TIME_TRAVEL - timedelta(hours=1))
    assert batch_of(lake.maintain(after=5)).removed == 0
    assert lake.served("run 1") == [0, 1]
    lake.age(timedelta(hours=2))
    assert batch_of(lake.maintain(after=6)).removed == 4
    assert lake.files() == 1
    assert lake.served() == [0, 1, 2, 3]
    with pytest.raises(QueryError, match="as of run 1 is not kept any more"):
        lake.served("run 1")


def test_what_is_served_is_never_removed_however_old_it_is(lake: Lake) -> None:
    """Maintenance was killed between its compaction and its publication, long ago."""
    DeltaTable(lake.batch).optimize.compact()
    lake.age(timedelta(days=99))
    before = publications(lake.uri, "weather")
    assert DeltaTable(lake.batch).version() > before[-1].versions[AGGREGATE.name]
    assert batch_of(lake.maintain(after=4)).removed == 0
    assert lake.served("run 3") == [0, 1, 2, 3]
    assert lake.served() == [0, 1, 2, 3]
    assert publications(lake.uri, "weather")[-1].versions == {AGGREGATE.name: DeltaTable(lake.batch).version()}


def test_rows_that_are_not_published_are_left_to_the_next_run(lake: Lake) -> None:
    lake.write(7, "killed")
    assert "not published" in batch_of(lake.maintain(after=4)).left_alone
    assert publications(lake.uri, "weather")[-1].run_id == "run 3"
    assert lake.served() == [0, 1, 2, 3]


def test_final_windows_of_then_are_there_when_the_open_ones_are_not_kept_any_more(lake: Lake) -> None:
    """Speed and bronze keep their history less long than the batch tables."""
    speed = names.local_path(names.speed(lake.uri, "weather", AGGREGATE.name))
    schema = to_arrow_schema(table_schemas.speed_schema(WEATHER, AGGREGATE), timezone="UTC")
    row = {"window_start": T0 + timedelta(hours=2), "origin": "JFK", "count_of_rows": 1, "batch": 0}
    partial = pyarrow.Table.from_pylist([{name: row.get(name) for name in schema.names}], schema=schema)
    write_deltalake(speed, partial, mode="append")
    log = Path(speed, "_delta_log")
    DeltaTable(speed).create_checkpoint()
    for number in (0, 1):
        os.utime(log / f"{number:020}.json", (time.time() + 3600, time.time() + 3600))
    (log / f"{0:020}.json").unlink()
    assert lake.served("run 1") == [0, 1]
    config = lake.settings
    assert ask("select count(*) as n from weather_by_origin_1h", config=config).to_pylist() == [{"n": 4}]
    for sql in ("from weather_by_origin_1h", "select count(*) from weather_by_origin_5m"):
        with pytest.raises(QueryError, match=f"the state of .*speed/weather/{AGGREGATE.name} at that time is not kept"):
            ask(sql, "run 1", config)


def in_force(lake: Lake, as_of: str | datetime) -> str:
    """The run whose publication is served as of then, or what the error says."""
    try:
        return taken(lake.uri, [WEATHER], as_of).publications["weather"].run_id
    except NoSuchSnapshot as error:
        return str(error)


@pytest.mark.parametrize("oldest", range(1, 5))
def test_a_state_whose_log_is_not_kept_is_an_error_and_never_a_later_state(lake: Lake, oldest: int) -> None:
    """Version n of the publications' log has n of them. What is older than a checkpoint is cleaned up."""
    uri = names.system(lake.uri, "publications")
    log = Path(names.local_path(uri), "_delta_log")
    instants = [datetime(2026, 1, 1, version, tzinfo=UTC) for version in range(5)]
    for version, instant in enumerate(instants):
        os.utime(log / f"{version:020}.json", (instant.timestamp(), instant.timestamp()))
    DeltaTable(log.parent, version=oldest).create_checkpoint()
    for version in range(oldest):
        (log / f"{version:020}.json").unlink()
    gone = re.compile(f"{re.escape(uri)} at .* is not kept any more.*; ask for a later time")
    for version in range(1, 5):
        run = f"run {version - 1}"
        # The version before a run's shows that the run had not published by then.
        assert in_force(lake, run) == run if version > oldest else gone.search(in_force(lake, run))
        instant = instants[version]
        assert in_force(lake, instant) == run if version >= oldest else gone.search(in_force(lake, instant))


def test_a_state_whose_files_are_not_kept_is_an_error_and_never_a_later_state(lake: Lake) -> None:
    log = DeltaTable(names.local_path(names.system(lake.uri, "publications")))
    instant = datetime.fromtimestamp(log.history(1)[0]["timestamp"] / 1000 + 0.001, UTC)
    log.optimize.compact()
    assert [in_force(lake, f"run {hour}") for hour in range(4)] == [f"run {hour}" for hour in range(4)]
    assert log.vacuum(0, dry_run=False, enforce_retention_duration=False)
    for as_of in (instant, "run 0", "run 1", "run 2", "run 3"):
        assert re.search(
            "publications at version . is not kept any more.*; ask for a later time", in_force(lake, as_of)
        )
    assert lake.served() == [0, 1, 2, 3]


@pytest.mark.parametrize("killed", [False, True], ids=["at-once", "killed-before-it-published"])
def test_windows_are_kept_as_long_as_the_contract_says(lake: Lake, killed: bool) -> None:
    lake.publish(30)
    short = WEATHER.model_copy(update={"retention": Retention(batch=timedelta(hours=1))})
    since = T0 + timedelta(days=1)
    if killed:
        assert retention.remove(f"file:{lake.batch}", "hour", since) == 4
    done = {one.table: one for one in maintain(lake.uri, [short], "batch", "m", NOW + timedelta(hours=31))}
    assert (batch_of(done).expired, batch_of(done).left_alone) == (0 if killed else 4, "")
    assert lake.served() == [30]
    assert lake.served("run 3") == [0, 1, 2, 3], "time travel reaches them"
    assert retention.kept_since(f"file:{lake.batch}") == since
    assert publications(lake.uri, "weather")[-1].run_id == "maintain m"
    assert maintain(lake.uri, [short], "batch", "m", NOW + timedelta(hours=32))
    assert len(publications(lake.uri, "weather")) == 6, "nothing done, nothing published"


def test_a_join_s_files_are_looked_after_unless_a_run_died(lake: Lake) -> None:
    flights = load(PROJECT / "schemas" / "streams" / "flights")
    [join] = flights.joins
    tables.create(lake.uri, flights)
    uri = names.batch(lake.uri, "flights", join.name)
    schema = to_arrow_schema(table_schemas.stateful_batch_schema(flights, join), timezone="UTC")

    def publish(run_id: str, *, dies: bool = False) -> None:
        row = {"event_time": T0, "carrier": run_id, "closes_at": T0, "run_id": run_id}
        arrow = pyarrow.Table.from_pylist([{name: row.get(name) for name in schema.names}], schema=schema)
        told = CommitProperties(custom_metadata={"userMetadata": run_id})
        write_deltalake(names.local_path(uri), arrow, mode="append", commit_properties=told)
        if not dies:
            published = Publication(run_id, f"flights.{join.name}", T0, 0, 0, 1, NOW)
            contents.append_rows(lake.uri, "publications", [published.row])

    def done() -> TableMaintenance:
        [one] = [
            one for one in maintain(lake.uri, [flights], "batch", "m", NOW) if one.table == f"batch/flights/{join.name}"
        ]
        return one

    publish("r1")
    publish("r2")
    first = done()
    assert (first.compacted, first.left_alone) == (2, "")
    publish("r3", dies=True)
    assert "not published" in done().left_alone
    publish("r4")
    assert done().left_alone == ""


def test_each_owner_keeps_up_its_own_tables(lake: Lake) -> None:
    owners: Any = ("batch", "letters", "audits")
    contracts = [WEATHER, load(PROJECT / "schemas" / "streams" / "flights")]
    for contract in contracts:
        tables.create(lake.uri, contract)
    done = {owner: maintain(lake.uri, contracts, owner, "m", NOW) for owner in owners}
    touched = {owner: {one.table for one in mine} for owner, mine in done.items()}
    assert touched["letters"] == {"system/moves", "system/replays"}
    assert touched["audits"] == {"system/audits"}
    everything = {one.table: one.owner for one in usage(lake.uri, contracts)}
    mine = {table for table, owner in everything.items() if owner == "batch jobs"}
    unpublished = {table for table in mine if table.startswith("batch/flights/departures")}
    assert touched["batch"] == mine - unpublished
    assert {owner for table, owner in everything.items() if table.startswith(("bronze", "speed"))} == {
        "streaming driver"
    }


def test_disk_use_is_that_of_all_versions(lake: Lake) -> None:
    def of_batch() -> maintenance.Usage:
        [one] = [one for one in usage(lake.uri, [WEATHER]) if one.table == f"batch/weather/{AGGREGATE.name}"]
        return one

    before = of_batch()
    assert (before.rows, before.files) == (4, 4)
    lake.maintain(after=4)
    after = of_batch()
    assert (after.rows, after.files) == (4, 1)
    assert after.bytes < before.bytes <= before.bytes_on_disk < after.bytes_on_disk
    on_disk = sum(path.stat().st_size for path in Path(lake.batch).rglob("*") if path.is_file())
    assert after.bytes_on_disk == on_disk
