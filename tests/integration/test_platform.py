"""The whole way of an event through a real Airflow, Kafka, registry and Spark, judged by independent oracles.

The tests of this module tell one story in file order: provision, stream, a driver killed in mid-batch, reconciliation,
quality, dead letters that come back, a late event that makes a published hour dirty, and a new stream.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import psutil
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.schema_registry import Schema
from deltalake import DeltaTable
from prometheus_client.parser import text_string_to_metric_families
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed
from typer.testing import CliRunner

from infra.airflow_client import Airflow, Run, RunFailed
from infra.cli import app
from infra.driver import process
from infra.driver.heartbeat import heartbeat
from infra.driver.waiting import wait_until_ingested
from infra.settings import PROJECT, Settings
from producers.codec import Codec, registry, schema_id
from producers.inject import Faults
from producers.produce import produce
from producers.sources import source
from schemas.contract.catalog import catalog
from schemas.contract.model import Contract
from spark.lake.names import local_path
from spark.serving.duck import connect
from tests.support import oracle, tides
from tests.support.chance import fresh
from tests.support.topics import coordinates

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("every_service")]

UNTIL = datetime(2013, 2, 1, tzinfo=UTC)
"""The story replays January; the whole year is `make run`'s."""

Value = TypeVar("Value")
Rows = list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def contracts(stack: Settings) -> dict[str, Contract]:
    return catalog(stack.contracts)


@pytest.fixture(scope="module")
def airflow(stack: Settings) -> Iterator[Airflow]:
    session = Airflow(stack)
    session.wait_for_dags(["provision", "stream_supervisor", "reconcile", "data_quality", "replay_dead_letters"])
    yield session
    for dag_id in ("stream_supervisor", "reconcile", "data_quality", "replay_dead_letters", "backfill"):
        session.pause(dag_id)
    process.stop(stack, timeout=30)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> duckdb.DuckDBPyConnection:
    connection = oracle.connect(tmp_path_factory.mktemp("oracle"))
    for table in ("flights", "weather"):
        connection.execute(f"delete from {table} where event_time >= ?", [UNTIL])
    return connection


def wait_for(condition: Callable[[], Value], timeout: float = 120) -> Value:
    """The first true value of `condition()`, looked at every half second; the last value when time is up."""
    return retry(
        wait=wait_fixed(0.5),
        stop=stop_after_delay(timeout),
        retry=retry_if_result(lambda value: not value),
        retry_error_callback=lambda state: state.outcome and state.outcome.result(),
    )(condition)()


def run(airflow: Airflow, dag_id: str) -> Run:
    airflow.unpause(dag_id)
    return airflow.wait(airflow.trigger(dag_id), timeout=540)


def offsets_on_the_broker(stack: Settings, topics: tuple[str, ...]) -> Counter[tuple[str, int, int]]:
    """Every (topic, partition, offset) of a committed record, read by a plain consumer."""
    consumer = Consumer(
        stack.kafka_client("admin")
        | {"group.id": fresh("oracle-"), "enable.auto.commit": False, "enable.partition.eof": True,
           "isolation.level": "read_committed", "auto.offset.reset": "earliest"}
    )  # fmt: skip
    metadata = consumer.list_topics(timeout=10).topics
    assigned = [TopicPartition(t, p, 0) for t in topics for p in metadata[t].partitions]
    consumer.assign(assigned)
    seen: Counter[tuple[str, int, int]] = Counter()
    open_partitions = {(p.topic, p.partition) for p in assigned}
    while open_partitions:
        for message in consumer.consume(10_000, timeout=5):
            if message.error():
                open_partitions.discard((message.topic(), message.partition()))
            else:
                seen[coordinates(message)] += 1
    consumer.close()
    return seen


def offsets_in_bronze(stack: Settings, stream: str) -> Counter[tuple[str, int, int]]:
    path = local_path(f"{stack.lake_uri}/bronze/{stream}")
    with connect(stack) as served:
        rows = served.execute(f"select topic, partition, \"offset\" from delta_scan('{path}')").fetchall()
    return Counter(rows)


def assert_conserved(stack: Settings, contract: Contract) -> None:
    """P1: each committed record on the broker is exactly one row of bronze, and bronze has no other row."""
    broker = offsets_on_the_broker(stack, contract.ingest_topics)
    bronze = offsets_in_bronze(stack, contract.stream)
    assert bronze == broker, (
        f"lost: {list((broker - bronze).items())[:5]}, doubled: {list((bronze - broker).items())[:5]}"
    )


