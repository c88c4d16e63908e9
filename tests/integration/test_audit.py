"""The conservation audit against a real broker and a real lake: what it proves, what it finds, and what repair sends.

What must come out is known from what the test itself sent, deleted and doubled. Bronze and the checkpoint's logs are
written here record by record, so that the tests can lose what they like; `test_ingest` audits the driver's own.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest
from airflow.sdk.exceptions import AirflowFailException
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from deltalake import DeltaTable, write_deltalake
from pyspark.sql.pandas.types import to_arrow_schema
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

from infra.broker.offsets import broker_offsets
from infra.broker.ranges import Range
from infra.broker.topic_ids import TopicIds
from infra.operations.backfill import WrongSelection, repair_selected, selected
from infra.operations.provisioning import provision_topics
from infra.settings import PROJECT, Settings
from producers.repair import repair
from schemas.contract.catalog import load
from schemas.contract.model import Contract
from spark.conservation import audit_log
from spark.conservation.accounting import Fault, Finding, PartitionAccount, Proof
from spark.conservation.audit import BronzeUnreadable, NotConserved, audit, require_conserved
from spark.conservation.audit_log import Audit
from spark.conservation.bronze_coordinates import BronzeCoordinates
from spark.lake import batch_numbers, names, source_topics, table_schemas, tables
from spark.serving.duck import connect
from spark.speed.checkpoint import generations
from tests.support.chance import fresh, octets
from tests.support.topics import header_values

STAMP = 1_767_225_600_123
"""Kafka's time of a stream's first record here, in milliseconds; each one after it is a second later."""


class Stream:
    """A stream of one partition, with topics of its own: `send`, `ingest`, and what a test does to bronze."""

    def __init__(self, stack: Settings, contract: Contract, home: Path) -> None:
        self.settings = stack.model_copy(
            update={
                "lake": f"file:{home}/lake", "checkpoints": f"file:{home}/checkpoints",
                "contracts": contract.folder.parent,
            }
        )  # fmt: skip
        self.contract, self.name = contract, contract.stream
        self.path = names.local_path(names.bronze(self.settings.lake_uri, self.name))
        self._folder = home / "checkpoints" / self.name / "g1"
        self._ends = {(topic, 0): 0 for topic in contract.ingest_topics}
        self._batches, self._runs, self._stamps = count(), count(1), count(STAMP, 1000)
        self._write("sources/0/0", "\0v1\n" + self._offsets())
        tables.create(self.settings.lake_uri, contract)

    # -- what arrives ------------------------------------------------------------------------------------------------

    def send(
        self,
        number: int = 1,
        topic: str | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        key: bytes | None = None,
    ) -> list[int]:
        """Sends records outside of transactions and returns their offsets."""
        producer = Producer(self.settings.kafka_client("producer") | {"enable.idempotence": True})
        return self._produce(producer, number, topic or self.name, headers, key)

    def transaction(self, number: int, *, commit: bool) -> list[int]:
        """Sends records to the stream's topic in a transaction."""
        producer = Producer(self.settings.kafka_client("producer") | {"transactional.id": f"producer.{self.name}"})
        producer.init_transactions(30)
        producer.begin_transaction()
        offsets = self._produce(producer, number, self.name)
        producer.commit_transaction(30) if commit else producer.abort_transaction(30)
        self._wait_past(offsets[-1])
        return offsets

    @retry(wait=wait_fixed(0.05), stop=stop_after_delay(30), retry=retry_if_result(lambda past: not past))
    def _wait_past(self, offset: int) -> bool:
        """A broker writes the marks of a transaction's end after it has answered; until then readers see none of it."""
        return broker_offsets(self.settings, [self.name])[self.name, 0] > offset

    def _produce(
        self,
        producer: Producer,
        number: int,
        topic: str,
        headers: Sequence[tuple[str, bytes]] = (),
        key: bytes | None = None,
    ) -> list[int]:
        offsets: list[int] = []

        def arrived(error: KafkaError | None, message: Message) -> None:
            assert error is None
            offsets.append(message.offset() or 0)

        for n in range(number):
            own = key or (b"\xff" if n % 2 else None)
            both: list[tuple[str, str | bytes | None]] = [("trace", b"\0\xff"), *headers]
            producer.produce(topic, octets(16), own, 0, timestamp=next(self._stamps), headers=both, on_delivery=arrived)
        assert producer.flush(30) == 0
        return offsets

    def records(self, topic: str, start: int = 0) -> dict[int, Message]:
        """Every committed record of the topic, by offset, as a plain consumer reads it."""
        consumer = Consumer(
            self.settings.kafka_client("admin")
            | {"group.id": "reader", "isolation.level": "read_committed", "enable.partition.eof": True}
        )
        consumer.assign([TopicPartition(topic, 0, start)])
        found: dict[int, Message] = {}
        while True:
            message = consumer.poll(20)
            assert message is not None, f"{topic} is silent"
            if (error := message.error()) is not None:
                assert error.code() == KafkaError._PARTITION_EOF
                consumer.close()
                return found
            found[message.offset() or 0] = message

    # -- what the driver does ----------------------------------------------------------------------------------------

    def ingest(self, *, losing: Sequence[int] = ()) -> None:
        """A micro-batch: what Kafka has since the last one becomes rows of bronze; the offsets of the stream's topic
        in `losing` do not."""
        batch_id = next(self._batches)
        broker = broker_offsets(self.settings, self.contract.ingest_topics)
        rows = [
            (topic, offset, message)
            for (topic, _), start in self._ends.items()
            if start < broker[topic, 0]
            for offset, message in self.records(topic, start).items()
            if not (topic == self.name and offset in losing)
        ]
        self._ends = broker
        self._write(f"offsets/{batch_id}", "v1\n{}\n" + self._offsets())
        self.append([self._row(topic, offset, message, batch_id) for topic, offset, message in rows])
        self._write(f"commits/{batch_id}", "v1\n{}")

    def append(self, rows: list[dict[str, Any]]) -> None:
        schema = table_schemas.bronze_schema(self.contract)
        whole = [dict.fromkeys(schema.names) | row for row in rows]
        write_deltalake(
            self.path, pyarrow.Table.from_pylist(whole, to_arrow_schema(schema, timezone="UTC")), mode="append"
        )

    def rows(self, *offsets: int) -> list[dict[str, Any]]:
        """Rows of bronze of the stream's topic."""
        columns = ["topic", "partition", "offset", "batch", "attempt", "accepted"]
        rows = DeltaTable(self.path).to_pyarrow_table(columns=columns).to_pylist()
        return [row for row in rows if row["topic"] == self.name and row["offset"] in offsets]

    def delete(self, *offsets: int, topic: str | None = None) -> None:
        chosen = ", ".join(map(str, offsets))
        DeltaTable(self.path).delete(f"topic = '{topic or self.name}' and \"offset\" in ({chosen})")

    def _row(self, topic: str, offset: int, message: Message, batch_id: int) -> dict[str, Any]:
        headers = header_values(message) if topic == self.contract.retry_topic else {}
        original = headers.get("dl-id")
        return {
            "topic": topic, "partition": 0, "offset": offset, "batch": batch_numbers.batch_number(1, batch_id),
            "original": original and original.decode(), "attempt": int(headers.get("dl-attempt", b"0")),
            "kafka_timestamp": datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC), "accepted": False,
        }  # fmt: skip

    def _offsets(self) -> str:
        return json.dumps({topic: {str(partition): end} for (topic, partition), end in self._ends.items()})

    def _write(self, name: str, text: str) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    # -- what is audited ---------------------------------------------------------------------------------------------

    def audit(self, **options: Any) -> Audit:
        """An audit that is recorded, as those of the DAG are."""
        found = audit(self.settings, self.contract, f"run-{next(self._runs)}", **options)
        audit_log.record(self.settings.lake_uri, found)
        assert audit_log.audits(self.settings.lake_uri, self.name)[-1] == found
        for one in found.partitions:
            offsets = one.to_offset - one.from_offset
            assert offsets == one.rows - one.doubled + sum(one.gaps.values()) + one.missing, one
        return found

    def main(self, found: Audit) -> PartitionAccount:
        """The account of the stream's own topic."""
        return next(partition for partition in found.partitions if partition.topic == self.name)

    def retry(self, found: Audit) -> PartitionAccount:
        return next(partition for partition in found.partitions if partition.topic == self.contract.retry_topic)


