"""Starts, refusals, resets and storms of the driver's own stream, on a real broker, registry and Spark.

What came out is judged by the broker (each committed record's place) and by what the test sent, never by the code that
is tested.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from confluent_kafka.schema_registry import Schema
from deltalake import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

from infra.broker.offsets import NotProvisioned, broker_offsets, flat, require_topics
from infra.broker.topic_ids import TopicIds
from infra.operations.provisioning import provision_subject, provision_topics
from infra.settings import Settings
from producers.codec import registry
from producers.replay import replay
from schemas.contract.model import Contract
from spark.conservation.accounting import Finding
from spark.conservation.audit import NotConserved, audit, require_conserved
from spark.lake import batch_numbers, names, tables
from spark.speed import ingest_query
from spark.speed.checkpoint import generations, ingest_start, start_check, topic_identity
from spark.speed.ingest import Ingest
from spark.speed.open_transactions import REPORTED_AFTER, OpenTransactions
from tests.support.clicks import NOON, V1, V2, click, read, schema_id
from tests.support.kafka_rows import wire

RUN = os.environ.get("RUN", "x")
NAMES = (f"restart_{RUN}_{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def spark(streaming: SparkSession) -> SparkSession:
    return streaming


def contract(name: str, **changes: Any) -> Contract:
    """Clicks by page; a batch of ten records of which more than half are bad is a storm."""
    return Contract.model_validate(
        {
            "stream": name,
            "description": "",
            "owner": "",
            "topic": {"partitions": 2, "retention": "36500d"},  # the records carry a time of long ago
            "key": ["page"],
            "event_id": ["number"],
            "event_time": "at",
            "rules": [{"name": "known", "predicate": "page <> 'nowhere'", "reason": "no such page"}],
            "aggregates": [
                {
                    "name": f"{name}_by_page",
                    "description": "",
                    "dimensions": ["page"],
                    "measures": [{"name": "clicks", "kind": "count"}],
                },
                {
                    "name": f"{name}_by_number",
                    "description": "",
                    "dimensions": ["number"],
                    "measures": [{"name": "clicks", "kind": "count"}],
                },
            ],
            "dead_letters": {"storm_minimum": 10, "storm_share": 0.5, "policy": {"unknown_schema": {"attempts": 5}}},
            "folder": Path(name),
            "versions": (V1,),
        }
        | changes
    )


class PowerOut(RuntimeError):
    pass


@dataclass
class Site:
    """A stream of its own and what was sent to it; `start` is a new life of the driver's part of it."""

    stack: Settings
    spark: SparkSession
    contract: Contract
    life: ingest_query.IngestQuery | None = None
    crash_at: int | None = None
    good: list[int] = field(default_factory=list)
    bad: list[bytes] = field(default_factory=list)
    _commits: int = 0

    def provision(self) -> None:
        provision_topics(AdminClient(self.stack.kafka_client("provision")), self.contract)
        provision_subject(registry(self.stack), self.contract)
        tables.create(self.stack.lake_uri, self.contract)

    @property
    def checkpoint(self) -> Path:
        """The folder of the newest generation."""
        name = self.contract.stream
        generation = generations.generation(self.stack, name)
        return Path(names.local_path(generations.location(self.stack, name, generation)))

    def _may_commit(self) -> None:
        self._commits += 1
        if self._commits == self.crash_at:
            raise PowerOut("the power is out")

    def start(self, crash_at: int | None = None) -> ingest_query.IngestQuery:
        """`crash_at`: the power goes out before that commit: 1 bronze, 2 and 3 partials, 4 letters."""
        self.stop()
        self._commits, self.crash_at = 0, crash_at
        self.life = ingest_query.IngestQuery(self.contract, self.stack, threading.Event(), self._may_commit)
        self.life.start(self.spark)
        return self.life

    def stop(self) -> None:
        """Between two batches, as the driver does."""
        if self.life is not None:
            self.life.stopping.set()
            wait_for(self.life.finish)
            self.life.close()
            self.life = None

    def send(self, numbers: range, bad: int = 0, transaction: bool = False) -> None:
        """Good clicks with these numbers, and `bad` ones of a page that does not exist, on both partitions."""
        known = schema_id(self.stack, self.contract, 1)
        refused = [wire(known, V1, click(10_000 + len(self.bad) + n, page="nowhere")) for n in range(bad)]
        self.put([*(wire(known, V1, click(n)) for n in numbers), *refused], transaction)
        self.good += numbers
        self.bad += refused

    def put(self, values: Sequence[bytes | None], transaction: bool = False) -> None:
        """The end of a transaction is an offset without a record."""
        options = {"transactional.id": f"test-{self.contract.stream}"} if transaction else {}
        producer = Producer(self.stack.kafka_client("admin") | options)
        if transaction:
            producer.init_transactions(30)
            producer.begin_transaction()
        for number, value in enumerate(values):
            stamp = int(NOON.timestamp() * 1000) + number
            producer.produce(self.contract.stream, value, partition=number % 2, timestamp=stamp)
        if transaction:
            producer.commit_transaction(30)
        assert producer.flush(30) == 0

    def ingested(self) -> bool:
        """Whether the query has finished a batch that reaches the end of the topics; fails when it has ended."""
        assert self.life is not None
        assert self.life.error() is None, self.life.error()
        assert not self.life.halted, self.life.progress()
        done = flat(self.life.progress()["offsets"])
        ends = broker_offsets(self.stack, self.contract.ingest_topics)
        return not self.life.running and all(done.get(place, 0) >= end for place, end in ends.items())

    def go(self) -> None:
        """A life without accidents, until everything is ingested."""
        self.start()
        wait_for(self.ingested)
        self.stop()

    def crash(self, at: int) -> None:
        """A life that ends before its commit `at` since its start."""
        life = self.start(crash_at=at)
        assert wait_for(lambda: life.halted)
        assert "the power is out" in str(life.standstill.failure)
        self.stop()

    def halt(self) -> str:
        """Why a new life halts."""
        life = self.start()
        wait_for(lambda: life.halted)
        assert life.error() is None
        why = life.progress()["halted"]["why"]
        self.stop()
        return str(why)

    def reset(self) -> ingest_start.Reset:
        return ingest_start.reset(self.contract, self.stack)

    def rows(self, uri: str) -> Any:
        return DeltaTable(names.local_path(uri)).to_pyarrow_table()

    def counted(self) -> list[list[tuple[Any, int]]]:
        """Of each aggregate, what its partials add up to."""
        found = []
        for aggregate in self.contract.aggregates:
            partials = self.rows(names.speed(self.stack.lake_uri, self.contract.stream, aggregate.name))
            query = f"select {aggregate.dimensions[0]}, sum(count_of_rows)::int from partials group by all order by all"
            found.append(duckdb.sql(query).fetchall())
            assert partials is not None
        return found

    def assert_exact(self) -> None:
        """Each record on the broker is one row of bronze, each good one is counted once, each bad one is one letter."""
        on_broker = Counter(
            (m.topic(), m.partition(), m.offset()) for m in read(self.stack, *self.contract.ingest_topics)
        )
        bronze = self.rows(names.bronze(self.stack.lake_uri, self.contract.stream)).to_pylist()
        assert Counter((row["topic"], row["partition"], row["offset"]) for row in bronze) == on_broker
        assert sorted(row["number"] for row in bronze if row["accepted"]) == sorted(self.good)
        by_page = [("home", len(self.good))] if self.good else []
        assert self.counted() == [by_page, [(number, 1) for number in sorted(self.good)]]
        letters = read(self.stack, self.contract.dlq_topic)
        assert Counter(letter.value() for letter in letters) == Counter(self.bad)


