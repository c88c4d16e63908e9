"""One micro-batch, straight: what it leaves in the tables and sends, and that running it again changes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyspark.sql import SparkSession

from infra.settings import Settings
from schemas.contract.catalog import catalog
from schemas.contract.model import Contract
from spark.lake import names, table_schemas, tables
from spark.lake.batch_numbers import batch_number
from spark.serving import spark_views
from spark.serving.duck import connect
from spark.speed import delta_append, ingest, small_files
from spark.speed.checkpoint import ingest_start
from spark.speed.dead_letters import Letters
from spark.speed.ingest import Ingest, PoisonStorm
from spark.speed.small_files import Upkeep, of_ingest
from spark.speed.writer_schemas import Known
from spark.transforms.decode import decode
from spark.transforms.validate import validate
from tests.support.kafka_rows import Row, frame, wire

FLIGHTS = catalog()["flights"]
MORNING = datetime(2013, 7, 4, 13, 0, tzinfo=UTC)


class Outbox(Letters):
    """Takes letters as its base class does, which needs a broker (and is tested with one)."""

    def __init__(self) -> None:
        super().__init__(FLIGHTS, {}, "outbox")
        self.sent: list[Any] = []
        self._next = 0

    def send(self, batch_id: int, letters: Callable[[], Iterable[Any]]) -> int:
        if batch_id < self._next:
            return 0
        self.sent += letters()
        self._next = batch_id + 1
        return 1

    def close(self) -> None:
        pass


def flight(minute: float, number: int, **changes: Any) -> dict[str, Any]:
    delay = number % 50
    time = MORNING + timedelta(minutes=minute)
    record = {
        "event_time": time, "carrier": "UA" if number % 3 else "B6", "flight": number,
        "origin": "EWR" if number % 2 else "JFK", "dest": "BOS", "tailnum": f"N{number % 17}",
        "dep_time": time + timedelta(minutes=delay), "dep_delay": delay,
        "arr_delay": None, "air_time": 40, "distance": 200,
    }  # fmt: skip
    return record | changes


def value(record: dict[str, Any]) -> bytes:
    return wire(1, FLIGHTS.schema_now, record)


class Pipeline:
    """An ingest into a fresh lake, fed by hand."""

    def __init__(self, spark: SparkSession, home: Path, contract: Contract = FLIGHTS) -> None:
        self.spark = spark
        self.settings = Settings(home=home)
        self.contract = contract
        self.outbox = Outbox()
        self.commits = 0
        self.crash_at: int | None = None
        tables.create(self.settings.lake_uri, contract)
        self.ingest = Ingest(
            contract,
            self.settings.lake_uri,
            1,
            Known({1: json.dumps(contract.schema_now)}),
            self.outbox,
            self._may_commit,
        )

    def batch(self, batch_id: int, rows: list[Row]) -> None:
        self.commits = 0
        self.ingest.batch(frame(self.spark, rows), batch_id)

    def _may_commit(self) -> None:
        self.commits += 1
        if self.commits == self.crash_at:
            raise RuntimeError("the power is out")

    def contents(self) -> dict[str, list[dict[str, Any]]]:
        uris = [names.bronze(self.settings.lake_uri, "flights")]
        uris += [names.speed(self.settings.lake_uri, "flights", a.name) for a in self.contract.aggregates]
        found = {}
        for uri in uris:
            rows = DeltaTable(names.local_path(uri)).to_pyarrow_table().to_pylist()
            found[uri] = sorted(rows, key=repr)
        return found


BAD = [
    Row(b"nonsense", "flights", 100),
    Row(value(flight(0, 7, distance=-1)), "flights", 101, headers=[("trace", b"1")]),
]


def good(numbers: Iterable[int], offset: int = 0) -> list[Row]:
    return [Row(value(flight(n % 90, n)), "flights", offset + i) for i, n in enumerate(numbers)]


def test_every_record_is_one_row_repeats_count_once_and_rejects_become_letters(
    spark: SparkSession, tmp_path: Path
) -> None:
    pipeline = Pipeline(spark, tmp_path)
    pipeline.batch(0, good([*range(60), *range(20)]) + BAD)
    bronze, by_origin, by_carrier = pipeline.contents().values()
    assert sorted(row["offset"] for row in bronze) == [*range(80), 100, 101]
    assert {row["batch"] for row in bronze + by_origin + by_carrier} == {batch_number(1, 0)}
    assert sum(row["count_of_rows"] for row in by_origin) == sum(row["count_of_rows"] for row in by_carrier) == 60
    letters = {letter["id"]: letter for letter in pipeline.outbox.sent}
    assert {name: letter["error_class"] for name, letter in letters.items()} == {
        "flights/0/100": "malformed", "flights/0/101": "rule",
    }  # fmt: skip
    assert (bytes(letters["flights/0/100"]["value"]), letters["flights/0/101"]["attempt"]) == (b"nonsense", 0)
    assert letters["flights/0/101"]["reason"] == "distance is not positive"


@pytest.mark.parametrize("folder", ["with a space", "ünï çødé 水", "a+b&c=d;e,f@g~h"])
def test_a_home_of_any_name_that_is_not_refused_is_the_same_folder_for_all_readers(
    spark: SparkSession, tmp_path: Path, folder: str
) -> None:
    pipeline = Pipeline(spark, tmp_path / folder / "m")
    for batch, rows in enumerate((good(range(5)) + BAD, good(range(5, 8), offset=200))):
        pipeline.batch(batch, rows)
    bronze, by_origin, _ = pipeline.contents().values()
    assert (len(bronze), sum(row["count_of_rows"] for row in by_origin)) == (10, 8)
    question = "select count(*) from flights_events"
    with connect(pipeline.settings, [FLIGHTS]) as served:
        assert served.execute(question).fetchall() == [(8,)]
    spark_views.register(spark, FLIGHTS, pipeline.settings.lake_uri)
    assert [tuple(row) for row in spark.sql(question).collect()] == [(8,)]
    assert [path.name for path in tmp_path.iterdir()] == [folder]


def test_a_batch_that_runs_again_changes_nothing(spark: SparkSession, tmp_path: Path) -> None:
    pipeline = Pipeline(spark, tmp_path)
    pipeline.batch(0, good(range(30)) + BAD)
    before, sent = pipeline.contents(), len(pipeline.outbox.sent)
    pipeline.batch(0, good(range(30)) + BAD)
    assert pipeline.contents() == before
    assert len(pipeline.outbox.sent) == sent


def test_a_batch_that_crashes_before_each_of_its_commits_in_turn_is_completed_once(
    spark: SparkSession, tmp_path: Path
) -> None:
    whole = Pipeline(spark, tmp_path / "whole")
    whole.batch(0, good(range(30)) + BAD)
    assert whole.commits == 4  # bronze, two aggregates, letters
    pipeline = Pipeline(spark, tmp_path / "crashing")
    for crash_at in range(1, whole.commits + 1):
        pipeline.crash_at = crash_at
        with pytest.raises(RuntimeError, match="power"):
            pipeline.batch(0, good(range(30)) + BAD)
    pipeline.crash_at = None
    pipeline.batch(0, good(range(30)) + BAD)
    assert list(pipeline.contents().values()) == list(whole.contents().values())
    assert len(pipeline.outbox.sent) == 2


def test_a_batch_that_runs_again_after_its_files_were_merged_with_others_is_completed_once(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_files, "MANY", 2)
    pipeline = Pipeline(spark, tmp_path)
    pipeline.batch(0, good(range(30)) + BAD)
    pipeline.crash_at = 3  # bronze has the batch, one aggregate has it, the other and the letters are missing
    with pytest.raises(RuntimeError, match="power"):
        pipeline.batch(1, [*good(range(40, 60), offset=200), Row(b"x", "flights", 300)])
    pipeline.crash_at = None
    assert Upkeep(of_ingest(pipeline.settings.lake_uri, FLIGHTS), timedelta(days=1)).merge()
    pipeline.batch(1, [*good(range(40, 60), offset=200), Row(b"x", "flights", 300)])
    bronze, by_origin, by_carrier = pipeline.contents().values()
    assert (len(bronze), len(pipeline.outbox.sent)) == (53, 3)
    for partials in (by_origin, by_carrier):
        counted = {
            n: sum(row["count_of_rows"] for row in partials if row["batch"] == batch_number(1, n)) for n in (0, 1)
        }
        assert counted == {0: 30, 1: 20}


def test_a_batch_of_many_repeats_counts_them_once(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "MOST_SUSPECTS", 5)
    pipeline = Pipeline(spark, tmp_path)
    pipeline.batch(0, good([*range(20), *range(12)]))
    _, by_origin, by_carrier = pipeline.contents().values()
    assert sum(row["count_of_rows"] for row in by_origin) == sum(row["count_of_rows"] for row in by_carrier) == 20


def test_the_batches_run_the_same_code_and_spark_compiles_all_of_it(spark: SparkSession) -> None:
    def code(batch: int) -> str:
        decoded = decode(frame(spark, good(range(2))).repartition(1), FLIGHTS, {1: json.dumps(FLIGHTS.schema_now)})
        plan = (
            validate(decoded, FLIGHTS)
            .withColumn("batch", delta_append.stamp(batch))
            ._jdf.queryExecution()
            .executedPlan()
        )
        debug = getattr(spark._jvm.org.apache.spark.sql.execution.debug, "package$")  # type: ignore[union-attr]
        return str(getattr(debug, "MODULE$").codegenString(plan))

    def compiled(code: str) -> list[str]:
        return [line for line in code.splitlines() if line.startswith("/*")]

    first, second = code(batch_number(1, 0)), code(batch_number(1, 1))
    assert compiled(first) == compiled(second)
    assert first.count("from_avro") > 0
    stage = next(part for part in first.split("== Subtree ") if "from_avro" in part)
    tree = stage.split("Generated code:")[0]
    assert not [line for line in tree.splitlines() if re.match(r"[ :+-]*Project", line)], "all in one compiled stage"


def test_no_process_is_started_for_a_file(spark: SparkSession, tmp_path: Path) -> None:
    """As the JVM's own recorder has it: neither for what a batch writes nor for a checkpoint."""
    pipeline = Pipeline(spark, tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "one.txt").write_text("a line\n")
    jvm: Any = spark._jvm
    seen = jvm.java.io.File(f"{tmp_path}/seen.jfr").toPath()
    with closing(jvm.jdk.jfr.Recording()) as recording:
        recording.enable("jdk.ProcessStart")
        recording.start()
        pipeline.batch(0, good(range(20)))
        lines = spark.readStream.text(f"{tmp_path}/in").writeStream.format("noop")
        lines.option("checkpointLocation", f"{tmp_path}/checkpoint").trigger(
            availableNow=True
        ).start().awaitTermination()
        recording.stop()
        recording.dump(seen)
    assert (tmp_path / "checkpoint" / "commits" / "0").is_file()
    events = jvm.jdk.jfr.consumer.RecordingFile.readAllEvents(seen)
    commands = [event.getString("command") for event in events]
    assert [command for command in commands if "pyspark.daemon" not in command] == []


