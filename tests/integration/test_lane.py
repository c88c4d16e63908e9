"""The alert lane in the real driver: what it tells, what it must not tell, and what a kill -9 does to it.

What must be told is found by other means: fastavro and DuckDB over the records as they are on the broker.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import pytest
from confluent_kafka import Message, Producer
from confluent_kafka.admin import AdminClient
from deltalake import DeltaTable
from pyspark.sql import SparkSession
from tenacity import Retrying, retry, retry_if_result, stop_after_delay, wait_fixed

from infra.driver import process as driver
from infra.driver.heartbeat import heartbeat
from infra.locks.driver_lease import Lease
from infra.operations.provisioning import provision_subject, provision_topics
from infra.settings import PROJECT, Settings
from producers.codec import Codec, registry, schema_id
from producers.generators import generated
from producers.inject import Faults
from producers.produce import produce
from schemas.contract.catalog import contract_in
from schemas.contract.model import Contract
from schemas.contract.predicates import Alerts
from schemas.contract.verdict import Judge
from spark.lake import names, tables
from spark.serving.duck import connect
from spark.session import QUICK_COMPILER
from spark.speed.alert_lane import Lane
from spark.speed.alert_log import AlertLog
from spark.speed.checkpoint import generations, lane_start
from spark.speed.standstill import REPORTED_AFTER
from tests.integration.test_produce import read
from tests.support import stacks
from tests.support.clicks import power_out
from tests.support.topics import header_values

LARGE = {
    "event_time": 1_767_603_600_000_000,
    "transaction": "payment-large",
    "account": "account-00042",
    "home": "DE",
    "merchant": "merchant-0007",
    "category": "groceries",
    "country": "PT",
    "channel": "chip",
    "amount_cents": 9_999_900,
}  # fmt: skip
"""Over the limit, and of a watched account."""

SECOND = timedelta(seconds=1)


TERMINAL = {"name": "terminal", "type": ["null", "string"], "default": None}
"""The field that a newer schema has."""


def with_terminal(contract: Contract) -> Contract:
    fields = [*contract.schema_now["fields"], TERMINAL]
    return contract.model_copy(update={"versions": (*contract.versions, contract.schema_now | {"fields": fields})})


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    contracts = tmp_path_factory.mktemp("contracts")
    shutil.copytree(PROJECT / "schemas" / "uses" / "transactions", contracts / "transactions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILLRACE_ALERT_CHECKPOINT", "5")
        patch.setenv("SPARK_SUBMIT_OPTS", QUICK_COMPILER)
        with stacks.running("millrace-lane-", contracts, ["kafka", "registry"]) as config:
            found = Desk(config)
            yield found
            driver.stop(config, timeout=0)
            found.lease.close()


class Desk:
    """A fraud desk: the stream `transactions`, its driver, and what is on `transactions.alerts`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.contract = contract_in(settings.contracts, "transactions")
        self.lease = Lease(settings)
        provision_topics(AdminClient(settings.kafka_client("provision")), self.contract)
        provision_subject(registry(settings), self.contract)

    def start(self) -> driver.Driver:
        command = [sys.executable, str(driver.APPLICATION), "--epoch"]
        found = driver.ensure(self.settings, self.lease, lambda epoch: [*command, str(epoch)])
        driver.wait_started(self.settings, found)
        return found

    def small(self, stream: str, configs: Mapping[str, str] = MappingProxyType({})) -> Contract:
        """A stream of that name, like `transactions`, of one partition: its lane fits into the session of the tests."""
        topic = self.contract.topic.model_copy(update={"partitions": 1, "configs": dict(configs)})
        contract = self.contract.model_copy(update={"stream": stream, "topic": topic})
        provision_topics(AdminClient(self.settings.kafka_client("provision")), contract)
        provision_subject(registry(self.settings), contract)
        tables.create(self.settings.lake_uri, contract)
        return contract

    def alerts(self) -> list[Message]:
        return read(self.settings, self.contract.alerts_topic)

    def wait_for(self, ids: set[str]) -> dict[str, bytes]:
        """The values on the topic by id, as soon as all of `ids` are there. An id has one value, however often."""

        @retry(
            wait=wait_fixed(0.2), stop=stop_after_delay(60), retry=retry_if_result(lambda found: not ids <= set(found))
        )
        def told() -> dict[str, bytes]:
            values: dict[str, bytes] = {}
            for message in self.alerts():
                value = message.value() or b""
                assert values.setdefault(json.loads(value)["id"], value) == value
            return values

        return told()

    def expected(self) -> set[str]:
        """The ids that the records on `transactions` and its retry topic must have raised."""
        client = registry(self.settings)
        versions: list[Any] = [
            client.get_version(self.contract.subject, n) for n in client.get_versions(self.contract.subject)
        ]
        judge = Judge(self.contract, {v.schema_id: json.loads(v.schema.schema_str) for v in versions})
        alerts = Alerts(self.contract)
        found: set[str] = set()
        for message in read(self.settings, self.contract.stream) + read(self.settings, self.contract.retry_topic):
            verdict = judge.verdict(message.value())
            if verdict.error_class is None and verdict.record is not None:
                place = f"{message.topic()}/{message.partition()}/{message.offset()}"
                place = header_values(message).get("dl-id", place.encode()).decode()
                found |= {f"{place}/{alert.name}" for alert in alerts.raised(verdict.record)}
        return found

    def logged(self) -> list[str]:
        """The ids in the view, in order."""
        with connect(self.settings, [self.contract]) as served:
            return [row[0] for row in served.execute("select id from transactions_alerts order by id").fetchall()]

    def send(self, contract: Contract, *records: dict[str, Any]) -> None:
        produce(contract, records, settings=self.settings)


