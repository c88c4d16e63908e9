"""A stream's records from Kafka, as Spark's structured streaming reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, cast

from pyspark.sql import DataFrame, SparkSession

from infra.broker.offsets import Offsets, broker_offsets, nested
from infra.broker.ranges import Partition, Range
from infra.settings import Settings
from schemas.contract.model import Contract

EARLIEST = -2
"""Spark's name for the first offset that a partition still has."""


def records(spark: SparkSession, contract: Contract, settings: Settings, start: Offsets | None = None) -> DataFrame:
    """The committed records of `<stream>` and `<stream>.retry`, with headers. A checkpoint says where to go on;
    without one they are read from `start`, and partitions that it does not name from their beginning. Records that
    Kafka dropped before they were read fail the query: they are lost, and nobody may miss it."""
    options = {
        "failOnDataLoss": "true",
        "maxOffsetsPerTrigger": str(settings.max_offsets_per_trigger),
        # Each batch reads to a known end, where the default long poll of 500 ms would be waited for in vain; and a poll
        # of 500 records costs more than the records.
        "kafka.fetch.max.wait.ms": "20",
        "kafka.max.poll.records": "10000",
    }
    return _read(spark, contract, settings, start, options)


def live_records(spark: SparkSession, contract: Contract, settings: Settings, start: Offsets | None) -> DataFrame:
    """The same records for a query in real-time mode, which has no batches to limit: a record comes as soon as it is
    there. What Kafka dropped before it was read is too old to alert anybody, and the ingest fails for it."""
    return _read(spark, contract, settings, start, {"failOnDataLoss": "false"})


def one_by_one(
    spark: SparkSession, contract: Contract, settings: Settings, ranges: Mapping[Partition, Sequence[Range]]
) -> DataFrame | None:
    """The committed records with the offsets in `ranges`, with headers, of which no more than one is in memory at a
    time; None if there are no offsets."""
    options = {"kafka.max.poll.records": "1", "kafka.max.partition.fetch.bytes": "1", "failOnDataLoss": "true"}
    frames = [
        spark.read.format("kafka")
        .options(**_connection(settings), **_committed(contract), **options)
        .option("assign", json.dumps({topic: [partition]}))
        .option("startingOffsets", json.dumps({topic: {str(partition): range_.first}}))
        .option("endingOffsets", json.dumps({topic: {str(partition): range_.last + 1}}))
        .load()
        for (topic, partition), some in ranges.items()
        for range_ in some
    ]
    return reduce(DataFrame.unionByName, frames).coalesce(1) if frames else None


def forget_idle_consumers(spark: SparkSession) -> None:
    """Closes the consumers that Spark keeps in this JVM for the next micro-batch. Each of them holds the last record
    that it has read, however large that is, and Spark's own name for this is closed to others."""
    jvm = cast(Any, spark.sparkContext)._jvm
    consumers = jvm.java.lang.Class.forName("org.apache.spark.sql.kafka010.consumer.KafkaDataConsumer$")
    for pool in ("fetchedDataPool", "consumerPool"):
        field = consumers.getDeclaredField(pool)
        field.setAccessible(True)
        field.get(None).reset()


def _read(
    spark: SparkSession, contract: Contract, settings: Settings, start: Offsets | None, options: dict[str, str]
) -> DataFrame:
    common = {
        "subscribe": ",".join(contract.ingest_topics),
        "startingOffsets": "earliest" if start is None else _starting(contract, settings, start),
    }
    return (
        spark.readStream.format("kafka")
        .options(**_connection(settings), **_committed(contract), **common, **options)
        .load()
    )


def _connection(settings: Settings) -> dict[str, str]:
    return {f"kafka.{key}": value for key, value in settings.kafka_java("stream").items()}


def _committed(contract: Contract) -> dict[str, str]:
    return {
        "includeHeaders": "true",
        # ACLs name consumer groups, so generated ones need a prefix.
        "groupIdPrefix": f"stream.{contract.stream}",
        "kafka.isolation.level": "read_committed",
    }


def _starting(contract: Contract, settings: Settings, start: Offsets) -> str:
    """`start` as Spark takes it, as JSON: with every partition named, also one that was added since."""
    there = broker_offsets(settings, contract.ingest_topics, principal="stream")
    return json.dumps(nested({partition: start.get(partition, EARLIEST) for partition in there}))