def test_a_poison_storm_stops_before_anything_is_sent_onward(spark: SparkSession, tmp_path: Path) -> None:
    strict = {"storm_minimum": 4, "storm_share": 0.5}
    contract = FLIGHTS.model_copy(update={"dead_letters": FLIGHTS.dead_letters.model_copy(update=strict)})
    pipeline = Pipeline(spark, tmp_path, contract)
    rows = good(range(2)) + [Row(b"x", "flights", 50 + i) for i in range(3)]
    with pytest.raises(PoisonStorm, match=r"3 of the 5 records of batch 0 .*checkpoint accept-storm flights"):
        pipeline.batch(0, rows)
    bronze, by_origin, by_carrier = pipeline.contents().values()
    assert (len(bronze), by_origin, by_carrier, pipeline.outbox.sent) == (5, [], [], [])
    pipeline.ingest.storm_accepted = {batch_number(1, 0)}.__contains__  # somebody accepts it, and no other
    pipeline.batch(0, rows)
    bronze, by_origin, by_carrier = pipeline.contents().values()
    assert (len(bronze), sum(row["count_of_rows"] for row in by_origin), len(pipeline.outbox.sent)) == (5, 2, 3)


def test_letters_that_a_replay_sent_again_are_no_storm(spark: SparkSession, tmp_path: Path) -> None:
    """As after an accepted storm: all of it comes back at once, as bad as it was."""
    strict = {"storm_minimum": 4, "storm_share": 0.5}
    contract = FLIGHTS.model_copy(update={"dead_letters": FLIGHTS.dead_letters.model_copy(update=strict)})
    pipeline = Pipeline(spark, tmp_path, contract)
    again = [
        Row(b"x", FLIGHTS.retry_topic, n, headers=[("dl-id", f"flights/0/{n}".encode()), ("dl-attempt", b"1")])
        for n in range(9)
    ]
    pipeline.batch(0, good(range(2)) + again)
    bronze, by_origin, _ = pipeline.contents().values()
    assert {row["attempt"] for row in bronze if not row["accepted"]} == {1}
    assert (sum(row["count_of_rows"] for row in by_origin), len(pipeline.outbox.sent)) == (2, 9)
    with pytest.raises(PoisonStorm, match="3 of the 4 records of batch 1 "):
        pipeline.batch(1, good(range(2, 3)) + [Row(b"x", "flights", 50 + i) for i in range(3)] + again)