def wait_for(condition: Callable[[], Any], timeout: float = 90) -> Any:
    """The first true value of `condition()`."""
    return retry(wait=wait_fixed(0.1), stop=stop_after_delay(timeout), retry=retry_if_result(lambda v: not v))(
        condition
    )()


@pytest.fixture
def site(stack: Settings, spark: SparkSession) -> Iterator[Site]:
    found = Site(stack, spark, contract(next(NAMES)))
    found.provision()
    yield found
    found.stop()


# -- resets --------------------------------------------------------------------------------------------------------


def nothing(checkpoint: Path) -> None:
    pass


def lose_everything(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)


def lose_metadata(checkpoint: Path) -> None:
    (checkpoint / "metadata").unlink()


def cut_offsets(checkpoint: Path) -> None:
    newest = max((checkpoint / "offsets").glob("[0-9]*"), key=lambda path: int(path.name))
    newest.write_bytes(newest.read_bytes()[:40])


def lose_commits(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "commits")


@pytest.mark.parametrize(
    ("commit", "damage", "refusal"),
    [
        pytest.param(1, cut_offsets, r"offsets/1 is cut short", id="before bronze"),
        pytest.param(2, lose_everything, r"bronze holds batch 1 of generation 1, but .*/offsets has no batch",
                     id="before partials"),
        pytest.param(3, lose_metadata, r"/g1/metadata is missing", id="between partials", marks=pytest.mark.long),
        pytest.param(4, nothing, None, id="before letters", marks=pytest.mark.long),
        pytest.param(5, lose_commits, r"offsets ends with batch 1, but .*/commits with batch None",
                     id="before the commit log", marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_a_reset_loses_and_doubles_nothing_wherever_the_last_batch_ended(
    site: Site,
    commit: int,
    damage: Callable[[Path], None],
    refusal: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site.send(range(40), bad=3, transaction=True)
    site.go()
    site.send(range(40, 60), bad=2)
    if commit == 5:
        done = Ingest.batch

        def batch(self: Ingest, records: DataFrame, batch_id: int) -> None:
            done(self, records, batch_id)
            raise PowerOut("the power is out")

        with monkeypatch.context() as patched:
            patched.setattr(Ingest, "batch", batch)
            site.crash(at=0)
    else:
        site.crash(at=commit)
    damage(site.checkpoint)
    if refusal:
        with pytest.raises(start_check.CheckpointRefused, match=refusal) as refused:
            ingest_start.opening(site.contract, site.stack)
        assert f"`millrace checkpoint reset {site.contract.stream}`" in str(refused.value)
        assert site.halt() == str(refused.value)

    done_by = site.reset()
    assert done_by.generation == 2
    assert done_by.unfinished == batch_numbers.batch_number(1, 0 if commit == 1 else 1)
    if commit > 1:  # with nothing new to read, what had reached bronze is finished all the same
        site.start()
        wait_for(lambda: site.life is not None and site.life.query is not None)
        site.stop()
        site.assert_exact()
        assert generations.settled_batch(site.contract, site.stack) == batch_numbers.batch_number(1, 1)
    site.send(range(60, 75), bad=1)
    site.go()
    site.assert_exact()
    assert batch_numbers.generation_of(generations.settled_batch(site.contract, site.stack) or 0) == 2


def test_a_batch_is_not_noted_by_a_driver_that_has_lost_its_lease_meanwhile(site: Site) -> None:
    site.send(range(20))
    site.crash(at=4)  # bronze and both partials are there, and no record was bad
    assert (site.checkpoint / "offsets" / "0").exists()
    assert not (site.checkpoint / "commits" / "0").exists()
    site.go()
    site.assert_exact()


@pytest.mark.long
def test_a_second_reset_before_the_first_generation_ran_finishes_the_same_batch(site: Site) -> None:
    site.send(range(20), bad=2)
    site.crash(at=3)
    assert [site.reset().unfinished, site.reset().unfinished] == [batch_numbers.batch_number(1, 0)] * 2
    site.go()
    site.assert_exact()
    site.send(range(20, 30))
    site.go()
    site.assert_exact()
    assert batch_numbers.generation_of(generations.settled_batch(site.contract, site.stack) or 0) == 3


@pytest.mark.long
def test_a_reset_that_was_not_finished_is_refused_and_can_be_done_again(site: Site) -> None:
    site.send(range(20))
    site.go()

    def no_lease() -> None:
        raise PowerOut("the lease is gone")

    with pytest.raises(PowerOut):
        ingest_start.reset(site.contract, site.stack, may_write=no_lease)
    assert generations.generation(site.stack, site.contract.stream) == 1
    site.reset()
    (site.checkpoint / "start.json").unlink()  # as if it had died between its two files
    with pytest.raises(start_check.CheckpointRefused, match=r"/g2 has no start.json: a reset was not finished"):
        ingest_start.opening(site.contract, site.stack)
    assert site.reset().generation == 3
    site.send(range(20, 25))
    site.go()
    site.assert_exact()


@pytest.mark.long
def test_a_partition_that_was_added_after_the_reset_is_read_from_its_beginning(site: Site) -> None:
    site.send(range(20))
    site.go()
    site.reset()
    site.contract = contract(site.contract.stream, topic={"partitions": 3, "retention": "36500d"})
    site.provision()
    producer = Producer(site.stack.kafka_client("producer"))
    known = schema_id(site.stack, site.contract, 1)
    producer.produce(site.contract.stream, wire(known, V1, click(99)), partition=2)
    assert producer.flush(30) == 0
    site.good.append(99)
    site.go()
    site.assert_exact()


@pytest.mark.long
def test_records_that_kafka_dropped_unread_are_lost_only_when_somebody_says_so(site: Site) -> None:
    site.send(range(20), transaction=True)
    site.go()
    site.send(range(20, 40), transaction=True)
    admin = AdminClient(site.stack.kafka_client("admin"))
    ends = broker_offsets(site.stack, [site.contract.stream])
    gone = TopicPartition(site.contract.stream, 0, ends[site.contract.stream, 0])
    admin.delete_records([gone])[gone].result()
    with pytest.raises(ingest_start.ResetRefused, match=rf"{site.contract.stream}/0 from 10 to 21.*--accept-loss"):
        site.reset()
    done = ingest_start.reset(site.contract, site.stack, accept_loss=True)
    assert done.lost == {(site.contract.stream, 0): 12}  # ten records, and the ends of two transactions
    site.go()
    site.good = [n for n in site.good if n < 20 or n % 2]
    bronze = site.rows(names.bronze(site.stack.lake_uri, site.contract.stream)).to_pylist()
    assert sorted(row["number"] for row in bronze) == sorted(site.good)


@pytest.mark.long
def test_retention_of_what_was_read_is_no_loss(site: Site) -> None:
    """The end of the last transaction lies behind bronze's last record, and retention takes both."""
    site.send(range(20), transaction=True)
    site.go()
    admin = AdminClient(site.stack.kafka_client("admin"))
    for place, end in broker_offsets(site.stack, [site.contract.stream]).items():
        gone = TopicPartition(*place, end)
        admin.delete_records([gone])[gone].result()
    assert site.reset().lost == {}
    site.send(range(20, 30))
    site.go()
    bronze = site.rows(names.bronze(site.stack.lake_uri, site.contract.stream)).to_pylist()
    assert sorted(row["number"] for row in bronze) == list(range(30))


# -- topics ---------------------------------------------------------------------------------------------------------


def make_anew(site: Site, topic: str, partitions: int = 2) -> None:
    """Deletes the topic and makes it again under its name, as somebody would by hand."""
    admin = AdminClient(site.stack.kafka_client("admin"))
    admin.delete_topics([topic])[topic].result()
    wait_for(lambda: topic not in admin.list_topics(timeout=10).topics)
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result()
    wait_for(lambda: {p for t, p in broker_offsets(site.stack, [topic])} == set(range(partitions)))


def bronze_of(site: Site) -> list[tuple[str, int, int, int]]:
    rows = site.rows(names.bronze(site.stack.lake_uri, site.contract.stream)).to_pylist()
    return sorted((row["topic"], row["partition"], row["offset"], row["number"]) for row in rows)


def test_a_topic_that_was_made_anew_while_the_stream_stood_halts_it(site: Site) -> None:
    """Whatever the new topic holds: more than the old one, as much, less or nothing, on as many partitions or more."""
    name, retried = site.contract.stream, site.contract.retry_topic
    site.send(range(6))
    site.go()
    before = bronze_of(site)
    for partitions, count in ((2, 300), (2, 6), (2, 4), (2, 0), (3, 40)):
        make_anew(site, name, partitions)
        site.put([wire(schema_id(site.stack, site.contract, 1), V1, click(1000 + n)) for n in range(count)])
        assert re.search(rf"a topic of stream {name} was deleted and made again under its name \({name} ", site.halt())
        for accept_loss in (False, True):
            with pytest.raises(ingest_start.ResetRefused, match="give the stream a new name"):
                ingest_start.reset(site.contract, site.stack, accept_loss=accept_loss)
        found = audit(site.stack, site.contract, "made anew")
        assert {one.not_ingested for one in found.partitions if one.topic == retried} == {0}
        assert sum(one.not_ingested for one in found.partitions) == count
        with pytest.raises(NotConserved, match=f"{name} was made anew"):
            require_conserved(found)
    shutil.rmtree(site.checkpoint)  # the ids are with bronze
    with pytest.raises(ingest_start.ResetRefused, match="give the stream a new name"):
        ingest_start.reset(site.contract, site.stack, accept_loss=True)
    assert bronze_of(site) == before


def test_a_retry_topic_that_was_made_anew_is_read_from_its_beginning_when_somebody_says_so(site: Site) -> None:
    """Bronze holds none of its records, so the new offsets mean nothing else."""
    retried = site.contract.retry_topic
    site.send(range(6))
    site.go()
    make_anew(site, retried)
    assert f"({retried} " in site.halt()
    with pytest.raises(ingest_start.ResetRefused, match="--accept-loss"):
        site.reset()
    done = ingest_start.reset(site.contract, site.stack, accept_loss=True)
    assert (done.anew, done.lost) == ([retried], {})
    site.send(range(6, 9))
    site.go()
    site.assert_exact()
    found = audit(site.stack, site.contract, "accepted")
    assert (found.residual, found.made_anew) == (0, [])


def test_a_topic_that_is_made_anew_after_the_look_at_it_gives_bronze_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new topic has records where the old one ended, so they would pass for its next ones."""
    site.send(range(6))
    site.go()
    before = bronze_of(site)
    make_anew(site, site.contract.stream)
    site.put([wire(schema_id(site.stack, site.contract, 1), V1, click(1000 + n)) for n in range(40)])
    monkeypatch.setattr(topic_identity.SameTopics, "begin", lambda self: None)
    assert f"({site.contract.stream} " in site.halt()
    assert bronze_of(site) == before


def test_a_topic_that_is_made_anew_under_a_running_stream_halts_it_without_a_batch(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_query, "LOOK", 0.0)
    site.send(range(6))
    life = site.start()
    wait_for(site.ingested)
    life.tend(site.spark)
    assert not life.halted
    ids = TopicIds(site.stack).of(site.contract.ingest_topics)
    make_anew(site, site.contract.stream)
    assert TopicIds(site.stack).of(site.contract.ingest_topics) != ids

    def halted() -> bool:
        life.tend(site.spark)
        return life.halted

    wait_for(halted)
    assert isinstance(life.standstill.failure, topic_identity.TopicMadeAnew)


def test_records_that_kafka_dropped_unread_halt_the_stream_and_the_audit_lists_what_is_accepted(site: Site) -> None:
    name = site.contract.stream
    site.send(range(20))
    site.go()
    admin = AdminClient(site.stack.kafka_client("admin"))
    site.send(range(20, 40))
    gone = [TopicPartition(name, 0, 14), TopicPartition(name, 1, 11)]
    for answer in admin.delete_records(gone).values():
        answer.result()
    why = site.halt()
    assert f"{name}/0 from 10 to 13; {name}/1 from 10 to 10" in why
    assert f"`millrace checkpoint reset {name} --accept-loss`" in why
    done = ingest_start.reset(site.contract, site.stack, accept_loss=True)
    assert done.lost == {(name, 0): 4, (name, 1): 1}
    site.go()
    found = audit(site.stack, site.contract, "accepted")
    assert (found.residual, found.gaps) == (0, {"accepted": 5})
    assert [(one.partition, one.findings) for one in found.partitions if one.findings] == [
        (0, (Finding(10, 13, "accepted"),)), (1, (Finding(10, 10, "accepted"),)),
    ]  # fmt: skip
    on_broker = {(m.topic(), m.partition(), m.offset()) for m in read(site.stack, *site.contract.ingest_topics)}
    assert {place[:3] for place in bronze_of(site) if place[3] >= 20} <= on_broker


def test_records_behind_an_open_transaction_are_reported_until_it_ends(site: Site) -> None:
    """The one record of a producer that hangs keeps a thousand of others from being read; the query has no lag."""
    name, now = site.contract.stream, [NOON]
    watch = OpenTransactions(site.contract, site.stack, lambda: now[0])
    hanging = Producer(site.stack.kafka_client("admin") | {"transactional.id": f"hangs-{name}"})
    hanging.init_transactions(30)
    hanging.begin_transaction()
    hanging.produce(name, b"", partition=0)
    assert hanging.flush(30) == 0
    site.put([b"other"] * 2000)

    def looked(seconds: float) -> Any:
        now[0] += timedelta(seconds=seconds)
        watch.look()
        return watch.reported()

    assert looked(0) is None
    assert looked(59) is None, "it may be an honest one that takes a while"
    found = looked(1)
    assert (found["records"], found["since"]) == (1001, (NOON + REPORTED_AFTER).isoformat())
    assert found["why"].startswith(f"1,001 records of {name} wait behind an open transaction ({name}/0 from offset 0, ")
    ends = broker_offsets(site.stack, [name], uncommitted=True)
    assert (ends[name, 0], broker_offsets(site.stack, [name])[name, 0]) == (1001, 0)
    hanging.commit_transaction(30)
    wait_for(lambda: looked(1) is None)


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_changed_contract_is_admitted_or_refused_before_the_query_starts(site: Site) -> None:
    site.send(range(20))
    site.go()
    name, stack = site.contract.stream, site.stack
    first = site.contract
    site.contract = contract(name, versions=(V1, V2), rules=[], allowed_lateness="5h")
    site.provision()
    site.stack = stack.model_copy(
        update={
            "trigger_interval": 0.5,
            "max_offsets_per_trigger": 7,
            "stream_memory": "2g",
            "spark_master": "local[4]",
        }
    )
    site.send(range(20, 40))
    site.go()
    site.assert_exact()

    aggregates = [one.model_dump() for one in first.aggregates]
    site.contract = contract(name, aggregates=[aggregates[0] | {"dimensions": ["number"]}, aggregates[1]])
    site.send(range(40, 50))
    why = site.halt()
    assert f"dimensions of {name}_by_page: 'page' became 'number'" in why
    assert "use a new name" in why
    assert f"{name}/stream.yaml" in why
    assert len(site.rows(names.bronze(stack.lake_uri, name))) == 40, "the query did not start"
    site.reset()
    assert site.halt() == why, "a reset does not change rows already written"
    site.contract = first
    site.go()
    site.assert_exact()


@pytest.mark.long
def test_other_topics_are_refused_and_a_reset_is_the_way_out(site: Site) -> None:
    site.send(range(20))
    site.go()
    noted = site.checkpoint / "fingerprint.json"
    document = json.loads(noted.read_text())
    document["query"]["topics"] = "other"  # the start before read another topic
    noted.write_text(json.dumps(document))
    assert f"millrace checkpoint reset {site.contract.stream}" in site.halt()
    site.reset()
    site.send(range(20, 30))
    site.go()
    site.assert_exact()


# -- storms --------------------------------------------------------------------------------------------------------


def test_a_storm_goes_onward_once_after_somebody_accepted_it(site: Site) -> None:
    name = site.contract.stream
    site.send(range(15), bad=1)
    site.go()
    site.assert_exact()
    with pytest.raises(ingest_start.NoStorm):
        ingest_start.accept_storm(site.contract, site.stack)

    site.send(range(15, 20), bad=30)
    why = site.halt()
    assert "30 of the 35 records of batch 1" in why
    assert f"`millrace checkpoint accept-storm {name}`" in why
    assert site.halt() == why, "it goes on halting"
    assert len(site.rows(names.bronze(site.stack.lake_uri, name))) == 51
    assert site.counted()[0] == [("home", 15)]
    assert len(read(site.stack, site.contract.dlq_topic)) == 1

    accepted = ingest_start.accept_storm(site.contract, site.stack)
    assert (accepted.records, accepted.bad) == (35, {("rule", "no such page"): 30})
    with pytest.raises(ingest_start.NoStorm):
        ingest_start.accept_storm(site.contract, site.stack)
    site.go()
    site.assert_exact()
    site.go()
    site.assert_exact()

    site.send(range(20, 22), bad=20)
    assert "20 of the 22 records of batch 2" in site.halt(), "it was accepted once"


@pytest.mark.parametrize("tombstones", ["reject", "skip"])
def test_tombstones_are_counted_as_such_and_conserved(site: Site, tombstones: str) -> None:
    site.contract = contract(site.contract.stream, tombstones=tombstones)
    known = schema_id(site.stack, site.contract, 1)
    site.put([*(wire(known, V1, click(n)) for n in range(5)), *[None] * 30])
    site.go()
    rows = Counter(
        row["error_class"] for row in site.rows(names.bronze(site.stack.lake_uri, site.contract.stream)).to_pylist()
    )
    assert rows == {None: 5, ("malformed" if tombstones == "reject" else "tombstone"): 30}
    assert site.counted()[0] == [("home", 5)]
    letters = read(site.stack, site.contract.dlq_topic)
    assert [letter.value() for letter in letters] == [None] * (30 if tombstones == "reject" else 0)
    found = audit(site.stack, site.contract, "tombstones")
    assert (found.residual, found.rows) == (0, 35)

    site.put([wire(known, V1, click(5)), *[b"garbage"] * 20, *[None] * 30])
    assert "20 of the 21 records of batch 1" in site.halt(), "garbage among them is a storm"


def test_a_halted_stream_is_tried_again_in_place(site: Site) -> None:
    site.send(range(5), bad=30)
    life = site.start()
    wait_for(lambda: life.halted)
    first = life.progress()["halted"]
    life.start(site.spark)
    wait_for(lambda: life.halted)
    assert life.progress()["halted"] == first, "the same halt, since the same moment"
    ingest_start.accept_storm(site.contract, site.stack)
    life.start(site.spark)
    wait_for(site.ingested)
    assert life.progress()["halted"] is None
    site.stop()
    site.assert_exact()


def test_a_stream_that_nobody_provisioned_halts_alone_and_starts_when_it_is(
    stack: Settings, spark: SparkSession
) -> None:
    new = Site(stack, spark, contract(next(NAMES)))
    tables.create(stack.lake_uri, new.contract)  # the driver does it
    life = new.start()
    try:
        wait_for(lambda: life.halted)
        assert life.error() is None, "nothing that ends the driver"
        halted = life.progress()["halted"]
        assert f"there is no topic {new.contract.stream}" in halted["why"]
        assert "`millrace provision`" in halted["why"]
        with pytest.raises(NotProvisioned, match=f"there is no topic {new.contract.stream}"):
            require_topics(stack, new.contract)
        new.provision()
        new.send(range(5))
        life.start(spark)
        wait_for(new.ingested)
        assert life.progress()["halted"] is None
    finally:
        new.stop()
    new.assert_exact()


@pytest.mark.long
def test_a_reset_does_not_get_around_a_storm(site: Site) -> None:
    site.send(range(5), bad=30)
    why = site.halt()
    site.reset()
    assert site.halt() == why
    assert read(site.stack, site.contract.dlq_topic) == []
    ingest_start.accept_storm(site.contract, site.stack)
    site.send(range(5, 9))
    site.go()
    site.assert_exact()


@pytest.mark.long
def test_a_storm_for_lack_of_a_schema_ends_when_it_is_registered(site: Site) -> None:
    client = registry(site.stack)
    known = schema_id(site.stack, site.contract, 1)
    newer = V2 | {"fields": [*V2["fields"], {"name": site.contract.stream, "type": "int", "default": 0}]}
    later = client.register_schema("restart-elsewhere", Schema(json.dumps(newer | {"name": "Other"}), "AVRO")) + 1
    record: dict[str, Any] = {"referrer": None, site.contract.stream: 1}
    values = [wire(known, V1, click(n)) for n in range(5)]
    lacking = [wire(later, newer, click(n, **record)) for n in range(5, 35)]
    site.put(values + lacking)
    assert "30 of the 35 records" in site.halt()
    assert client.register_schema(site.contract.subject, Schema(json.dumps(newer), "AVRO")) == later
    site.go()
    assert Counter(letter.value() for letter in read(site.stack, site.contract.dlq_topic)) == Counter(lacking)

    soon = datetime.now(UTC) + timedelta(hours=1)
    report = replay(site.contract, site.stack, now=soon, schema_exists=lambda schema_id: schema_id == later)
    assert report.retried == 30
    site.go()
    on_broker = read(site.stack, *site.contract.ingest_topics)
    bronze = site.rows(names.bronze(site.stack.lake_uri, site.contract.stream)).to_pylist()
    assert Counter((row["topic"], row["partition"], row["offset"]) for row in bronze) == Counter(
        (message.topic(), message.partition(), message.offset()) for message in on_broker
    )
    assert Counter((row["topic"] == site.contract.stream, row["error_class"]) for row in bronze) == {
        (True, None): 5, (True, "unknown_schema"): 30, (False, None): 30,
    }  # fmt: skip
    assert sorted(row["number"] for row in bronze if row["accepted"]) == list(range(35))
    assert site.counted()[0] == [("home", 35)]
