"""What a topic accepts goes every way of the platform, whatever its size and its compression: through the ingest, as a
dead letter, by replay, decision and repair, and from `millrace produce`. A plain consumer says what a topic holds.

The tests of this module tell one story in file order.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.schema_registry import Schema
from deltalake import DeltaTable
from pyspark.sql import SparkSession
from typer.testing import CliRunner

from infra.cli import app
from infra.settings import PROJECT, Settings, settings
from producers.codec import registry
from producers.produce import ProduceError, produce
from producers.repair import RepairError, repair
from schemas import sizes
from schemas.contract.catalog import contract_in
from schemas.contract.model import Contract
from schemas.dead_letter import Header
from spark.conservation.audit import audit
from spark.lake import names
from tests.support.clicks import NOON, V1, V2, Pipeline, click, made, schema_id
from tests.support.kafka_rows import wire
from tests.support.topics import header_list, header_values, read

pytestmark = pytest.mark.timeout(900)

LIMIT = 1_048_588
"""What the stream's topic takes: Kafka's default."""
STREAM = """
stream: sized_clicks
description: Clicks on pages.
owner: web
topic: {partitions: 2, replication: 1, retention: 36500d}
key: [page]
event_id: [number]
event_time: at
rules:
  - {name: known, predicate: page <> 'nowhere', reason: no such page}
