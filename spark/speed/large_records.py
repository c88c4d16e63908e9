"""A micro-batch whose records are too large for the driver's memory once they are decompressed, read in small pieces.

Kafka bounds what travels: a batch of zeros of hundreds of megabytes may be stored in a few kilobytes, and nobody sees
how large it is before it is decompressed. The ingest reads many records at once, because that is fast; when its memory
does not suffice for that, the batch is sounded here: each record is read by itself, outside of the JVM and with bounded
memory. Records that are small enough are then read one by one; the others are quarantined, each by its offset.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    IntegerType,
    LongType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from infra.broker.offsets import broker_offsets
from infra.broker.ranges import Partition, Range
from infra.settings import Settings
from schemas import sizes
from schemas.contract.model import Contract
from schemas.errors import TransientError
from spark.speed import kafka_source
from spark.speed.checkpoint import generations, spark_log

log = logging.getLogger(__name__)

OUT_OF_MEMORY = "java.lang.OutOfMemoryError"
"""What the error of a query contains whose records did not fit into memory."""
BOUNDS = (sizes.IN_MEMORY, sizes.IN_MEMORY // 4)
"""Bytes that a record may have, one after the other, until the batch fits: the driver has other work as well."""
SECONDS = 30.0
"""Seconds that an answer of Kafka may take."""

_RECORDS = StructType(
    [
        StructField("key", BinaryType()),
        StructField("value", BinaryType()),
        StructField("topic", StringType()),
        StructField("partition", IntegerType()),
        StructField("offset", LongType()),
        StructField("timestamp", TimestampType()),
        StructField("timestampType", IntegerType()),
        StructField(
            "headers",
            ArrayType(StructType([StructField("key", StringType()), StructField("value", BinaryType())])),
        ),
    ]
)
"""The columns of Spark's Kafka source."""


class SoundingFailed(TransientError):
    """Kafka did not answer while the records of a batch were measured. The batch is tried again."""


ReadInPieces = Callable[[SparkSession, int, int], "Pieces"]
"""As `read`: takes the session, the batch's number in its checkpoint, and the bytes that a record may have."""


class Pieces(NamedTuple):
    """A micro-batch as rows of Spark's Kafka source: the `records` that fit into memory, and the places of those that
    are `too_large`, without anything else; None if there are none."""

    records: DataFrame
    too_large: DataFrame | None


def read(
    contract: Contract, settings: Settings, generation: int, spark: SparkSession, batch_id: int, most: int
) -> Pieces:
    """Reads the newest batch of a generation of the ingest's checkpoint in small pieces. A record of more than `most`
    bytes is too large. Raises `SoundingFailed` and `spark_log.Unreadable`."""
    small, large = {}, []
    kafka_source.forget_idle_consumers(spark)
    with _Sounder(contract, settings, most) as sounder:
        for partition, range_ in _planned(contract, settings, generation, batch_id).items():
            found = sounder.sound(partition, range_)
            small[partition] = found.small
            large += [(*partition, offset) for one in found.large for offset in range(one.first, one.last + 1)]
    for topic, number, offset in large:
        log.error("%s/%d/%d does not fit into memory once it is decompressed: it is quarantined", topic, number, offset)
    places = [(None, None, *place, None, None, None) for place in large]
    frame = kafka_source.one_by_one(spark, contract, settings, small)
    return Pieces(
        spark.createDataFrame([], _RECORDS) if frame is None else frame,
        spark.createDataFrame(places, _RECORDS) if places else None,
    )


def _planned(contract: Contract, settings: Settings, generation: int, batch_id: int) -> dict[Partition, Range]:
    """The offsets of the batch, which is planned and not done."""
    location = generations.location(settings, contract.stream, generation)
    ends = spark_log.read(location).ends
    before = ends[batch_id - 1] if batch_id else spark_log.beginning(location)
    earliest = broker_offsets(settings, contract.ingest_topics, earliest=True, principal="stream")
    starts = {partition: before.get(partition, earliest.get(partition, 0)) for partition in ends[batch_id]}
    return {
        partition: Range(starts[partition], end - 1)
        for partition, end in ends[batch_id].items()
        if end > starts[partition]
    }