def test_accepted_records_alert_within_moments_and_no_others(desk: Desk) -> None:
    events = generated("transactions", 1500, seed=7)
    produce(desk.contract, events, settings=desk.settings, faults=Faults(malformed=0.05, seed=1))
    desk.send(desk.contract, LARGE, LARGE | {"channel": "pigeon"}, LARGE | {"amount_cents": -1})
    desk.start()
    expected = desk.expected()
    assert {id_.rpartition("/")[2] for id_ in expected} == {alert.name for alert in desk.contract.alerts}
    told = desk.wait_for(expected)
    assert set(told) == expected

    [large] = [doc for doc in map(json.loads, told.values())
               if doc["record"]["transaction"] == "payment-large" and doc["alert"] == "over_limit"]  # fmt: skip
    time = "2026-01-05T09:00:00.000000Z"
    assert large["record"] == LARGE | {"event_time": time}
    assert (large["event_time"], large["severity"]) == (time, "critical")
    assert large["references"] == {"categories": {"category": "groceries", "limit_cents": 30_000, "risk": "low"}}
    assert {message.key() for message in desk.alerts() if b"payment-large" in (message.value() or b"")} == {
        b"account-00042"
    }


def test_a_replayed_record_alerts_as_its_original(desk: Desk) -> None:
    codec = Codec(desk.contract, schema_id(desk.contract, registry(desk.settings)))
    producer = Producer(desk.settings.kafka_client("producer"))
    headers: list[tuple[str, str | bytes | None]]
    headers = [("dl-id", b"transactions/1/777777"), ("dl-attempt", b"1")]
    producer.produce(desk.contract.retry_topic, codec.value(LARGE), b"account-00042", headers=headers)
    assert producer.flush(30) == 0
    desk.start()
    assert {f"transactions/1/777777/{name}" for name in ("over_limit", "watched_account")} <= desk.expected()
    desk.wait_for(desk.expected())


def test_a_schema_registered_while_it_runs_is_understood(desk: Desk) -> None:
    newer = with_terminal(desk.contract)
    desk.start()
    desk.wait_for(desk.expected())  # the lane runs with the first schema
    provision_subject(registry(desk.settings), newer)
    before = len(read(desk.settings, desk.contract.stream))
    desk.send(newer, *(LARGE | {"transaction": f"payment-newer-{number}", "terminal": "t1"} for number in range(3)))
    places = [
        (m.partition(), m.offset()) for m in read(desk.settings, desk.contract.stream) if b"newer" in (m.value() or b"")
    ]
    assert len(places) == 3
    assert len(read(desk.settings, desk.contract.stream)) == before + 3
    desk.wait_for({f"transactions/{partition}/{offset}/over_limit" for partition, offset in places})


