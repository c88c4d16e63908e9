"""Explains the offsets that bronze lacks by reading them from the broker, since nothing else proves why a gap is there.

A consumer receives every record, but not the marks that end transactions. So an offset that a consumer of uncommitted
records does not receive is a mark (or was compacted away). A record that it receives and that a consumer of committed
records does not receive belongs to an aborted transaction. A record that both receive is missing in bronze. The marks
(control records) and the isolation levels are those of KIP-98.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from infra.broker.ranges import Range
from infra.settings import Settings
from schemas import sizes
from schemas.errors import TransientError
from spark.conservation.accounting import Finding, Proof, ranges, split

SECONDS = 30.0
"""How many seconds an answer of Kafka may take."""
NEAR = 5_000
"""The greatest number of offsets between two gaps that are read rather than skipped: a seek costs a request."""

Note = TypeVar("Note")


class GapsUnreadable(TransientError):
    """Kafka did not answer about the gaps of a partition, which the message names."""


class GapReader(Generic[Note]):
    """Reads the gaps of a stream's partitions from the broker. `note` returns what to keep of a missing record. It is a
    context manager, which closes its consumers."""

    def __init__(self, settings: Settings, stream: str, note: Callable[[Message], Note]) -> None:
        self._client: dict[str, Any] = settings.kafka_client("audit") | {"log_level": 2}
        self._admin = AdminClient(self._client)
        self._note = note
        self._consumers = {level: self._consumer(level, stream) for level in ("read_uncommitted", "read_committed")}

    def __enter__(self) -> GapReader[Note]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for consumer in self._consumers.values():
            consumer.close()

    def explained(self, topic: str, partition: int, gaps: Sequence[Range]) -> tuple[list[Finding], dict[int, Note]]:
        """Returns the findings that cover `gaps` of a partition, in order, and the notes of the missing records by
        offset. Raises `GapsUnreadable`."""
        if not gaps:
            return [], {}
        topic_partition = TopicPartition(topic, partition)
        uncommitted = self._consumers["read_uncommitted"]
        try:
            low, high = uncommitted.get_watermark_offsets(topic_partition, SECONDS)
            _, readable = split(gaps, _outside(low, high))
            present = ranges(m.offset() or 0 for m in self._records("read_uncommitted", topic, partition, readable))
            notes = {
                message.offset() or 0: self._note(message)
                for message in self._records("read_committed", topic, partition, present)
            }
            # The broker is asked again, because what it has dropped meanwhile proves nothing.
            low, _ = uncommitted.get_watermark_offsets(topic_partition, SECONDS)
            absent: Proof = "compacted" if self._is_compacted(topic) else "marker"
        except KafkaException as error:
            raise GapsUnreadable(f"Kafka does not let {topic}/{partition} be read: {error.args[0].str()}") from error
        notes = {offset: note for offset, note in notes.items() if offset >= low}
        found, retained = split(gaps, _outside(low, high))
        missing, retained = split(retained, [Finding(*range_, "missing") for range_ in ranges(notes)])
        aborted, retained = split(retained, [Finding(*range_, "aborted") for range_ in present])
        return sorted([*found, *missing, *aborted, *(Finding(*range_, absent) for range_ in retained)]), notes

    def _consumer(self, isolation: str, stream: str) -> Consumer:
        return Consumer(
            {
                **self._client,
                "group.id": f"audit.{stream}",
                "isolation.level": isolation,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                **sizes.consumer(),
                # Most reads are of a few offsets here and there.
                "fetch.wait.max.ms": 10,
                "fetch.queue.backoff.ms": 5,
                "queued.min.messages": 2 * NEAR,
            }
        )

    def _records(self, isolation: str, topic: str, partition: int, gaps: Iterable[Range]) -> Iterator[Message]:
        """The records inside of `gaps` that a consumer of this isolation level receives, in order."""
        consumer = self._consumers[isolation]
        position: int | None = None  # every record before this one was read
        ahead: Message | None = None  # the record at `position`, read but not used yet
        try:
            for gap in gaps:
                if position is None or gap.first > position + NEAR:
                    consumer.assign([TopicPartition(topic, partition, gap.first)])
                    position, ahead = gap.first, None
                while position <= gap.last:
                    message = ahead or self._next(consumer, topic, partition)
                    if message is None:
                        return  # the end of the partition
                    offset = message.offset() or 0
                    if message.error() is not None and offset > gap.last:  # everything before it was read
                        position, ahead = None, None
                        break
                    if (error := message.error()) is not None:
                        raise KafkaException(error)
                    if offset > gap.last:
                        position, ahead = offset, message
                        break
                    position, ahead = offset + 1, None
                    if offset >= gap.first:
                        yield message
        finally:
            consumer.unassign()

    def _next(self, consumer: Consumer, topic: str, partition: int) -> Message | None:
        """The next record, None at the end of the partition."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            message = consumer.poll(0.5)
            if message is None:
                continue
            error = message.error()
            if error is None:
                return message
            if error.code() == KafkaError._PARTITION_EOF:
                return None
            if error.code() == KafkaError._BAD_COMPRESSION:  # a batch that is too large to be opened begins there
                return message
            raise KafkaException(error)
        raise GapsUnreadable(f"{topic}/{partition} is silent for {SECONDS:.0f} s, before its end")

    def _is_compacted(self, topic: str) -> bool:
        resource = ConfigResource(ResourceType.TOPIC, topic)
        [answer] = self._admin.describe_configs([resource], request_timeout=SECONDS).values()
        return "compact" in answer.result()["cleanup.policy"].value


def _outside(low: int, high: int) -> list[Finding]:
    """Findings for the offsets that a broker does not hold, if it holds those from `low` to before `high`."""
    below, above = Finding(0, low - 1, "expired"), Finding(high, 2**63 - 1, "expired")
    return [below, above] if low else [above]