"""
HEADERS: list[Header] = [
    ("trace", b"\x00\xff"), ("dl-id", b"mine"), ("dl-attempt", b"many"), ("dl-bronze", b"x/0/1"), ("dl-x", None),
    ("dl-id", b"mine, too"),
]  # fmt: skip
"""A producer's headers, some with names as the platform's have them."""


@dataclass(frozen=True)
class Sent:
    """A record that the topic took, or did not."""

    compression: str
    key: bytes
    value: bytes
    headers: list[Header]


def zeros(size: int) -> bytes:
    return b"\x2a" + bytes(size - 1)


def noise(size: int) -> bytes:
    return b"\x2a" + random.Random(size).randbytes(size - 1)


def records() -> Iterator[Sent]:
    for compression in ("none", "zstd", "lz4"):
        for what, make in (("zeros", zeros), ("noise", noise)):
            for size in (1, 999_000, 1_020_001, LIMIT - 200, LIMIT - 80, LIMIT - 1, LIMIT, LIMIT + 1, 2 * LIMIT):
                yield Sent(compression, f"{compression} {what} {size}".encode(), make(size), [])
    yield Sent("zstd", b"case 2", zeros(11_000_000), HEADERS)
    yield Sent("zstd", b"k" * (2 * LIMIT), b"\x2a", [])  # its key alone is too large
    yield Sent("zstd", b"headers", b"\x2a", [*HEADERS, ("large", bytes(2 * LIMIT)), ("null", None)])
    yield Sent("zstd", b"no value but headers", b"", [(f"h{n}", b"") for n in range(40_000)])


def delivered(settings: Settings, topic: str, all_: list[Sent]) -> list[Sent]:
    """Those that the topic took."""
    took: list[Sent] = []
    for compression in ("none", "zstd", "lz4"):
        bounds = {"compression.type": compression, "message.max.bytes": 50_000_000, "linger.ms": 0}
        producer = Producer(settings.kafka_client("producer") | bounds)
        for sent in (one for one in all_ if one.compression == compression):

            def answered(error: KafkaError | None, _: Message, sent: Sent = sent) -> None:
                assert error is None or error.code() == KafkaError.MSG_SIZE_TOO_LARGE
                took.extend([] if error else [sent])

            stamp = int(NOON.timestamp() * 1000)
            producer.produce(
                topic, sent.value, sent.key, headers=[*sent.headers], timestamp=stamp, on_delivery=answered
            )
            assert producer.flush(30) == 0  # each in a batch of its own
    return took


@pytest.fixture(scope="module")
def mine(stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    contracts = tmp_path_factory.mktemp("contracts")
    folder = contracts / "sized_clicks"
    folder.mkdir()
    (folder / "stream.yaml").write_text(STREAM)
    (folder / "v1.avsc").write_text(json.dumps(V1))
    before = os.environ["MILLRACE_CONTRACTS"]
    os.environ["MILLRACE_CONTRACTS"] = str(contracts)
    settings.cache_clear()
    yield settings()
    os.environ["MILLRACE_CONTRACTS"] = before
    settings.cache_clear()


@pytest.fixture(scope="module")
def contract(mine: Settings) -> Contract:
    return contract_in(mine.contracts, "sized_clicks")


@pytest.fixture(scope="module")
def pipeline(mine: Settings, streaming: SparkSession, contract: Contract) -> Pipeline:
    return made(mine, streaming, contract)


@pytest.fixture(scope="module")
def took(pipeline: Pipeline, mine: Settings, contract: Contract) -> list[Sent]:
    """What the topic took, and the ingest has read. The last two are of a schema that is not registered yet."""
    known = schema_id(mine, contract, 1)
    lacking = [
        Sent("zstd", b"v2", wire(known + 1, V2, click(number, page=page, referrer="mail")), HEADERS)
        for number, page in ((7, "p" * 3_000_000), (8, "home"))
    ]
    found = delivered(mine, contract.stream, [*records(), *lacking])
    pipeline.run()
    return found


def replayed(run_id: str) -> dict[str, int]:
    """What the task of the DAG does."""
    if (dags := str(PROJECT / "dags")) not in sys.path:
        sys.path.append(dags)
    found: dict[str, int] = importlib.import_module("replay_dead_letters").replayed("sized_clicks", run_id)
    return found


def millrace(*arguments: str) -> Any:
    done = CliRunner().invoke(app, ["dead-letters", *arguments, "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout.splitlines()[-1])


def content(message: Message | Sent, headers: list[Header]) -> tuple[Any, ...]:
    key, value = (
        (message.key, message.value) if isinstance(message, Sent) else (message.key(), message.value())
    )  # fmt: skip
    return key, value, tuple(headers)


def producers_part(message: Message) -> list[Header]:
    """The headers before the last `dl-id`."""
    headers = header_list(message)
    return headers[: max(at for at, (name, _) in enumerate(headers) if name == "dl-id")]


def assert_conserved(pipeline: Pipeline) -> None:
    topics = pipeline.contract.ingest_topics
    on_broker = Counter((m.topic(), m.partition(), m.offset()) for topic in topics for m in read(pipeline.stack, topic))
    assert Counter((row["topic"], row["partition"], row["offset"]) for row in pipeline.bronze()) == on_broker


def test_what_the_topic_takes_is_one_row_and_one_letter(
    pipeline: Pipeline, mine: Settings, contract: Contract, took: list[Sent]
) -> None:
    by = Counter((sent.compression, len(sent.value) > LIMIT) for sent in took)
    assert by[("none", True)] == 0 < by[("none", False)], "the broker bounds what travels"
    assert min(by[("zstd", True)], by[("lz4", True)]) >= 2, "which is smaller than what is in it"
    assert_conserved(pipeline)
    originals = {f"{m.topic()}/{m.partition()}/{m.offset()}": m for m in read(mine, contract.stream)}
    letters = read(mine, contract.dlq_topic)
    assert sorted(header_values(letter)["dl-id"].decode() for letter in letters) == sorted(originals)
    pointers = 0
    for letter in letters:
        original = originals[header_values(letter)["dl-id"].decode()]
        size = sizes.of(header_list(original), original.key(), original.value())
        if size > LIMIT:
            pointers += 1
            assert content(letter, producers_part(letter)) == (None, None, ())
            assert header_values(letter)["dl-bronze"] == header_values(letter)["dl-id"]
        else:
            assert content(letter, producers_part(letter)) == content(original, header_list(original))
        assert len(letter) < LIMIT
        assert letter.timestamp() == original.timestamp()
    assert pointers >= 9


def test_a_letter_of_any_size_comes_back_byte_for_byte_and_holds_up_no_other(
    pipeline: Pipeline, mine: Settings, contract: Contract, took: list[Sent]
) -> None:
    known = schema_id(mine, contract, 1)
    assert registry(mine).register_schema(contract.subject, Schema(json.dumps(V2), "AVRO")) == known + 1
    counts = replayed("first")
    assert (counts["retried"], counts["parked"], counts["read"]) == (2, len(took) - 2, len(took))
    approved = millrace("approve", "--stream", "sized_clicks", "--class", "malformed", "--because", "b", "--yes")
    assert approved["letters"] == {"sized_clicks": len(took) - 2}
    counts = replayed("second")
    assert (counts["retried"], counts["parked"], counts["waiting"]) == (len(took) - 2, 0, 0)
    back = read(mine, contract.retry_topic)
    assert Counter(content(m, producers_part(m)) for m in back) == Counter(content(s, s.headers) for s in took)
    assert all("dl-bronze" not in dict(header_list(m)[len(producers_part(m)) :]) for m in back)

    pipeline.run()
    assert_conserved(pipeline)
    landed = [row for row in pipeline.bronze() if row["accepted"]]
    assert sorted((row["number"], len(row["page"]), row["attempt"]) for row in landed) == [(7, 3_000_000, 1), (8, 4, 1)]
    counts = replayed("third")
    assert (counts["landed"], counts["returned"], counts["lost"]) == (2, len(took) - 2, 0)
    found = audit(mine, contract, "sizes")
    assert (found.residual, found.rows) == (0, 2 * len(took))


def test_a_pointer_is_shown_and_edited_like_any_other(
    pipeline: Pipeline, mine: Settings, contract: Contract, took: list[Sent]
) -> None:
    [large] = [row for row in millrace("list", "--limit", "1000")["letters"] if row["key"] == b"case 2".hex()]
    shown = millrace("show", large["id"])
    assert bytes.fromhex(shown["value"]) == zeros(11_000_000)
    assert len(CliRunner().invoke(app, ["dead-letters", "show", large["id"]]).stdout) < 100_000
    record = {"at": NOON.isoformat(), "page": "e" * 2_000_000, "number": 99}
    edited = CliRunner().invoke(
        app, ["dead-letters", "edit", large["id"], "--because", "b", "--file", "-"], input=json.dumps(record)
    )
    assert edited.exit_code == 0, edited.exception
    assert replayed("edited")["retried"] == 1
    [back] = [m for m in read(mine, contract.retry_topic) if len(m.key() or b"") == 2_000_000]
    assert producers_part(back) == HEADERS
    pipeline.run()
    assert [len(row["page"]) for row in pipeline.bronze() if row["number"] == 99 and row["accepted"]] == [2_000_000]


def test_a_letter_whose_bytes_are_no_more_as_they_were_is_parked_and_says_so(
    pipeline: Pipeline, mine: Settings, contract: Contract, took: list[Sent]
) -> None:
    parked = [r for r in millrace("list", "--limit", "1000")["letters"] if r["status"] == "parked"]
    large = next(row for row in parked if len(row["value"] or "") >= 4 * LIMIT)
    small = next(row for row in parked if row["key"] == b"none zeros 1".hex())
    table = DeltaTable(names.local_path(names.bronze(mine.lake_uri, contract.stream)))
    millrace("approve", large["id"], small["id"], "--because", "b")
    version = table.version()
    table.update(predicate=f"original = '{large['id']}'", updates={"value": "X'6f74'"})
    counts = replayed("gone")
    assert (counts["retried"], counts["parked"]) == (1, 1)
    table.restore(version)
    again = millrace("show", large["id"])
    assert "bronze has other bytes there" in again["parked_because"]


def test_lost_records_of_any_size_are_sent_again(
    pipeline: Pipeline, mine: Settings, contract: Contract, took: list[Sent], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.run()
    [of_large] = [m.partition() for m in read(mine, contract.stream) if m.key() == b"case 2"]
    DeltaTable(names.local_path(names.bronze(mine.lake_uri, contract.stream))).delete(
        f"topic = '{contract.stream}' and partition = {of_large}"
    )
    found = audit(mine, contract, "lost")
    missing = {p.topic_partition: [f.range for f in p.findings if f.reason == "missing"] for p in found.partitions}
    lost = [m for m in read(mine, contract.stream) if m.partition() == of_large]
    before = {(m.partition(), m.offset()) for m in read(mine, contract.retry_topic)}
    ends = {p.topic_partition: p.to_offset for p in found.partitions}
    bounds = sizes.producer(sizes.of_letters(contract)) | {"compression.type": "none"}
    with monkeypatch.context() as patched:
        patched.setattr(sizes, "producer", lambda limit: bounds)
        with pytest.raises(RepairError, match=r"records are larger than sized_clicks.retry takes.* were sent again"):
            repair(contract, mine, missing, ends)
    first = len(read(mine, contract.retry_topic)) - len(before)
    assert 0 < first < len(lost), "those that fit were sent"
    assert repair(contract, mine, missing, ends) == len(lost) - first
    assert len(lost) == found.residual > 10
    again = [m for m in read(mine, contract.retry_topic) if (m.partition(), m.offset()) not in before]
    assert Counter(content(m, producers_part(m)) for m in again) == Counter(
        content(m, header_list(m)) for m in lost
    )  # fmt: skip
    pipeline.run()
    healed = audit(mine, contract, "healed")
    assert (healed.residual, sum(p.gaps.get("repaired", 0) for p in healed.partitions)) == (0, len(lost))


def test_a_letter_that_the_retry_topic_does_not_take_is_parked_alone(
    pipeline: Pipeline, mine: Settings, contract: Contract, took: list[Sent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the producer compressed better than we do: here our producers do not compress at all."""
    replayed("whatever is not parked yet")
    parked = [r for r in millrace("list", "--limit", "1000")["letters"] if r["status"] == "parked"]
    large = [row["id"] for row in parked if len(row["value"] or "") == 4 * LIMIT]  # two characters a byte
    small = [row["id"] for row in parked if row["key"] == b"lz4 noise 1".hex()]
    assert (len(large), len(small)) == (2, 1)
    millrace("approve", *large, *small, "--because", "b")
    bounds = sizes.producer(sizes.of_letters(contract)) | {"compression.type": "none"}
    monkeypatch.setattr(sizes, "producer", lambda limit: bounds)
    counts = replayed("refused")
    assert (counts["retried"], counts["parked"]) == (1, 2), counts
    monkeypatch.undo()
    for letter in large:
        assert "larger than the retry topic takes" in millrace("show", letter)["parked_because"]
    millrace("approve", large[0], "--because", "c")
    assert replayed("taken")["retried"] == 1


