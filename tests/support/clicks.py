"""A stream of clicks on a real broker and registry, ingested batch by batch in the Spark session of the test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from deltalake import DeltaTable
from pyspark.errors.exceptions.base import StreamingQueryException
from pyspark.sql import DataFrame, SparkSession

from infra.operations.provisioning import provision_subject, provision_topics
from infra.settings import Settings
from producers.codec import registry
from schemas.contract.model import Contract
from schemas.dead_letter import Header
from spark.lake import names, tables
from spark.speed import kafka_source, large_records
from spark.speed.checkpoint import generations
from spark.speed.dead_letters import Letters
from spark.speed.ingest import Ingest
from spark.speed.writer_schemas import RegisteredSchemas

V1 = {
    "type": "record",
    "name": "Click",
    "fields": [
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "page", "type": "string"},
        {"name": "number", "type": "int"},
    ],
}


V2 = V1 | {"fields": [*V1["fields"], {"name": "referrer", "type": ["null", "string"], "default": None}]}


V3 = V2 | {"fields": [*V2["fields"], {"name": "note", "type": ["null", "int"], "default": None}]}


NOON = datetime(2024, 5, 1, 12, 0, tzinfo=UTC)


NOW = datetime(2024, 6, 1, 9, 30, tzinfo=UTC)


def clicks(*versions: dict[str, Any]) -> Contract:
    return Contract.model_validate(
        {
            "stream": "ingest_clicks",
            "description": "",
            "owner": "",
            "topic": {"partitions": 3, "retention": "36500d"},  # the records carry a time of long ago
            "key": ["page"],
            "event_id": ["number"],
            "event_time": "at",
            "rules": [{"name": "known", "predicate": "page <> 'nowhere'", "reason": "no such page"}],
            "aggregates": [
                {
                    "name": "clicks_by_page",
                    "description": "",
                    "dimensions": ["page"],
                    "measures": [{"name": "clicks", "kind": "count"}],
                }
            ],
            "folder": Path("ingest_clicks"),
            "versions": versions,
        }
    )


class Pipeline:
    """The ingest query of `ingest_clicks`, started again with everything new, as after a crash."""

    def __init__(self, stack: Settings, spark: SparkSession, contract: Contract) -> None:
        self.stack, self.spark, self.contract = stack, spark, contract
        self.writers = RegisteredSchemas(contract, stack)

    def run(self, may_commit: Callable[[], None] = lambda: None, afterwards: Callable[[], None] = lambda: None) -> None:
        """Takes everything that is in the topics now. `may_commit` and `afterwards` (before Spark notes the batch as
        done) may raise, like a crash."""
        generation = generations.generation(self.stack, self.contract.stream)
        application = generations.application(self.contract.stream, generation)
        letters = Letters(self.contract, self.stack.kafka_client("stream"), application, lambda: NOW)
        ingest = Ingest(
            self.contract, self.stack.lake_uri, generation, self.writers, letters, may_commit,
            in_pieces=partial(large_records.read, self.contract, self.stack, generation),
        )  # fmt: skip

        def batch(records: DataFrame, batch_id: int) -> None:
            ingest.batch(records, batch_id)
            afterwards()

        place = generations.location(self.stack, self.contract.stream, generation)
        records = kafka_source.records(self.spark, self.contract, self.stack)
        query = records.writeStream.option("checkpointLocation", place).trigger(availableNow=True).foreachBatch(batch)
        try:
            query.start().awaitTermination()
        finally:
            letters.close()

    def crash(self, **where: Callable[[], None]) -> None:
        with pytest.raises(StreamingQueryException, match="the power is out"):
            self.run(**where)

    def bronze(self) -> list[dict[str, Any]]:
        path = names.local_path(names.bronze(self.stack.lake_uri, self.contract.stream))
        found: list[dict[str, Any]] = DeltaTable(path).to_pyarrow_table().to_pylist()
        return found

    def counted(self) -> int:
        path = names.local_path(names.speed(self.stack.lake_uri, self.contract.stream, "clicks_by_page"))
        return sum(DeltaTable(path).to_pyarrow_table()["count_of_rows"].to_pylist())


def power_out(at: int) -> Callable[[], None]:
    """A hook that raises when it is called for the `at`th time."""
    calls = iter(range(1, at + 1))

    def hook() -> None:
        if next(calls) == at:
            raise RuntimeError("the power is out")

    return hook


def read(stack: Settings, *topics: str) -> list[Message]:
    """Every committed record of `topics`."""
    consumer = Consumer(
        stack.kafka_client("admin")
        | {"group.id": "test-ingest", "enable.auto.commit": False, "enable.partition.eof": True}
        | {"isolation.level": "read_committed", "auto.offset.reset": "earliest"}
    )
    try:
        known = consumer.list_topics(timeout=10).topics
        open_partitions = {(topic, partition) for topic in topics for partition in known[topic].partitions}
        consumer.assign([TopicPartition(topic, partition, 0) for topic, partition in open_partitions])
        found = []
        while open_partitions:
            for message in consumer.consume(1000, timeout=10):
                if message.error():
                    open_partitions.discard((message.topic(), message.partition()))
                else:
                    found.append(message)
        return found
    finally:
        consumer.close()


def made(stack: Settings, spark: SparkSession, contract: Contract) -> Pipeline:
    provision_topics(AdminClient(stack.kafka_client("provision")), contract)
    provision_subject(registry(stack), contract)
    tables.create(stack.lake_uri, contract)
    return Pipeline(stack, spark, contract)


def click(number: int, page: str = "home", **more: Any) -> dict[str, Any]:
    return {"at": NOON + timedelta(seconds=number), "page": page, "number": number, **more}


def send(stack: Settings, topic: str, values: Sequence[bytes | None], headers: Sequence[Header] = ()) -> None:
    producer = Producer(stack.kafka_client("producer"))
    for number, value in enumerate(values):
        stamp = int(NOON.timestamp() * 1000) + number
        producer.produce(topic, value, key=f"key {number}", headers=list(headers), timestamp=stamp)
    assert producer.flush(30) == 0


def schema_id(stack: Settings, contract: Contract, version: int) -> int:
    found = registry(stack).get_version(contract.subject, version).schema_id
    assert found is not None
    return found