@dataclass
class _Sounded:
    """The ranges of a partition's offsets whose records are small enough, and of the others, each in order."""

    small: list[Range] = field(default_factory=list)
    large: list[Range] = field(default_factory=list)

    def add_small(self, first: int, last: int) -> None:
        if first <= last:
            self.small.append(Range(first, last))


class _Sounder:
    """Measures records one by one. A batch of records that is larger than its bound it cannot open: all of that batch
    is too large."""

    def __init__(self, contract: Contract, settings: Settings, most: int) -> None:
        self._most = most
        self._consumer = Consumer(
            {
                **settings.kafka_client("stream"),
                "group.id": f"stream.{contract.stream}.sizes",  # holds nothing: partitions are assigned
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "receive.message.max.bytes": 3 * sizes.IN_MEMORY,  # as much as it decompresses
                "queued.max.messages.kbytes": 1024,
                "log_level": 2,
            }
        )

    def __enter__(self) -> _Sounder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()

    def sound(self, partition: Partition, within: Range) -> _Sounded:
        """Measures the records of `partition` with offsets `within`."""
        found, begun, at = _Sounded(), within.first, within.first
        while at <= within.last:
            for message in self._messages(partition, at):
                offset = message.offset() or 0
                if message.error() is not None or offset > within.last:
                    break
                at = offset + 1
                if sizes.of(message.headers() or [], message.key(), message.value()) > self._most:  # type: ignore[arg-type]
                    found.add_small(begun, offset - 1)
                    found.large.append(Range(offset, offset))
                    begun = at
            else:
                break
            if not self._closed(message) or offset > within.last:
                break
            # The batch may have begun before those that are asked for.
            first, last = max(offset, at), min(self._last_of(partition, max(offset, at), within.last), within.last)
            found.add_small(begun, first - 1)
            found.large.append(Range(first, last))
            begun = at = last + 1
        found.add_small(begun, within.last)
        return found

    def _last_of(self, partition: Partition, offset: int, end: int) -> int:
        """The last offset of the batch that cannot be opened and holds `offset`, up to `end`. Kafka tells where such a
        batch begins, and not where it ends."""
        base = self._closed_batch(partition, offset)
        inside, step = offset, 1
        while inside + step <= end and self._closed_batch(partition, inside + step) == base:
            inside, step = inside + step, 2 * step
        outside = min(inside + step, end + 1)
        while outside - inside > 1:
            middle = (inside + outside) // 2
            if self._closed_batch(partition, middle) == base:
                inside = middle
            else:
                outside = middle
        return inside

    def _closed_batch(self, partition: Partition, offset: int) -> int | None:
        """Where the batch begins that holds `offset` and cannot be opened; None if it can be."""
        message = next(self._messages(partition, offset), None)
        return message.offset() if message is not None and self._closed(message) else None

    @staticmethod
    def _closed(message: Message) -> bool:
        error = message.error()
        return error is not None and error.code() == KafkaError._BAD_COMPRESSION

    def _messages(self, partition: Partition, start: int) -> Iterator[Message]:
        """What the consumer gives from `start` on, until the end of the partition. Raises `SoundingFailed`."""
        self._consumer.assign([TopicPartition(*partition, start)])
        heard = time.monotonic()
        while time.monotonic() - heard < SECONDS:
            message = self._consumer.poll(0.5)
            if message is None:
                continue
            heard, error = time.monotonic(), message.error()
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                return
            if error is not None and error.code() != KafkaError._BAD_COMPRESSION:
                raise SoundingFailed(f"Kafka does not let {partition[0]}/{partition[1]} be measured") from (
                    KafkaException(error)
                )
            yield message
        raise SoundingFailed(f"{partition[0]}/{partition[1]} is silent for {SECONDS:.0f} s, before its end")
