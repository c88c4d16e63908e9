"""Producing to a real broker and registry: every record arrives, decodes, and is accounted for."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from infra.operations.provisioning import provision_subject
from infra.settings import PROJECT, Settings
from producers.codec import Codec, RegistryError, RegistryUnavailable, registry, schema_exists, schema_id
from producers.inject import Faults
from producers.produce import BrokerUnavailable, ProduceError, TopicMissing, produce
from producers.sources import Record, source
from schemas.contract.catalog import catalog
from schemas.contract.model import Contract
from schemas.contract.verdict import Judge
from tests.support.chance import fresh


@pytest.fixture
def contract(stack: Settings) -> Iterator[Contract]:
    """The flights contract under a name of its own, with its main topic and its schemas."""
    mine = catalog(stack.contracts)["flights"].model_copy(update={"stream": fresh("produced_")})
    admin = AdminClient(stack.kafka_client("admin"))
    for future in admin.create_topics([NewTopic(mine.stream, 3, 1)]).values():
        future.result()
    provision_subject(registry(stack), mine)
    yield mine
    for future in admin.delete_topics([mine.stream]).values():
        future.result()


def read(settings: Settings, topic: str) -> list[Message]:
    """Every record of `topic`, partition by partition."""
    consumer = Consumer(
        {
            **settings.kafka_client("admin"),
            "group.id": "reader",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    partitions = list(consumer.list_topics(topic, 10).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    found, left = [], set(partitions)
    while left:
        message = consumer.poll(20)
        assert message is not None, f"{topic} does not answer"
        if (error := message.error()) is None:
            found.append(message)
        elif error.code() == KafkaError._PARTITION_EOF:
            left.discard(message.partition())
        else:
            raise KafkaException(error)
    consumer.close()
    return found


def test_every_record_arrives_and_only_the_faults_wanted(stack: Settings, contract: Contract) -> None:
    events = source("flights").first(5000)
    faults = Faults(duplicates=0.02, late=0.02, malformed=0.02, delay=timedelta(hours=3), seed=5)
    seen = []
    report = produce(contract, events, settings=stack, faults=faults, on_progress=lambda r: seen.append(r.sent))
    messages = read(stack, contract.stream)
    assert report.failed == 0
    assert report.sent == report.acknowledged == len(messages) == sum(report.by_kind.values())
    assert report.by_kind["event"] + report.by_kind["late"] == len(events)
    assert report.bytes == sum(len(m.key() or b"") + len(m.value() or b"") for m in messages)
    assert seen == sorted(seen)
    assert seen[-1] == report.sent

    judge = Judge(contract, {schema_id(contract, registry(stack)): contract.schema_now})
    verdicts = [judge.verdict(m.value()) for m in messages]
    accepted = [v.record for v in verdicts if v.record is not None and v.error_class is None]
    identities = {tuple(str(record[name]) for name in contract.event_id) for record in accepted}
    assert len(accepted) == len(events) + report.by_kind["duplicate"]
    assert len(identities) == len(events)
    rejected = sum(report.by_kind[kind] for kind in ("bad_magic", "truncated", "unknown_schema", "rule_violation"))
    assert len(messages) - len(accepted) == rejected > 0
    by_key: dict[str | bytes | None, int | None] = {}
    for message in messages:
        assert by_key.setdefault(message.key(), message.partition()) == message.partition()
    assert abs(messages[-1].timestamp()[1] / 1000 - datetime.now(UTC).timestamp()) < 300, "Kafka's time is of sending"


def test_order_within_a_key_is_event_time(stack: Settings, contract: Contract) -> None:
    produce(contract, source("flights").first(3000), settings=stack)
    judge = Judge(contract, {schema_id(contract, registry(stack)): contract.schema_now})
    last: dict[bytes | None, datetime] = {}
    for message in read(stack, contract.stream):
        record = judge.verdict(message.value()).record
        assert record is not None
        assert last.get(message.key(), record["event_time"]) <= record["event_time"]
        last[message.key()] = record["event_time"]


def test_failed_deliveries_are_counted_and_raise(stack: Settings, contract: Contract) -> None:
    admin = AdminClient(stack.kafka_client("admin"))
    limit = ConfigEntry("max.message.bytes", "300", incremental_operation=AlterConfigOpType.SET)
    change = ConfigResource(ResourceType.TOPIC, contract.stream, incremental_configs=[limit])
    for future in admin.incremental_alter_configs([change]).values():
        future.result()
    with pytest.raises(ProduceError, match=r"of 100 records did not reach topic .*first: event:") as caught:
        # one record a batch, as a batch that is too large is refused whole
        produce(contract, source("flights").first(100), settings=stack, options={"batch.num.messages": 5})
    report = caught.value.report
    assert report.sent == 100
    assert report.failed > 0
    assert report.acknowledged == len(read(stack, contract.stream)) == 100 - report.failed


def test_ctrl_c_flushes_and_reports(stack: Settings, contract: Contract) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it

    def interrupted() -> Iterator[object]:
        for number, event in enumerate(source("flights").first(2000)):
            if number == 1500:
                signal.raise_signal(signal.SIGINT)
            yield event

    try:
        report = produce(contract, interrupted(), settings=stack)  # type: ignore[arg-type]
    finally:
        signal.signal(signal.SIGINT, before)
    assert report.interrupted
    assert report.acknowledged == report.sent == 1500 == len(read(stack, contract.stream))


def test_a_slow_replay_keeps_the_pace_of_event_time(stack: Settings, contract: Contract) -> None:
    now = 0.0
    slept = []

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    events = source("flights").between(end=datetime(2013, 1, 1, 12, tzinfo=UTC))
    report = produce(contract, events, settings=stack, speed=60, clock=lambda: now, sleep=sleep)
    assert report.acknowledged == len(events)
    times = events.table.column("event_time").to_pylist()
    assert sum(slept) == pytest.approx((times[-1] - times[0]).total_seconds() / 60)


def test_what_is_missing_is_named(stack: Settings, contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producers.produce.LOOK_UP_SECONDS", 2.0)
    nowhere = contract.model_copy(update={"stream": "there_is_no_such_topic"})
    with pytest.raises(TopicMissing, match=r"there_is_no_such_topic.*provision"):
        produce(nowhere, [], settings=stack)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(BrokerUnavailable, match=address):
            produce(contract, [], settings=stack.model_copy(update={"kafka_bootstrap": address}))
        with pytest.raises(RegistryUnavailable, match="does not answer"):
            produce(contract, [], settings=stack.model_copy(update={"registry_url": f"http://{address}"}))


def test_a_producer_writes_in_the_registered_schema_and_registers_none(stack: Settings, contract: Contract) -> None:
    client = registry(stack)
    number = schema_id(contract, client)
    assert number == client.get_latest_version(contract.subject).schema_id
    exists = schema_exists(contract, registry(stack))
    assert exists(number)
    assert not exists(2_000_000_000)
    fields = contract.schema_now["fields"]
    newer = {**contract.schema_now, "fields": [*fields, {"name": "gate", "type": ["null", "string"], "default": None}]}
    versions = client.get_versions(contract.subject)
    for unknown in (
        contract.model_copy(update={"versions": (*contract.versions, newer)}),
        contract.model_copy(update={"stream": f"{contract.stream}_other"}),
    ):
        with pytest.raises(RegistryError, match=f"of {unknown.stream} is not registered.*`millrace provision`"):
            schema_id(unknown, client)
    assert client.get_versions(contract.subject) == versions


def test_the_same_seed_sends_the_same(stack: Settings, contract: Contract) -> None:
    faults = Faults(duplicates=0.1, late=0.1, malformed=0.1, seed=1)
    events = source("flights").first(300)
    first = produce(contract, events, settings=stack, faults=faults)
    second = produce(contract, events, settings=stack, faults=faults)
    assert first.by_kind == second.by_kind
    assert first.by_kind != produce(contract, events, settings=stack, faults=replace(faults, seed=2)).by_kind


DIES = """
import os, signal, sys, time
from confluent_kafka import Consumer, TopicPartition
from infra.settings import settings
from producers.produce import produce
from producers.sources import Record, source
from schemas.contract.catalog import catalog