@dataclass
class Life:
    """A lane in this process, on a clock that only the test moves."""

    contract: Contract
    settings: Settings
    spark: SparkSession
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def __post_init__(self) -> None:
        self.lane = Lane(self.contract, self.settings, clock=lambda: self.now)

    @property
    def checkpoint(self) -> Path:
        name = self.contract.alerts_topic
        uri = generations.location(self.settings, name, generations.generation(self.settings, name))
        return Path(names.local_path(uri))

    def committed(self) -> int:
        """How many checkpoints of its generation there are."""
        return len(list((self.checkpoint / "commits").glob("[0-9]*")))

    def tend(self) -> Any:
        """Tends the lane. Returns its query, if it has one."""
        self.lane.tend(self.spark)
        return self.lane._query

    def die(self) -> None:
        """Starts the query, which ends by itself, and lets the lane see it."""
        query = self.tend()
        wait(lambda: not query.isActive)
        self.now += SECOND
        assert self.tend() is None
        self.pause()

    def pause(self) -> None:
        """Lets the time pass until the lane is tried again."""
        while not self.lane.due:
            self.now += SECOND

    def wait_told(self, *transactions: str) -> None:
        """Returns as soon as there are alerts of these."""

        def told() -> set[str]:
            messages = read(self.settings, self.contract.alerts_topic)
            return {json.loads(message.value() or b"")["record"]["transaction"] for message in messages}

        wait(lambda: told() >= set(transactions))


def wait(reached: Callable[[], bool], seconds: float = 90) -> None:
    for attempt in Retrying(stop=stop_after_delay(seconds), wait=wait_fixed(0.05)):
        with attempt:
            assert reached()


def test_a_schema_registered_before_the_lane_died_is_understood(desk: Desk, spark: SparkSession) -> None:
    """By a lane that had passed over its records before its last checkpoint."""
    contract = desk.small("bereft")
    newer = with_terminal(contract)
    config = desk.settings.model_copy(update={"alert_checkpoint": 10.0})  # longer than it takes to end the lane
    desk.send(contract, LARGE | {"transaction": "before"})
    life = Life(contract, config, spark)
    life.tend()
    life.wait_told("before")
    provision_subject(registry(desk.settings), newer)  # nobody looks: `tend` is not called
    wait(lambda: life.committed() >= 1)
    desk.send(newer, LARGE | {"transaction": "passed-over", "terminal": "t1"})
    desk.send(contract, LARGE | {"transaction": "after"})
    life.wait_told("after")
    done = life.committed()
    wait(lambda: life.committed() > done)
    life.lane.close()

    life = Life(contract, config, spark)
    life.tend()
    try:
        life.wait_told("before", "passed-over", "after")
    finally:
        life.lane.close()
    assert life.checkpoint.name == "g2"
    again = Life(contract, config, spark)
    assert again.tend().isActive
    again.lane.close()
    assert again.checkpoint.name == "g2", "it knows the schemas"


def test_a_lane_that_dies_after_each_start_is_told_and_a_reset_loses_no_alert(desk: Desk, spark: SparkSession) -> None:
    contract = desk.small("damaged")
    desk.send(contract, LARGE | {"transaction": "first"})
    life = Life(contract, desk.settings, spark)
    life.tend()
    life.wait_told("first")
    wait(lambda: life.committed() >= 2)
    life.lane.close()
    desk.send(contract, LARGE | {"transaction": "meanwhile"})

    newest = max((life.checkpoint / "offsets").glob("[0-9]*"), key=lambda path: int(path.name))
    version, _, offsets = newest.read_text().splitlines()
    newest.write_text(f"{version}\n{{\n{offsets}")  # only Spark looks at this line
    newest.with_name(f".{newest.name}.crc").unlink()
    life = Life(contract, desk.settings, spark)
    for _ in range(3):
        assert life.lane.progress()["halted"] is None
        life.die()
    assert life.lane.progress()["halted"] is None
    life.die()
    assert "the alert lane of damaged stands still" in life.lane.progress()["halted"]["why"]

    newest.write_text(version)
    assert life.tend() is None
    assert life.lane.progress()["halted"]["why"].endswith("`millrace checkpoint reset damaged.alerts`")

    life.pause()
    lane_start.begin(contract, desk.settings)
    try:
        assert life.tend().isActive
        life.wait_told("first", "meanwhile")
        life.now += REPORTED_AFTER - SECOND
        life.tend()
        assert life.lane.progress()["halted"] is not None, "it may die yet"
        life.now += SECOND
        life.tend()
        assert life.lane.progress()["halted"] is None
    finally:
        life.lane.close()