def send_january(stack: Settings, contract: Contract, faults: Faults) -> None:
    report = produce(contract, source(contract.stream).between(end=UNTIL), settings=stack, faults=faults)
    assert report.failed == 0


def test_provision_makes_everything_and_a_second_run_changes_nothing(
    stack: Settings, airflow: Airflow, contracts: dict[str, Contract]
) -> None:
    told = CliRunner().invoke(app, ["provision"])
    assert told.exit_code == 0, told.output
    topics = AdminClient(stack.kafka_client("admin")).list_topics(timeout=10).topics
    for contract in contracts.values():
        assert set(contract.topics) <= set(topics)
        assert len(topics[contract.stream].partitions) == contract.topic.partitions
    again = run(airflow, "provision")
    assert set(airflow.task_states(again).values()) == {"success"}


def test_stream_ingests_every_record_once(stack: Settings, airflow: Airflow, contracts: dict[str, Contract]) -> None:
    airflow.unpause("stream_supervisor")
    for contract in contracts.values():
        send_january(stack, contract, Faults(duplicates=0.01, late=0.01, malformed=0.01, seed=7))
    wait_until_ingested(stack, list(contracts.values()))
    for contract in contracts.values():
        assert_conserved(stack, contract)


def test_driver_killed_in_mid_batch_comes_back_and_nothing_is_lost_or_doubled(
    stack: Settings, airflow: Airflow, contracts: dict[str, Contract]
) -> None:
    flights = contracts["flights"]
    before = heartbeat(stack.stream_dir)
    assert before is not None
    log = local_path(f"{stack.lake_uri}/bronze/flights/_delta_log")
    commits = len(os.listdir(log))
    send_january(stack, flights, Faults(duplicates=0.01, malformed=0.01, seed=8))
    # bronze is committed and the batch is not: the middle of a batch
    assert wait_for(lambda: len(os.listdir(log)) > commits)
    os.killpg(os.getpgid(before["pid"]), signal.SIGKILL)
    beat = wait_for(
        lambda: (b := heartbeat(stack.stream_dir)) and b["epoch"] > before["epoch"] and b["state"] == "running" and b
    )
    assert beat, "the supervisor did not restart the driver"
    assert psutil.pid_exists(beat["pid"])
    wait_until_ingested(stack, list(contracts.values()))
    assert_conserved(stack, flights)


def assert_served_equals_truth(stack: Settings, truth: duckdb.DuckDBPyConnection, table: str) -> None:
    """Every published window equals the oracle; every open one does too, sketches within their stated error."""
    with connect(stack) as served:
        for aggregate, (origin, dimension, _) in oracle.AGGREGATES.items():
            if origin != table:
                continue
            for window in oracle.INTERVALS:
                expected = truth.execute(oracle.windows(aggregate, window)).fetchdf()
                actual = served.execute(f"select * from {aggregate}_{window}").fetchdf()
                both = expected.merge(
                    actual, on=["window_start", dimension], how="outer", suffixes=("", "_served"), indicator=True
                )
                final = both["final"].fillna(True).astype(bool)
                assert set(both[final]["_merge"]) == {"both"}, f"{aggregate}_{window}: windows differ"
                assert final.sum() > 0.9 * len(both)
                for measure in expected.columns.drop(["window_start", dimension]):
                    pairs = zip(both[final][measure], both[final][f"{measure}_served"], strict=True)
                    wrong = [
                        (want, got)
                        for want, got in pairs
                        if not (
                            math.isclose(want, got, rel_tol=1e-9, abs_tol=1e-9)
                            or (math.isnan(want) and math.isnan(got))
                        )
                    ]
                    assert not wrong, f"{aggregate}_{window}.{measure}: {len(wrong)} windows differ, first {wrong[:3]}"


def test_reconcile_publishes_what_the_oracle_computes_and_explains_the_rest(
    stack: Settings, airflow: Airflow, contracts: dict[str, Contract], truth: duckdb.DuckDBPyConnection
) -> None:
    run(airflow, "reconcile")
    for table in ("flights", "weather"):
        assert_served_equals_truth(stack, truth, table)
    with connect(stack) as served:
        causes = dict(served.execute("select cause, count(*) from ledger group by 1").fetchall())
        # DAGs that are switched on just after the hour have a scheduled run as well.
        accounts = served.execute(
            "select stream, sum(rows), sum(residual) from audits where (stream, run_id) in "
            "(select (stream, arg_max(run_id, recorded_at)) from audits group by stream) group by 1"
        ).fetchall()
    assert {stream: (rows, residual) for stream, rows, residual in accounts if stream in contracts} == {
        name: (offsets_on_the_broker(stack, contract.ingest_topics).total(), 0) for name, contract in contracts.items()
    }
    # the killed batch's second copy of January is a duplicate in the speed layer, and nothing else is
    assert set(causes) == {"duplicate"}