config, (topic, id_) = settings(), sys.argv[1:]
contract = catalog(config.contracts)["flights"].model_copy(update={"stream": topic})
reader = Consumer({**config.kafka_client("admin"), "group.id": "watcher", "isolation.level": "read_uncommitted"})

def arrived():
    return sum(reader.get_watermark_offsets(TopicPartition(topic, number), 10)[1] for number in range(3))

def records():
    for number, record in enumerate(source("flights").first(9000)):
        if number == 5500:
            while arrived() < 5400:
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)
        yield record

import producers.produce
producers.produce.IN_TRANSACTION, producers.produce.TRANSACTION_SECONDS = 2000, 600
produce(contract, records(), settings=config, transactional=id_)
"""


def test_a_killed_transactional_producer_shows_no_half_and_goes_on_where_it_was(
    stack: Settings, contract: Contract
) -> None:
    events, id_ = source("flights").first(9000), f"{contract.stream}-once"
    killed = subprocess.run([sys.executable, "-c", DIES, contract.stream, id_], cwd=PROJECT, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL

    report = produce(contract, events, settings=stack, transactional=id_)
    assert (report.committed_before, report.acknowledged) == (4000, 5000)
    messages = read(stack, contract.stream)
    judge = Judge(contract, {schema_id(contract, registry(stack)): contract.schema_now})
    found = Counter(str(judge.verdict(m.value()).record) for m in messages)
    idempotent = Codec(contract, schema_id(contract, registry(stack)))
    assert found == Counter(str(judge.verdict(message.value).record) for message in idempotent.messages(events))

    again = produce(contract, events, settings=stack, transactional=id_)
    assert (again.committed_before, again.sent) == (9000, 0)
    assert len(read(stack, contract.stream)) == 9000


def test_an_interrupted_transactional_producer_takes_back_what_it_had_not_committed(
    stack: Settings, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producers.produce.IN_TRANSACTION", 400)
    monkeypatch.setattr("producers.produce.TRANSACTION_SECONDS", 600)

    def interrupted() -> Iterator[Record]:
        for number, record in enumerate(source("flights").first(2000)):
            if number == 1000:
                raise KeyboardInterrupt
            yield record

    id_ = f"{contract.stream}-once"
    report = produce(contract, interrupted(), settings=stack, transactional=id_)
    assert (report.interrupted, report.acknowledged, report.failed) == (True, 800, 0)
    assert len(read(stack, contract.stream)) == 800
    assert produce(contract, source("flights").first(2000), settings=stack, transactional=id_).acknowledged == 1200
    assert len(read(stack, contract.stream)) == 2000