@pytest.mark.parametrize("tombstones", ["reject", "skip"])
def test_tombstones_are_no_storm_and_hide_none(spark: SparkSession, tmp_path: Path, tombstones: str) -> None:
    strict = FLIGHTS.dead_letters.model_copy(update={"storm_minimum": 4, "storm_share": 0.5})
    contract = FLIGHTS.model_copy(update={"dead_letters": strict, "tombstones": tombstones})
    pipeline = Pipeline(spark, tmp_path, contract)
    pipeline.batch(0, good(range(4)) + [Row(None, "flights", 50 + n) for n in range(9)])
    bronze, by_origin, _ = pipeline.contents().values()
    assert (len(bronze), sum(row["count_of_rows"] for row in by_origin)) == (13, 4)
    assert len(pipeline.outbox.sent) == (9 if tombstones == "reject" else 0)
    with connect(pipeline.settings, [contract]) as served:
        views = [f"select count(*) from flights_{view}" for view in ("events", "dead_letters", "tombstones", "letters")]
        counted = [served.execute(view).fetchall()[0][0] for view in views]
    assert counted == ([4, 9, 0, 9] if tombstones == "reject" else [4, 0, 9, 0])

    bad = [Row(b"x", "flights", 70 + n) for n in range(3)]
    with pytest.raises(PoisonStorm, match="3 of the 4 records of batch 1 "):
        pipeline.batch(1, good([5], 60) + bad + [Row(None, "flights", 80 + n) for n in range(9)])
    storm = ingest_start.storm(contract, pipeline.settings)
    assert storm is not None
    assert (storm.records, sum(storm.bad.values())) == (4, 3), "what the way out tells is what the halt says"