def test_quality_passes_and_its_data_docs_are_served(stack: Settings, airflow: Airflow) -> None:
    import httpx

    run(airflow, "data_quality")
    with connect(stack) as served:
        results = served.execute("select stream, suite, success from quality").fetchall()
    assert results
    assert all(success for _, _, success in results), results
    assert httpx.get(f"{stack.data_docs_url}/index.html", trust_env=False).status_code == 200


def test_metrics_agree_with_the_broker(stack: Settings, contracts: dict[str, Contract]) -> None:
    text = millrace("metrics").stdout
    told = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert told["millrace_driver_running", ()] == 1
    for name, contract in contracts.items():
        records = offsets_on_the_broker(stack, contract.ingest_topics).total()
        assert told["millrace_events", (name,)] + told["millrace_dead_letters", (name,)] == records
        assert told["millrace_lag_records", (name,)] == 0
        assert (told["millrace_audit_residual", (name,)], told["millrace_quality_failed", (name,)]) == (0, 0)
    assert told["millrace_dag_run_failed", ("reconcile",)] == 0


def test_runs_are_told_as_openlineage(stack: Settings) -> None:
    """By Airflow's provider of tasks, and of what they read and wrote by the jobs that they started."""
    told = [json.loads(line) for line in Path(stack.openlineage).read_text().splitlines()]
    ended = [event for event in told if event["eventType"] == "COMPLETE"]
    tasks = {event["run"]["runId"] for event in ended if event["job"]["name"] == "reconcile.reconcile"}
    job = next(event for event in reversed(ended) if event["job"]["name"] == "reconcile.flights")
    assert job["run"]["facets"]["parent"]["run"]["runId"] in tasks
    lake = local_path(stack.lake_uri)
    assert f"{lake}/bronze/flights" in {one["name"] for one in job["inputs"]}
    assert f"{lake}/batch/flights/departures_by_origin" in {one["name"] for one in job["outputs"]}
    began = [event for event in told if event["job"]["name"] == "ingest.flights" and event["eventType"] == "START"]
    assert len({event["run"]["runId"] for event in began}) >= 2, "the driver that was killed, and the next one"
    assert {one["name"] for one in began[0]["inputs"]} == {"flights", "flights.retry"}


def test_the_notebook_s_answers_are_those_of_the_data_set(stack: Settings, truth: duckdb.DuckDBPyConnection) -> None:
    """docs/notebooks, run by marimo without a browser; every cell runs, or this raises."""
    spec = spec_from_file_location("notebook", PROJECT / "docs" / "notebooks" / "flights_and_weather.py")
    assert spec is not None
    assert spec.loader is not None
    notebook = module_from_spec(spec)
    spec.loader.exec_module(notebook)
    _, answers = notebook.app.run()
    with connect(stack) as served:
        horizon = dict(served.execute("select stream, max(final_through) from publications group by 1").fetchall())
    expected = truth.execute(
        """
        select origin, hour(timezone('America/New_York', event_time)), count(*), avg(dep_delay) from flights
        where dep_delay is not null and event_time < ? group by all order by 1, 2
        """,
        [horizon["flights"]],
    ).fetchall()
    assert [tuple(row)[:3] for row in answers["delays"].itertuples(index=False)] == [row[:3] for row in expected]
    assert list(answers["delays"]["mean_delay"]) == pytest.approx([row[3] for row in expected])
    by_wind = truth.execute(
        """
        select floor(wind_speed / 5) * 5 as mph, count(*), avg(dep_delay) from flights join weather on
            weather.origin = flights.origin and weather.event_time <= flights.event_time
            and weather.event_time > flights.event_time - interval '1 hour'
        where dep_delay is not null and flights.event_time < ? and wind_speed is not null
        group by 1 having count(*) >= 30 order by 1
        """,
        [horizon["flights.flights_with_weather"]],
    ).fetchall()
    found = answers["by_weather"]
    found = found[found["factor"] == "wind, mph"][["value", "departures", "mean_delay"]]
    assert found.values.flatten().tolist() == pytest.approx([number for row in by_wind for number in row])