@pytest.fixture
def stream(stack: Settings, tmp_path: Path) -> Iterator[Stream]:
    name = fresh("audited_")
    folder = tmp_path / "contracts" / name
    folder.mkdir(parents=True)
    yaml = (PROJECT / "schemas" / "streams" / "weather" / "stream.yaml").read_text()
    (folder / "stream.yaml").write_text(
        yaml.replace("stream: weather", f"stream: {name}")
        .replace("partitions: 3", "partitions: 1")
        .replace("retention: 30d", "retention: 36500d")
    )
    (folder / "v1.avsc").write_text((PROJECT / "schemas" / "streams" / "weather" / "v1.avsc").read_text())
    contract = load(folder)
    admin = AdminClient(stack.kafka_client("admin"))
    provision_topics(admin, contract)
    yield Stream(stack, contract, tmp_path)
    for future in admin.delete_topics(list(contract.topics)).values():
        future.result()


def findings(*offsets: int, reason: Proof | Fault) -> set[Finding]:
    return {Finding(offset, offset, reason) for offset in offsets}


def test_transactions_leave_gaps_that_are_proved(stream: Stream) -> None:
    stream.send(20)
    stream.transaction(5, commit=True)
    aborted = stream.transaction(7, commit=False)
    stream.send(3)
    stream.transaction(2, commit=True)
    stream.ingest()
    stream.send(4)  # after the pinned end: for the next audit

    found = stream.audit()
    mine = stream.main(found)
    assert found.residual == 0
    assert (mine.rows, mine.gaps, mine.not_ingested) == (20 + 5 + 3 + 2, {"marker": 3, "aborted": 7}, 4)
    assert (mine.from_offset, mine.to_offset) == (0, 20 + 6 + 8 + 3 + 3)
    assert Finding(aborted[0], aborted[-1], "aborted") in mine.findings
    assert Finding(aborted[-1] + 1, aborted[-1] + 1, "marker") in mine.findings
    require_conserved(found)