@pytest.mark.parametrize("compacted", [False, True])
def test_good_letters_that_come_back_do_not_hide_a_storm(spark: SparkSession, tmp_path: Path, compacted: bool) -> None:
    strict = {"storm_minimum": 4, "storm_share": 0.5}
    contract = FLIGHTS.model_copy(update={"dead_letters": FLIGHTS.dead_letters.model_copy(update=strict)})
    pipeline = Pipeline(spark, tmp_path, contract)
    mended = [
        Row(row.value, FLIGHTS.retry_topic, n, headers=[("dl-id", f"flights/0/{n}".encode()), ("dl-attempt", b"1")])
        for n, row in enumerate(good(range(10, 20)))
    ]
    pipeline.batch(0, good(range(20, 30)))
    rows = good(range(1)) + [Row(b"x", "flights", 50 + i) for i in range(3)] + mended
    with pytest.raises(PoisonStorm, match="3 of the 4 records of batch 1 "):
        pipeline.batch(1, rows)
    if compacted:  # files that hold rows of other batches too are searched
        DeltaTable(names.local_path(names.bronze(pipeline.settings.lake_uri, "flights"))).optimize.compact()
    with pytest.raises(PoisonStorm, match="3 of the 4 records of batch 1 "):
        pipeline.batch(1, rows)


def expected(window: str, since: datetime) -> str:
    return f"""
        select time_bucket(interval '{window}', event_time) as window_start, origin, count(*), count(dep_delay),
          avg(dep_delay), quantile_disc(dep_delay, 0.95)::double, count(distinct tailnum)
        from raw where event_time >= '{since.isoformat()}' group by all order by all
    """