def one_flight(number: int, hour: int) -> dict[str, object]:
    """A departure of 15 January 2013 that the data set does not have, an hour that is published by now."""
    moment = datetime(2013, 1, 15, hour, 30, tzinfo=UTC)
    return {
        "event_time": moment, "carrier": "UA", "flight": number, "origin": "EWR", "dest": "IAH", "tailnum": "N14228",
        "dep_time": moment + timedelta(minutes=7), "dep_delay": 7, "arr_delay": 3, "air_time": 227, "distance": 1400,
    }  # fmt: skip


def learn(truth: duckdb.DuckDBPyConnection, flight: dict[str, object]) -> None:
    """The oracle hears of a flight from the test, not from the platform."""
    columns = ["event_time", "carrier", "flight", "origin", "tailnum", "dep_delay"]
    truth.execute("insert into flights values (?, ?, ?, ?, ?, ?)", [flight[column] for column in columns])


def test_letters_of_an_unknown_schema_come_back_once_it_is_registered(
    stack: Settings, airflow: Airflow, contracts: dict[str, Contract], truth: duckdb.DuckDBPyConnection
) -> None:
    flights = contracts["flights"]
    client = registry(stack)
    newer = json.loads(json.dumps(flights.schema_now))
    newer["fields"].append({"name": "gate", "type": ["null", "string"], "default": None})
    known = [client.get_version(f"{name}-value", "latest").schema_id or 0 for name in contracts]
    next_id = max(known) + 1
    flight = one_flight(9998, hour=12)
    value = Codec(flights.model_copy(update={"versions": (newer,)}), next_id).value(flight | {"gate": "C71"})
    producer = Producer(stack.kafka_client("producer") | {"acks": "all"})
    producer.produce(flights.stream, value, b"UA|9998", headers={"trace": b"kept"})
    assert producer.flush(30) == 0
    wait_until_ingested(stack, [flights])

    def letter() -> list[tuple[object, ...]]:
        with connect(stack) as served:
            return served.execute(
                f"select error_class, attempt from flights_dead_letters where schema_id = {next_id}"
            ).fetchall()

    assert letter() == [("unknown_schema", 0)]
    schema = Schema(json.dumps(newer), "AVRO")
    assert client.register_schema(flights.subject, schema) == next_id

    def landed() -> Rows:
        run(airflow, "replay_dead_letters")
        wait_until_ingested(stack, [flights])
        with connect(stack) as served:
            return served.execute("select attempt, topic from flights_events where flight = 9998").fetchall()

    rows = wait_for(landed)
    assert len(rows) == 1
    assert rows[0][0] >= 1
    assert rows[0][1] == flights.retry_topic
    assert_conserved(stack, flights)
    learn(truth, flight)


HORIZON = "select max(final_through) from publications where stream = 'flights'"


def test_a_late_event_makes_its_published_hour_dirty_and_the_ledger_says_so(
    stack: Settings, airflow: Airflow, contracts: dict[str, Contract], truth: duckdb.DuckDBPyConnection
) -> None:
    flight = one_flight(9999, hour=14)
    produce(contracts["flights"], [flight], settings=stack)
    wait_until_ingested(stack, [contracts["flights"]])
    with connect(stack) as served:
        through = served.execute(HORIZON).fetchall()
    run(airflow, "reconcile")
    learn(truth, flight)
    assert_served_equals_truth(stack, truth, "flights")
    with connect(stack) as served:
        assert served.execute(HORIZON).fetchall() >= through
        new = served.execute(
            "select distinct cause, hour(window_start) from ledger "
            "where run_id = (select arg_max(run_id, recorded_at) from ledger)"
        ).fetchall()
    assert set(new) == {("replayed", 12), ("late", 14)}


LOST = 5