def test_kill_9_loses_no_alert_and_the_lake_has_each_once(desk: Desk) -> None:
    first = desk.start()  # finds the one that runs
    number = len(read(desk.settings, desk.contract.stream))
    produce(desk.contract, generated("transactions", 1500, seed=8), settings=desk.settings)
    processes = first.processes()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=30)
    before = desk.alerts()
    desk.send(desk.contract, *(LARGE | {"transaction": f"payment-{n}"} for n in range(number, number + 50)))

    desk.start()
    expected = desk.expected()
    told = desk.wait_for(expected)
    assert set(told) == expected
    assert len(desk.alerts()) - len(before) >= 100

    @retry(wait=wait_fixed(0.2), stop=stop_after_delay(60), retry=retry_if_result(lambda ids: set(ids) != expected))
    def logged() -> list[str]:
        return desk.logged()

    found = logged()
    assert found == sorted(expected)

    assert driver.stop(desk.settings, timeout=60)
    last = driver.recorded(desk.settings.stream_dir)
    assert last is not None
    beat = heartbeat(desk.settings.stream_dir, last.epoch)
    assert beat is not None
    assert beat["state"] == "stopped"

    reset = [
        str(Path(sys.executable).with_name("millrace")),
        "checkpoint",
        "reset",
        desk.contract.alerts_topic,
        "--json",
    ]
    done = json.loads(subprocess.run(reset, check=True, capture_output=True, text=True).stdout)
    assert done["generation"] == generations.generation(desk.settings, desk.contract.alerts_topic)
    place = generations.location(desk.settings, desk.contract.alerts_topic, done["generation"])
    start = generations.begun(place)
    assert start is not None
    assert start.offsets == done["start"]


def test_an_alert_that_is_larger_than_its_topic_takes_comes_without_its_record_and_the_lane_goes_on(
    desk: Desk, spark: SparkSession
) -> None:
    """A double quote is two characters of JSON. The second record's alert fits, and is larger than what a Java
    producer sends unless it is told otherwise."""
    contract = desk.small("quoted", {"max.message.bytes": "3000000"})
    codec = Codec(contract, schema_id(contract, registry(desk.settings)))
    producer = Producer(desk.settings.kafka_client("producer") | {"message.max.bytes": 5_000_000})
    merchants = ['"' * 1_600_000, "m" * 2_600_000, "merchant-0007"]
    for number, merchant in enumerate(merchants):
        value = codec.value(LARGE | {"transaction": f"quoted-{number}", "merchant": merchant})
        producer.produce(contract.stream, value, b"account-00042")
        assert producer.flush(30) == 0
    lane = Lane(contract, desk.settings)
    try:

        @retry(wait=wait_fixed(0.2), stop=stop_after_delay(90), retry=retry_if_result(lambda found: len(found) < 6))
        def told() -> dict[str, Any]:
            lane.tend(spark)
            return {
                alert["id"]: alert
                for alert in (json.loads(m.value() or b"") for m in read(desk.settings, contract.alerts_topic))
            }

        found = told()
        assert lane.progress()["halted"] is None

        @retry(wait=wait_fixed(0.2), stop=stop_after_delay(60), retry=retry_if_result(lambda rows: len(rows) < 6))
        def logged() -> dict[str, Any]:
            lane.tend(spark)
            path = names.local_path(names.alerts(desk.settings.lake_uri, contract.stream))
            return {row["id"]: row for row in DeltaTable(path).to_pyarrow_table().to_pylist()}

        rows = logged()
    finally:
        lane.close()
    for number, merchant in enumerate(merchants):
        for name in ("over_limit", "watched_account"):
            id_ = f"quoted/0/{number}/{name}"
            if number:
                assert found[id_]["record"]["merchant"] == merchant
                assert json.loads(rows[id_]["record"]) == found[id_]["record"]
            else:
                assert (found[id_]["record"], rows[id_]["record"]) == (None, None)
                assert "larger than its topic takes" in found[id_]["omitted"]