@pytest.mark.parametrize("size", [10, LIMIT - 200, LIMIT, 8 * LIMIT])
def test_produce_sends_what_the_topic_takes(pipeline: Pipeline, mine: Settings, contract: Contract, size: int) -> None:
    pages = ["s" * size, "t" * size]
    report = produce(contract, [click(n, page=page) for n, page in enumerate(pages)], settings=mine)
    assert report.acknowledged == 2
    newest = [m for m in read(mine, contract.stream) if m.key() in [page.encode() for page in pages]]
    assert len(newest) == 2


def test_produce_names_the_topic_that_refuses_and_sends_the_others(
    pipeline: Pipeline, mine: Settings, contract: Contract
) -> None:
    noisy = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=3 * LIMIT))
    records = [click(500, page="before"), click(501, page=noisy), click(502, page="after")]
    with pytest.raises(ProduceError, match="1 of 3 records did not reach topic sized_clicks") as caught:
        produce(contract, records, settings=mine)
    assert caught.value.report.acknowledged == 2


def test_a_transactional_produce_that_a_topic_refused_goes_on_under_its_id(
    pipeline: Pipeline, mine: Settings, contract: Contract
) -> None:
    noisy = "".join(random.Random(2).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=3 * LIMIT))
    records = [click(700, page="tx before"), click(701, page=noisy), click(702, page="tx after")]
    with pytest.raises(ProduceError, match="too large"):
        produce(contract, records, settings=mine, transactional="sizes-produce")

    admin = AdminClient(mine.kafka_client("admin"))

    def on_topic() -> list[bytes]:
        keys = {b"tx before", b"tx after", noisy.encode()}
        return sorted(key for m in read(mine, contract.stream) if (key := m.key() or b"") in keys)

    def bounded(limit: int) -> None:
        entry = ConfigEntry("max.message.bytes", str(limit), incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ConfigResource.Type.TOPIC, contract.stream, incremental_configs=[entry])
        admin.incremental_alter_configs([resource])[resource].result()

    assert on_topic() == [], "all or nothing"
    bounded(8 * LIMIT)
    try:
        report = produce(contract, records, settings=mine, transactional="sizes-produce")
    finally:
        bounded(LIMIT)
    assert (report.committed_before, report.acknowledged) == (0, 3)
    assert on_topic() == sorted([b"tx before", b"tx after", noisy.encode()])