def test_rows_that_bronze_lost_are_found_and_come_back(
    stack: Settings, contracts: dict[str, Contract], truth: duckdb.DuckDBPyConnection
) -> None:
    """In hours that are not published yet, so that the speed layer counts them twice; the next reconciliation is that
    of the test after this one."""
    flights = contracts["flights"]
    with connect(stack) as served:
        lost = served.execute(
            'select "partition", "offset" from flights_events where topic = \'flights\' and event_time >= '
            f"({HORIZON}) limit ?",
            [LOST],
        ).fetchall()
    assert len(lost) == LOST
    places = " or ".join(f'("partition" = {partition} and "offset" = {offset})' for partition, offset in lost)
    bronze = DeltaTable(local_path(f"{stack.lake_uri}/bronze/flights"))
    assert bronze.delete(f"topic = 'flights' and ({places})")["num_deleted_rows"] == LOST

    found = millrace("audit", "flights", "--json")
    assert (found.returncode, json.loads(found.stdout)["residual"]) == (1, LOST)
    repaired = millrace("audit", "flights", "--repair", "--json")
    assert repaired.returncode == 0, repaired.stderr
    account = json.loads(repaired.stdout)
    assert account["residual"] == 0
    assert sum(one["gaps"].get("repaired", 0) for one in account["streams"]["flights"]["partitions"]) == LOST
    with connect(stack) as served:
        back = served.execute(
            "select original from flights_events where topic = 'flights.retry' and attempt = 0"
        ).fetchall()
    assert {original for (original,) in back} == {f"flights/{partition}/{offset}" for partition, offset in lost}

    later = one_flight(9996, hour=12) | {"event_time": datetime(2013, 2, 3, 12, tzinfo=UTC)}
    later["dep_time"] = datetime(2013, 2, 3, 12, 7, tzinfo=UTC)
    produce(flights, [later], settings=stack)  # closes January
    wait_until_ingested(stack, [flights])
    learn(truth, later)


def served_tides(stack: Settings, view: str, truth: duckdb.DuckDBPyConnection, where: str) -> tuple[Rows, Rows]:
    """What the view has `where`, and what the oracle says, in the oracle's columns."""
    expected = truth.execute(f"from ({tides.ORACLE[view]}) order by all")
    names = [column[0] for column in expected.description or []]
    shown = tides.SHOWN.get(view, ", ".join(names))
    with connect(stack) as served:
        found = served.execute(f"select {shown} from {view} where {where} order by all").fetchall()
    return found, expected.fetchall()


def test_a_new_stream_is_files(stack: Settings, airflow: Airflow, truth: duckdb.DuckDBPyConnection) -> None:
    """P9: a folder makes topics, a subject, tables, windows, velocity, sessions, a join, alerts, checks, replay and DAG
    tasks."""
    tides.write(stack.contracts / "tides")

    def provisioned() -> bool:
        airflow.unpause("provision")
        attempt = airflow.trigger("provision")
        with contextlib.suppress(RunFailed):  # the registry holds a version of flights by now that its contract has not
            airflow.wait(attempt)
        return airflow.task_states(attempt).get("tides") == "success"

    assert wait_for(provisioned, timeout=240)
    process.stop(stack, timeout=60)  # the supervisor's next driver reads the new stream
    airflow.unpause("stream_supervisor")
    contract = catalog(stack.contracts)["tides"]
    tides.learn(truth, tides.readings())
    spike = tides.reading("east", timedelta(), 99.0)
    assert produce(contract, [spike, *tides.readings()], settings=stack, transactional="tides").failed == 0
    wait_until_ingested(stack, [contract], timeout=180)
    for view in ("restless_gauges", "tides_alerts"):  # told at once, and closed by nothing
        told = "true" if view == "tides_alerts" else "source = 'speed'"

        def agree(view: str = view, told: str = told) -> bool:
            found, expected = served_tides(stack, view, truth, told)
            return found == expected

        assert wait_for(agree), served_tides(stack, view, truth, told)
    assert produce(contract, [tides.CLOSING], settings=stack).failed == 0
    wait_until_ingested(stack, [contract], timeout=180)
    assert_conserved(stack, contract)
    run(airflow, "reconcile")
    assert "tides" in airflow.task_states(run(airflow, "replay_dead_letters"))
    for view in tides.ORACLE:
        found, expected = served_tides(stack, view, truth, "true" if view == "tides_alerts" else "final")
        assert expected, view
        assert found == expected, view
    with connect(stack) as served:
        reasons = served.execute("select error_class, reason from tides_dead_letters").fetchall()
        checked = served.execute("select bool_and(success) from quality where stream = 'tides'").fetchall()
    assert reasons == [("rule", "level is outside -20 to 20 metres")]
    assert checked == [(True,)]


def test_what_came_back_is_published_once_and_explained(stack: Settings, truth: duckdb.DuckDBPyConnection) -> None:
    assert_served_equals_truth(stack, truth, "flights")
    with connect(stack) as served:
        causes = served.execute(
            "select cause, max(replayed) from ledger where measure = 'scheduled' and \"window\" = '1h' and run_id = "
            "(select arg_max(run_id, published_at) from publications where stream = 'flights') group by 1"
        ).fetchall()
    assert dict(causes).keys() == {"replayed", "duplicate"}
    assert 0 < dict(causes)["replayed"] <= LOST