def test_views_serve_batch_before_final_through_and_folded_speed_after_it(spark: SparkSession, tmp_path: Path) -> None:
    pipeline = Pipeline(spark, tmp_path)
    numbers = list(range(200))
    pipeline.batch(0, good(numbers[:120]) + BAD)
    pipeline.batch(1, good(numbers[120:], offset=200))
    raw = pa.Table.from_pylist([flight(n % 90, n) for n in numbers])
    final_through = MORNING + timedelta(hours=1)
    lake = pipeline.settings.lake_uri
    published = {
        "window": "1h", "window_start": MORNING, "window_end": final_through, "origin": "EWR", "scheduled": 7,
        "departed": 6, "mean_dep_delay": 1.5, "p95_dep_delay": 3.0, "tail_numbers": 5, "hour": MORNING, "run_id": "r1",
    }  # fmt: skip
    unpublished = published | {"window_start": final_through, "window_end": final_through + timedelta(hours=1)}
    batch_schema = table_schemas.batch_schema(FLIGHTS, FLIGHTS.aggregates[0])
    _append(names.batch(lake, "flights", "departures_by_origin"), batch_schema, [published, unpublished])
    publication = {"run_id": "r1", "stream": "flights", "final_through": final_through, "through_batch": 1}
    publication |= {"published_at": final_through}
    other = publication | {"stream": "weather", "final_through": final_through + timedelta(days=9)}
    _append(names.system(lake, "publications"), table_schemas.SYSTEM["publications"], [publication, other])

    with connect(pipeline.settings, [FLIGHTS]) as served:
        served.register("raw", raw)
        for view, window in {"1m": "1 minute", "5m": "5 minutes", "1h": "1 hour"}.items():
            columns = "window_start, origin, scheduled, departed, mean_dep_delay, p95_dep_delay, tail_numbers"
            speed = served.execute(
                f"select {columns} from departures_by_origin_{view} where source = 'speed' and not final order by all"
            ).fetchall()
            assert speed == served.execute(expected(window, final_through)).fetchall()
            assert speed
        batch = served.execute("select * from departures_by_origin_1h where final").fetchall()
        assert batch == [(MORNING, final_through, "EWR", 7, 6, 1.5, 3.0, 5, "batch", True, False)]
        assert served.execute("select count(*), count(distinct original) from flights_events").fetchone() == (200, 200)
        letters = "select error_class, original, value from flights_dead_letters order by 2"
        assert served.execute(letters).fetchall()[0] == ("malformed", "flights/0/100", b"nonsense")
        assert served.execute("select count(*) from ledger").fetchone() == (0,)
        _assert_spark_agrees(spark, served, lake)


def _append(uri: str, schema: Any, rows: list[dict[str, Any]]) -> None:
    from pyspark.sql.pandas.types import to_arrow_schema

    arrow = to_arrow_schema(schema, timezone="UTC")
    complete = [{name: row.get(name) for name in arrow.names} for row in rows]
    write_deltalake(names.local_path(uri), pa.Table.from_pylist(complete, schema=arrow), mode="append")


def _assert_spark_agrees(spark: SparkSession, served: duckdb.DuckDBPyConnection, lake_uri: str) -> None:
    spark_views.register(spark, FLIGHTS, lake_uri)
    for view in ("departures_by_carrier_1h", "departures_by_origin_5m", "publications"):
        in_spark = spark.table(view).toArrow()
        in_duckdb = served.execute(f"from {view}").to_arrow_table()
        assert in_spark.column_names == in_duckdb.column_names, view
        assert sorted(map(repr, in_spark.to_pylist())) == sorted(map(repr, in_duckdb.to_pylist())), view


def test_a_platform_without_tables_has_empty_views(tmp_path: Path) -> None:
    with connect(Settings(home=tmp_path)) as served:
        views = [name for (name,) in served.execute("show tables").fetchall()]
        assert {"departures_by_origin_1m", "weather_events", "flights_dead_letters", "publications"} <= set(views)
        assert not [view for view in views if served.execute(f'from "{view}"').fetchall()]