def test_what_is_proved_is_not_counted_again(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    breaks = BronzeCoordinates.breaks

    def watched(self: BronzeCoordinates, ends: Any, after_batch: int) -> Any:
        read.append(after_batch)
        return breaks(self, ends, after_batch)

    monkeypatch.setattr(BronzeCoordinates, "breaks", watched)
    stream.transaction(5, commit=True)
    stream.ingest()
    first = stream.audit()
    stream.transaction(6, commit=True)
    stream.ingest()
    DeltaTable(stream.path).optimize.compact()
    second = stream.audit()
    assert read == [-1, first.through_batch]
    assert stream.main(second).gaps == {"marker": 2}
    assert stream.main(second).findings == (Finding(12, 12, "marker"),)
    assert (stream.main(second).from_offset, stream.main(second).rows, second.residual) == (0, 11, 0)


@pytest.mark.parametrize("audited_before", [False, True], ids=["never-audited", "audited-before"])
def test_rows_deleted_from_bronze_are_the_residual(stream: Stream, audited_before: bool) -> None:
    stream.send(30)
    stream.ingest()
    stream.transaction(5, commit=True)
    stream.ingest()
    if audited_before:
        assert stream.audit().residual == 0
    stream.delete(0, 7, 8, 9, 34)
    stream.send(3)
    stream.ingest()

    found = stream.audit()
    mine = stream.main(found)
    assert (found.residual, mine.missing, mine.doubled, mine.gaps) == (5, 5, 0, {"marker": 1})
    lost = {finding for finding in mine.findings if finding.reason == "missing"}
    assert lost == {Finding(0, 0, "missing"), Finding(7, 9, "missing"), Finding(34, 34, "missing")}
    with pytest.raises(NotConserved, match=rf"{stream.name}/0: 5 missing \(0, 7-9, 34\).*--repair"):
        require_conserved(found)


def test_a_commit_that_never_arrived_is_the_residual(stream: Stream) -> None:
    stream.send(10)
    stream.ingest()
    assert stream.audit().residual == 0
    lost = stream.send(10)
    stream.ingest(losing=lost)
    stream.send(10)
    stream.ingest()
    found = stream.audit()
    assert stream.main(found).findings == (Finding(lost[0], lost[-1], "missing"),)
    assert found.residual == 10


@pytest.mark.parametrize("audited_before", [False, True], ids=["never-audited", "audited-before"])
def test_doubled_rows_are_found_also_where_the_count_fits(stream: Stream, audited_before: bool) -> None:
    stream.send(20)
    stream.ingest()
    if audited_before:
        assert stream.audit().residual == 0
    stream.append(stream.rows(3, 4, 11))  # into their old batch
    found = stream.audit()
    mine = stream.main(found)
    assert (mine.rows, mine.doubled, mine.missing, found.residual) == (23, 3, 0, 3)
    assert mine.findings == (Finding(3, 4, "doubled"), Finding(11, 11, "doubled"))
    stream.delete(0, 1, 19)
    mine = stream.main(stream.audit())
    assert (mine.rows, mine.doubled, mine.missing, mine.residual) == (20, 3, 3, 6)
    assert set(mine.findings) == {
        Finding(0, 1, "missing"), Finding(3, 4, "doubled"), Finding(11, 11, "doubled"), Finding(19, 19, "missing"),
    }  # fmt: skip


def test_a_doubled_row_of_a_newer_batch_is_found(stream: Stream) -> None:
    stream.send(5)
    stream.ingest()
    assert stream.audit().residual == 0
    stream.send(5)
    stream.ingest()
    newer = generations.settled_batch(stream.contract, stream.settings)
    stream.append([row | {"batch": newer} for row in stream.rows(2)])
    assert stream.main(stream.audit()).findings == (Finding(2, 2, "doubled"),)


def test_a_file_of_bronze_that_is_gone_is_told(stream: Stream) -> None:
    stream.send(5)
    stream.ingest()
    [file] = DeltaTable(stream.path).file_uris()
    Path(file).unlink()
    with pytest.raises(BronzeUnreadable, match=f"bronze of {stream.name} .*{Path(file).name}"):
        stream.audit()


@pytest.mark.long  # the broker's cleaner starts each 15 seconds
def test_what_compaction_removed_is_explained(stream: Stream) -> None:
    compacting = {
        "cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.001",
        "max.compaction.lag.ms": "100",
    }  # fmt: skip
    resource = ConfigResource(
        ResourceType.TOPIC,
        stream.name,
        incremental_configs=[
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in compacting.items()
        ],
    )
    admin = AdminClient(stream.settings.kafka_client("admin"))
    for future in admin.incremental_alter_configs([resource]).values():
        future.result()
    stream.send(5, key=b"same")

    @retry(wait=wait_fixed(0.5), stop=stop_after_delay(90), retry=retry_if_result(lambda held: 0 in held))
    def compacted() -> dict[int, Message]:
        stream.send(1, key=octets(16))  # closes a segment: it is a second later
        return stream.records(stream.name)

    held = compacted()
    stream.ingest()
    mine = stream.main(stream.audit())
    assert (mine.residual, mine.rows) == (0, len(stream.records(stream.name)))
    assert mine.gaps == {"compacted": mine.to_offset - mine.rows}
    assert mine.gaps["compacted"] >= len({0, 1, 2, 3} - held.keys())


def test_proofs_outlive_the_records_and_a_loss_can_be_accepted(stream: Stream) -> None:
    stream.transaction(9, commit=True)
    stream.transaction(4, commit=False)
    stream.send(20)
    stream.ingest()
    assert stream.audit().residual == 0
    stream.delete(2, 30)
    admin = AdminClient(stream.settings.kafka_client("admin"))
    for future in admin.delete_records([TopicPartition(stream.name, 0, 25)]).values():
        future.result()

    found = stream.audit()
    mine = stream.main(found)
    assert mine.gaps == {"marker": 2, "aborted": 4}, "proved while Kafka had them"
    assert set(mine.findings) == findings(2, reason="expired") | findings(30, reason="missing")
    with pytest.raises(NotConserved, match=r"1 missing .* 1 expired .*accept"):
        require_conserved(found)

    mine = stream.main(stream.audit(accept=True))
    assert (mine.residual, mine.gaps["accepted"]) == (1, 1), "what Kafka still has can be repaired"
    assert set(mine.findings) == findings(2, reason="accepted") | findings(30, reason="missing")
    mine = stream.main(stream.audit())
    assert (mine.residual, mine.gaps["accepted"], set(mine.findings)) == (1, 1, findings(30, reason="missing"))


def made_anew(stream: Stream, topic: str) -> None:
    """Deletes the topic and makes it again under its name; the ids were noted as the driver does."""
    admin = AdminClient(stream.settings.kafka_client("admin"))
    admin.delete_topics([topic])[topic].result()

    @retry(wait=wait_fixed(0.1), stop=stop_after_delay(30))
    def again() -> None:
        provision_topics(admin, stream.contract)
        assert broker_offsets(stream.settings, [topic]) == {(topic, 0): 0}

    again()


def note_ids(stream: Stream) -> None:
    ids = TopicIds(stream.settings).of(stream.contract.ingest_topics)
    source_topics.note(stream.settings.lake_uri, stream.name, ids)


@pytest.mark.parametrize("noted", ["with bronze", "by the audit"])
@pytest.mark.parametrize("records", [0, 3, 8, 60])
def test_what_the_old_topic_owes_is_the_residual(stream: Stream, records: int, noted: str) -> None:
    """An audit saw five records that were not ingested when their topic was deleted. The new one may hold fewer, as
    many or more: nothing in it is taken for them, or for what bronze lacks."""
    if noted == "with bronze":
        note_ids(stream)
    stream.send(10)
    stream.ingest(losing=[4])
    stream.send(5)
    before = stream.main(stream.audit())
    assert (before.missing, before.not_ingested, before.made_anew) == (1, 5, False)
    made_anew(stream, stream.name)
    stream.send(records)
    for _ in range(2):  # the first one of them has the new topic in the log
        found = stream.audit()
        mine = stream.main(found)
        assert (found.made_anew, mine.missing, mine.not_ingested) == ([stream.name], 6, records)
        assert set(mine.findings) == {Finding(4, 4, "replaced"), Finding(10, 14, "replaced")}
        with pytest.raises(
            NotConserved, match=rf"{stream.name} was made anew .* 6 replaced \(4, 10-14\).*{records} off"
        ):
            require_conserved(found)
    accepted = stream.audit(accept=True)
    assert (accepted.residual, stream.main(accepted).gaps) == (0, {"accepted": 6})
    with pytest.raises(NotConserved, match="was made anew"):
        require_conserved(accepted)


def test_a_proof_of_the_old_topic_explains_nothing_of_the_new_one(stream: Stream) -> None:
    """Offsets that were marks of transactions are records now."""
    note_ids(stream)
    stream.transaction(2, commit=False)
    stream.ingest()
    assert stream.main(stream.audit()).gaps == {"marker": 1, "aborted": 2}
    made_anew(stream, stream.name)
    note_ids(stream)  # as a reset does that takes the new topic
    stream.send(3)
    found = stream.main(stream.audit())
    assert (found.missing, set(found.findings)) == (3, {Finding(0, 2, "missing")})


def test_repair_sends_exactly_what_is_missing_and_as_it_was(stream: Stream) -> None:
    retry = stream.contract.retry_topic
    sent = stream.send(10)
    letter = [("dl-id", f"{stream.name}/0/{sent[4]}".encode()), ("dl-attempt", b"2"), ("dl-reason", b"why")]
    [replayed] = stream.send(1, topic=retry, headers=letter)
    stream.transaction(3, commit=False)
    stream.ingest()
    before = {topic: stream.records(topic) for topic in (stream.name, retry)}
    stream.delete(1, 2, 6)
    stream.delete(replayed, topic=retry)
    found = stream.audit()
    assert (stream.main(found).missing, stream.retry(found).missing) == (3, 1)

    assert repaired(stream, found) == 4
    assert repaired(stream, found) == 0, "on the retry topic and not ingested yet"
    copies = list(stream.records(retry).values())[1:]
    originals = [before[stream.name][offset] for offset in (1, 2, 6)] + [before[retry][replayed]]
    assert len(copies) == 4
    assert [(m.key(), m.value(), m.timestamp()) for m in copies] == [
        (m.key(), m.value(), m.timestamp()) for m in originals
    ]
    for copy, offset in zip(copies, (1, 2, 6), strict=False):
        place = f"{stream.name}/0/{offset}".encode()
        assert copy.headers() == [("trace", b"\0\xff"), ("dl-id", place), ("dl-attempt", b"0")]
    assert copies[3].headers() == originals[3].headers()

    stream.ingest()
    found = stream.audit()
    assert found.residual == 0
    assert (stream.main(found).gaps["repaired"], stream.retry(found).gaps["repaired"]) == (3, 1)
    assert repaired(stream, found) == 0
    stream.send(1)
    stream.ingest()
    assert stream.audit().residual == 0


def test_missing_records_are_selected_by_their_offsets_or_by_kafkas_time(stream: Stream) -> None:
    sent = stream.send(12)
    stream.ingest()
    stream.delete(1, 2, 5, 6, 10)
    found = stream.audit()

    def chosen(*records: str) -> set[Finding]:
        return {f for one in selected(stream.settings, found, records).partitions for f in one.findings}

    def time(offset: int) -> str:
        return datetime.fromtimestamp((STAMP + offset * 1000) / 1000, UTC).isoformat()

    assert sent == list(range(12))
    assert chosen() == {Finding(1, 2, "missing"), Finding(5, 6, "missing"), Finding(10, 10, "missing")}
    assert chosen(f"{stream.name}/0:2-5") == {Finding(2, 2, "missing"), Finding(5, 5, "missing")}
    assert chosen(f"{time(6)}..{time(10)}") == {Finding(6, 6, "missing")}
    assert chosen(f"{time(6)}..{time(100)}", f"{stream.name}/0:10-11") == {
        Finding(6, 6, "missing"), Finding(10, 10, "missing"),
    }  # fmt: skip
    with pytest.raises(WrongSelection, match="topic/partition:first-last"):
        chosen("yesterday")
    assert repair_selected(stream.settings, stream.name, [f"{stream.name}/0:0-5"], dry_run=True) == (3, 0)
    assert len(stream.records(stream.contract.retry_topic)) == 0


def repaired(stream: Stream, found: Audit) -> int:
    missing = {
        one.topic_partition: [Range(first, last) for first, last, reason in one.findings if reason == "missing"]
        for one in found.partitions
    }
    ingested = {one.topic_partition: one.to_offset for one in found.partitions}
    return repair(stream.contract, stream.settings, missing, ingested)


def test_the_command_reports_and_fails_with_a_residual(stream: Stream) -> None:
    stream.send(12)
    stream.ingest()

    def millrace(*arguments: str) -> tuple[int, dict[str, Any], str]:
        environment = os.environ | {
            "MILLRACE_LAKE": stream.settings.lake, "MILLRACE_CHECKPOINTS": stream.settings.checkpoints,
            "MILLRACE_CONTRACTS": str(stream.settings.contracts),
        }  # fmt: skip
        command = [str(Path(sys.executable).with_name("millrace")), "audit", *arguments, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr

    code, document, _ = millrace()
    assert (code, document["residual"]) == (0, 0)
    stream.delete(5, 6)
    code, document, error = millrace(stream.name)
    assert (code, document["residual"]) == (1, 2)
    [main] = [one for one in document["streams"][stream.name]["partitions"] if one["topic"] == stream.name]
    assert (main["from_offset"], main["to_offset"], main["rows"], main["missing"]) == (0, 12, 10, 2)
    assert main["findings"] == [{"first": 5, "last": 6, "reason": "missing"}]
    assert "2 of 12 offsets are not exactly one row of bronze" in error
    assert audit_log.audits(stream.settings.lake_uri, stream.name) == [], "the DAG alone writes the log"


def test_the_task_records_its_audit_and_fails_with_a_residual(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.settings.settings", lambda: stream.settings)
    monkeypatch.syspath_prepend(str(PROJECT / "dags"))
    task = importlib.import_module("reconcile").dag.get_task("audit").python_callable
    pushed: dict[str, Any] = {}
    told = SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))

    def run(run_id: str, **conf: bool) -> dict[str, Any]:
        result: dict[str, Any] = task(run_id=run_id, dag_run=SimpleNamespace(conf=conf), ti=told)
        return result

    assert run("before-the-first-batch") == {}
    stream.send(8)
    stream.transaction(2, commit=True)
    stream.ingest()
    assert run("clean") == {stream.name: {"offsets": 11, "gaps": {"marker": 1}, "residual": 0}}
    stream.delete(3)
    with pytest.raises(AirflowFailException, match=f"{stream.name}: 1 of 11 offsets"):
        run("lost")
    assert pushed == {"return_value": {stream.name: {"offsets": 11, "gaps": {"marker": 1}, "residual": 1}}}
    assert [audit.run_id for audit in audit_log.audits(stream.settings.lake_uri, stream.name)] == ["clean", "lost"]
    with connect(stream.settings, [stream.contract]) as served:
        rows = served.execute(
            "select run_id, rows, gaps['marker'], missing, residual, findings from audits where topic = ? order by 1",
            [stream.name],
        ).fetchall()
    marker, lost = ({"first": o, "last": o, "reason": why} for o, why in ((10, "marker"), (3, "missing")))
    assert rows == [("clean", 10, 1, 0, 0, [marker]), ("lost", 9, 1, 1, 1, [lost])]