def test_a_backfill_shows_what_it_would_change(stack: Settings, airflow: Airflow) -> None:
    log = "select * from publications order by all"
    with connect(stack) as served:
        before = served.execute(log).fetchall()
    airflow.unpause("backfill")
    asked = {"stream": "flights", "from": "2013-01-15T12:10:00Z", "to": "2013-01-15T15:00:00Z"}
    ended = airflow.wait(airflow.trigger("backfill", asked), timeout=540)
    assert airflow.xcom(ended, "audit") == {"missing": 0, "sent": 0}
    shown = airflow.xcom(ended, "backfill")["flights"]
    assert (shown["hours"], shown["ledger"], shown["changes"], shown["published"]) == (3, {}, [], False)
    assert [hour["hour"] for hour in shown["by_hour"]] == [f"2013-01-15T{hour}:00:00+00:00" for hour in (12, 13, 14)]
    with connect(stack) as served:
        assert served.execute(log).fetchall() == before


def test_a_poison_storm_halts_its_stream_alone_until_somebody_decides(
    stack: Settings, airflow: Airflow, contracts: dict[str, Contract]
) -> None:
    contract = catalog(stack.contracts)["tides"]
    before = heartbeat(stack.stream_dir) or {}
    live = airflow.runs("stream_supervisor")[0]
    assert live.state == "running"
    codec = Codec(contract, schema_id(contract, registry(stack)))
    spikes = [tides.reading("east", timedelta(seconds=n), 99.0) for n in range(1500)]
    producer = Producer(stack.kafka_client("admin") | {"transactional.id": "test-storm"})
    producer.init_transactions(30)
    producer.begin_transaction()  # seen at once, so one batch has all of them
    for spike in spikes:
        producer.produce(contract.stream, codec.value(spike), b"east", partition=0)
    producer.commit_transaction(30)

    with pytest.raises(RunFailed, match=r"watch: .*of stream tides are bad"):  # the error has the task's last words
        airflow.wait(live, timeout=180)
    told = "".join(log.read_text() for log in stack.log_dir.glob(f"airflow/*/run_id={live.run_id}/task_id=watch/*"))
    assert "of stream tides are bad" in told
    assert "`millrace checkpoint accept-storm tides`" in told
    assert wait_for(lambda: airflow.runs("stream_supervisor")[0].run_id != live.run_id)

    flight = one_flight(9997, hour=16)
    produce(contracts["flights"], [flight], settings=stack)
    wait_until_ingested(stack, [contracts["flights"]])
    after = heartbeat(stack.stream_dir) or {}
    assert (after["pid"], after["epoch"]) == (before["pid"], before["epoch"]), "the driver went on"
    assert after["queries"]["tides"]["halted"]
    assert len(offsets_on_the_broker(stack, (contract.dlq_topic,))) == 1, "the spike of the test before"

    assert millrace("checkpoint", "reset", "tides").returncode == 1, "not while the driver runs"
    storm = json.loads(millrace("checkpoint", "accept-storm", "tides", "--json").stdout)
    reason = "level is outside -20 to 20 metres"
    assert storm["bad"] == [{"error_class": "rule", "reason": reason, "records": 1500}]
    wait_until_ingested(stack, [contract])
    assert_conserved(stack, contract)
    assert len(offsets_on_the_broker(stack, (contract.dlq_topic,))) == 1501


def test_a_reset_goes_on_where_bronze_ends(stack: Settings, airflow: Airflow) -> None:
    contract = catalog(stack.contracts)["tides"]
    airflow.pause("stream_supervisor")
    process.stop(stack, timeout=60)
    done = millrace("checkpoint", "reset", "tides", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["generation"] == 2
    produce(contract, [tides.reading("south", timedelta(), 0.5)], settings=stack)
    airflow.unpause("stream_supervisor")
    wait_until_ingested(stack, [contract], timeout=180)
    assert_conserved(stack, contract)
    shown = json.loads(millrace("checkpoint", "show", "tides", "--json").stdout)["streams"]["tides"]
    assert (shown["generation"], shown["lag"], shown["refused"]) == (2, 0, None)


def millrace(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line; the stack's settings are in the environment."""
    program = str(Path(sys.executable).with_name("millrace"))
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