BOMB = 400_000_000
"""Bytes of a record that does not fit into the memory of the driver, whose heap has 1,200 MB, several times."""


@pytest.mark.long
def test_what_does_not_fit_into_memory_is_quarantined_by_its_offset_and_stops_nobody(
    pipeline: Pipeline, mine: Settings, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.run()
    known = schema_id(mine, contract, 1)
    bounds = {"compression.type": "zstd", "message.max.bytes": 2 * BOMB, "batch.size": 2 * BOMB, "linger.ms": 5000}
    producer = Producer(mine.kafka_client("producer") | bounds | {"queue.buffering.max.kbytes": 2_000_000})
    good = [wire(known, V1, click(number)) for number in (600, 601, 602)]
    sent: dict[bytes, int] = {}
    together = [(b"before", b"\x2a"), (b"bomb 1", bytes(BOMB)), (b"after", b"\x2a")]
    alone = [(b"many %d" % number, zeros(11_000_000)) for number in range(60)]
    batches = [[(b"good 1", good[0])], together, [(b"good 2", good[1])], *([one] for one in alone)]
    after = [[(b"bomb 2", bytes(BOMB))], [(b"bomb 3", bytes(BOMB))], [(b"good 3", good[2])]]
    transactional = Producer(mine.kafka_client("producer") | {"transactional.id": "sizes"})
    transactional.init_transactions(30)
    for batch in [*batches, [], *after]:
        if not batch:  # the mark of its end is a gap, right before a bomb
            transactional.begin_transaction()
            transactional.produce(contract.stream, b"\x2a", b"in a transaction", 1)
            transactional.commit_transaction(30)
        for key, value in batch:
            producer.produce(
                contract.stream, value, key, 1,
                on_delivery=lambda error, m: sent.update({m.key() or b"": -1 if error else m.offset() or 0}),
            )  # fmt: skip
        assert producer.flush(60) == 0
    assert len(sent) == 1 + 3 + 1 + 60 + 3
    assert min(sent.values()) >= 0
    pipeline.run()

    rows = {row["offset"]: row for row in pipeline.bronze() if (row["topic"], row["partition"]) == (contract.stream, 1)}
    verdicts = {key: rows[offset]["error_class"] for key, offset in sent.items()}
    # What was sent in one batch with a bomb is behind the same lock.
    large = {b"before", b"bomb 1", b"after", b"bomb 2", b"bomb 3"}
    assert {key for key, verdict in verdicts.items() if verdict == "oversized"} == large
    assert all(verdicts[key] == "malformed" and rows[sent[key]]["value"] == value for key, value in alone)
    assert [verdicts[b"good %d" % number] for number in (1, 2, 3)] == [None] * 3
    monkeypatch.setattr(sizes, "consumer", lambda: {"receive.message.max.bytes": 100_000_000})
    found = audit(mine, contract, "bombs")
    assert (found.residual, sum(p.gaps.get("marker", 0) for p in found.partitions if p.topic == contract.stream)) == (
        0,
        1,
    )
    monkeypatch.undo()

    about = [header_values(letter) for letter in read(mine, contract.dlq_topic)]
    quarantined = [its for its in about if its["dl-error-class"] == b"oversized"]
    assert {its["dl-id"].decode() for its in quarantined} == {f"sized_clicks/1/{sent[key]}" for key in large}
    assert not any("dl-bronze" in its for its in quarantined)
    assert replayed("bombs")["parked"] == 5 + 60 + 1
    place = f"sized_clicks/1/{sent[b'bomb 1']}"
    millrace("approve", place, "--because", "b")
    counts = replayed("approved bomb")
    assert (counts["retried"], counts["parked"]) == (0, 1)
    assert "its bytes are on Kafka alone" in millrace("show", place)["parked_because"]
