"""The ingest against real Kafka and a real registry: every offset once, every letter once, whatever crashes when."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import Any

import pytest
from deltalake import DeltaTable
from pybreaker import STATE_OPEN
from pyspark.sql import SparkSession
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from infra.local.supervisor import Supervisor
from infra.operations.provisioning import provision_subject
from infra.settings import Settings
from producers.codec import registry
from producers.repair import repair
from schemas.contract.model import Contract
from schemas.wire import header
from spark.conservation import audit_log
from spark.conservation.audit import audit
from spark.lake import batch_numbers, names
from spark.speed.checkpoint import generations
from spark.speed.writer_schemas import breaker
from tests.support.clicks import NOON, NOW, V1, V2, V3, Pipeline, click, clicks, made, power_out, read, schema_id, send
from tests.support.kafka_rows import wire
from tests.support.topics import coordinates, header_list, header_values


@pytest.fixture(scope="module")
def contract() -> Contract:
    return clicks(V1)


@pytest.fixture(scope="module")
def pipeline(stack: Settings, streaming: SparkSession, contract: Contract) -> Pipeline:
    return made(stack, streaming, contract)


def waits(headers: dict[str, bytes]) -> float:
    """Minutes from `NOW` until a letter is due."""
    return (datetime.fromisoformat(headers["dl-next-due-at"].decode()) - NOW) / timedelta(minutes=1)


def until(condition: Callable[[], Any]) -> None:
    """Returns when `condition` is true; fails after two minutes."""
    Retrying(retry=retry_if_result(lambda found: not found), wait=wait_fixed(0.1), stop=stop_after_delay(120))(
        condition
    )


def assert_conserved(pipeline: Pipeline, lost: Collection[tuple[str, int, int]] = ()) -> None:
    on_broker = Counter(coordinates(m) for m in read(pipeline.stack, *pipeline.contract.ingest_topics))
    in_bronze = Counter((row["topic"], row["partition"], row["offset"]) for row in pipeline.bronze())
    assert in_bronze == on_broker - Counter(lost)


def test_crashes_before_each_commit_neither_lose_nor_double_anything(pipeline: Pipeline) -> None:
    stack, contract = pipeline.stack, pipeline.contract
    known = schema_id(stack, contract, 1)
    good = [wire(known, V1, click(number)) for number in range(300)]
    bad = [b"nonsense", None, good[0][:7], b"\0\x7f\0\0\0" + good[0][5:], wire(known, V1, click(9, page="nowhere"))]
    send(stack, contract.stream, good + good[:30])
    send(stack, contract.stream, bad, headers=[("trace", b"\x01"), ("trace", b"\x02"), ("dl-attempt", b"forged")])
    for commit in (1, 2, 3):
        pipeline.crash(may_commit=power_out(at=commit))
    pipeline.crash(afterwards=power_out(at=1))
    pipeline.run()

    assert_conserved(pipeline)
    rows = pipeline.bronze()
    assert Counter(row["error_class"] for row in rows) == {None: 330, "malformed": 3, "unknown_schema": 1, "rule": 1}
    assert pipeline.counted() == 300
    assert generations.settled_batch(contract, stack) == batch_numbers.batch_number(1, 0)

    letters = read(stack, contract.dlq_topic)
    assert Counter(letter.value() for letter in letters) == Counter(bad)
    places = {
        (message.value(), f"{message.topic()}/{message.partition()}/{message.offset()}")
        for message in read(stack, contract.stream)
    }
    for letter in letters:
        headers = header_values(letter)
        assert [pair for pair in header_list(letter) if pair[0] == "trace"] == [("trace", b"\x01"), ("trace", b"\x02")]
        assert (letter.value(), headers["dl-id"].decode()) in places
        assert headers["dl-attempt"] == b"0"
        assert headers["dl-first-failed-at"] == b"2024-06-01T09:30:00Z"
        number = bad.index(letter.value())
        assert (letter.key(), letter.timestamp()[1]) == (
            f"key {number}".encode(),
            int(NOON.timestamp() * 1000) + number,
        )
    unknown = next(header_values(letter) for letter in letters if letter.value() == bad[3])
    assert unknown["dl-error-class"] == b"unknown_schema"
    assert 0.9 < waits(unknown) <= 1  # minutes; up to a tenth is jitter
    assert unknown["dl-reason"] == b"schema id 2130706432 is not registered under ingest_clicks-value"


def test_a_replayed_record_speaks_for_its_original_and_fails_with_its_history(pipeline: Pipeline) -> None:
    stack, contract = pipeline.stack, pipeline.contract
    known = schema_id(stack, contract, 1)
    history = [("dl-id", b"ingest_clicks/1/5"), ("dl-attempt", b"2"), ("dl-first-failed-at", b"2024-05-02T00:00:00Z")]
    values = [wire(known, V1, click(1000)), b"\0\x7f\0\0\1" + wire(known, V1, click(1001))[5:]]
    send(stack, contract.retry_topic, values, headers=[*history, ("trace", b"\x03")])
    before = len(read(stack, contract.dlq_topic))
    pipeline.run()

    assert_conserved(pipeline)
    replayed = [row for row in pipeline.bronze() if row["topic"] == contract.retry_topic]
    assert [(row["original"], row["attempt"]) for row in replayed] == [("ingest_clicks/1/5", 2)] * 2
    assert Counter(row["accepted"] for row in replayed) == {True: 1, False: 1}
    letters = read(stack, contract.dlq_topic)
    assert len(letters) == before + 1
    [again] = [letter for letter in letters if ("trace", b"\x03") in header_list(letter)]
    assert dict(history).items() <= header_values(again).items()
    assert 0.9 * 4 < waits(header_values(again)) <= 4  # a minute, doubled twice


def test_a_version_registered_while_the_stream_runs_is_read_without_a_restart(pipeline: Pipeline) -> None:
    stack, spark, contract = pipeline.stack, pipeline.spark, pipeline.contract
    newer = clicks(V1, V2)
    running = Pipeline(stack, spark, contract)
    assert len(running.writers.current().schemas) == 1
    provision_subject(registry(stack), newer)
    old, new = schema_id(stack, newer, 1), schema_id(stack, newer, 2)
    values = [wire(old, V1, click(2000)), wire(new, V2, click(2001, referrer="mail"))]
    send(stack, newer.stream, values)
    running.run()  # still with the contract of v1: what v2 added is not read yet
    assert {row["number"] for row in pipeline.bronze() if row["accepted"]} >= {2000, 2001}
    grown = made(stack, spark, newer)
    send(stack, newer.stream, [wire(new, V2, click(2002, referrer="mail"))])
    grown.run()
    found = {
        row["number"]: (row["schema_id"], row["referrer"]) for row in grown.bronze() if row["number"] in (2000, 2002)
    }
    assert found == {2000: (old, None), 2002: (new, "mail")}
    assert_conserved(grown)


def test_while_the_registry_is_away_known_schemas_go_on_and_a_batch_of_another_one_waits(pipeline: Pipeline) -> None:
    stack, supervisor = pipeline.stack, Supervisor(pipeline.stack)
    running = Pipeline(stack, pipeline.spark, pipeline.contract)
    running.writers.current()
    newest = clicks(V1, V2, V3)
    provision_subject(registry(stack), newest)
    first, third = schema_id(stack, newest, 1), schema_id(stack, newest, 3)
    letters = len(read(stack, newest.dlq_topic))
    supervisor.stop("registry")
    until(lambda: supervisor.states()["registry"] == "STOPPED")
    batch = threading.Thread(target=running.run)
    try:
        send(stack, newest.stream, [wire(first, V1, click(2500))])
        running.run()
        assert 2500 in {row["number"] for row in running.bronze() if row["accepted"]}

        send(stack, newest.stream, [wire(third, newest.schema_now, click(2501, note=None))])
        batch.start()
        until(lambda: running.writers.waiting)
        until(lambda: breaker(stack.registry["url"]).current_state == STATE_OPEN)
        assert "is it up" in (running.writers.waiting or "")
        assert_conserved(
            running,
            lost={coordinates(m) for m in read(stack, newest.stream) if (m.value() or b"")[:5] == header(third)},
        )
    finally:
        supervisor.start("registry")
        if batch.is_alive():
            batch.join(120)
    assert {row["number"]: row["schema_id"] for row in running.bronze()}[2501] == third
    assert running.writers.waiting is None
    assert len(read(stack, newest.dlq_topic)) == letters
    assert_conserved(running)


def test_the_audit_proves_the_ingest_and_a_lost_commit_is_repaired(pipeline: Pipeline) -> None:
    stack, contract = pipeline.stack, pipeline.contract
    known = schema_id(stack, contract, 1)
    proved = audit(stack, contract, "first")
    assert proved.residual == 0
    assert proved.rows == len(pipeline.bronze())
    audit_log.record(stack.lake_uri, proved)

    send(stack, contract.stream, [wire(known, V1, click(number)) for number in range(3000, 3040)])
    pipeline.run()
    newest = max(row["batch"] for row in pipeline.bronze())
    lost = {(row["topic"], row["partition"], row["offset"]) for row in pipeline.bronze() if row["batch"] == newest}
    DeltaTable(names.local_path(names.bronze(stack.lake_uri, contract.stream))).delete(f"batch = {newest}")
    found = audit(stack, contract, "second")
    assert found.residual == len(lost) == 40
    assert {
        (one.topic, one.partition, offset)
        for one in found.partitions
        for first, last, reason in one.findings
        for offset in range(first, last + 1)
        if reason == "missing"
    } == lost

    missing = {
        one.topic_partition: [f.range for f in one.findings if f.reason == "missing"] for one in found.partitions
    }
    ends = {one.topic_partition: one.to_offset for one in found.partitions}
    assert repair(contract, stack, missing, ends) == 40
    pipeline.run()
    healed = audit(stack, contract, "third")
    assert (healed.residual, healed.gaps["repaired"]) == (0, 40)
    again = [row for row in pipeline.bronze() if row["number"] in range(3000, 3040)]
    assert Counter(row["original"] for row in again) == Counter(
        f"{topic}/{partition}/{offset}" for topic, partition, offset in lost
    )
    assert all(row["accepted"] and row["attempt"] == 0 for row in again)
    assert_conserved(pipeline, lost)