def test_the_log_has_each_alert_once_whatever_crashes(desk: Desk) -> None:
    contract = desk.contract.model_copy(update={"stream": "logged"})
    provision_topics(AdminClient(desk.settings.kafka_client("provision")), contract)
    tables.create(desk.settings.lake_uri, contract)

    def tell(*numbers: int) -> None:
        producer = Producer(desk.settings.kafka_client("stream"))
        for number in numbers:
            place, time = f"logged/{number % 2}/{number}", "2026-01-05T09:00:00.000001Z"
            document = {"id": f"{place}/large", "alert": "large", "severity": "info", "original": place,
                        "event_time": time, "kafka_timestamp": time, "record": {"number": number}}  # fmt: skip
            producer.produce(contract.alerts_topic, json.dumps(document), str(number))
        producer.produce(contract.alerts_topic, b"no alert", b"x")
        assert producer.flush(30) == 0

    def logged() -> list[int]:
        path = names.local_path(names.alerts(desk.settings.lake_uri, contract.stream))
        return sorted(DeltaTable(path).to_pyarrow_table()["offset"].to_pylist())

    def life(may_commit: Callable[[], None] = lambda: None, told: int = 0) -> None:
        log = AlertLog(contract, desk.settings, may_commit)
        try:
            rows = 0
            for _ in range(200):  # at most ten seconds
                rows += log.copy(at_once=True)
                if rows >= told:
                    return
            raise AssertionError(f"{rows} of {told} came")
        finally:
            log.close()

    tell(*range(10))
    life(told=10)
    tell(*range(5, 15))  # a crash of the lane repeated some
    with pytest.raises(RuntimeError, match="the power is out"):
        life(power_out(at=1), told=5)
    assert logged() == list(range(10))
    life(told=5)
    assert logged() == list(range(15))
    tell(20)
    life(told=1)  # reads what is new, not all again
    assert logged() == [*range(15), 20]


def test_a_partition_that_is_added_while_the_log_runs_is_copied_too(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spark.speed.alert_log.LIST", 0.0)
    contract = desk.small("widened")

    def tell(partition: int) -> None:
        producer = Producer(desk.settings.kafka_client("stream"))  # a new one knows all partitions
        place, time = f"widened/{partition}/1", "2026-01-05T09:00:00.000001Z"
        document = {"id": f"{place}/large", "alert": "large", "severity": "info", "original": place,
                    "event_time": time, "kafka_timestamp": time, "record": {}}  # fmt: skip
        failures: list[Any] = []
        producer.produce(
            contract.alerts_topic, json.dumps(document), partition=partition,
            on_delivery=lambda error, _: failures.append(error),
        )  # fmt: skip
        assert producer.flush(30) == 0
        assert failures == [None]

    @retry(wait=wait_fixed(0.1), stop=stop_after_delay(20), retry=retry_if_result(lambda rows: not rows))
    def copied() -> int:
        return log.copy()

    monkeypatch.setattr("spark.speed.alert_log.EVERY", 0.0)
    log = AlertLog(contract, desk.settings)
    try:
        tell(0)
        assert copied() == 1
        wider = contract.model_copy(update={"topic": contract.topic.model_copy(update={"partitions": 2})})
        changes = provision_topics(AdminClient(desk.settings.kafka_client("provision")), wider)
        assert "`millrace stream deploy`" in "".join(changes), "the lane needs a slot more"
        tell(1)
        assert copied() == 1
    finally:
        log.close()
