"""Rejected records as dead letters on `<stream>.dlq`, exactly once.

Spark's own Kafka sink is at least once. Here the letters of a micro-batch are one Kafka transaction, and in the same
transaction a consumer group that nobody consumes with gets the offset `batch_id + 1`: a marker of the last batch whose
letters are out. A batch that is run again after a crash finds the marker and sends nothing.

A record that is larger, uncompressed, than the stream's topic takes of compressed ones would not always fit into the
dead-letter topic, nor a batch of them into memory: its letter is a pointer to its row of bronze
(`schemas.dead_letter`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F
from tenacity import Retrying, before_sleep_log, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from infra.broker.bounded import Unanswered, answered
from schemas import sizes
from schemas.contract.model import TOMBSTONE, Contract
from schemas.dead_letter import (
    ATTEMPT,
    BRONZE,
    BRONZE_BYTES,
    BRONZE_DIGEST,
    ERROR_CLASS,
    FIRST_FAILED_AT,
    ID,
    NEXT_DUE_AT,
    PREFIX,
    REASON,
    SCHEMA_ID,
    instant,
)
from schemas.errors import TerminalError, TransientError

log = logging.getLogger(__name__)

TIMEOUT = 15.0
"""Seconds that a step of a transaction may take: longer than a broker needs, and short enough to try again soon."""

PATIENCE = 60.0
"""Seconds for which failed transactions are tried again."""


class LettersError(TransientError):
    """Kafka did not take the letters of a batch. The transaction is void; the batch runs again."""


class LettersFenced(TerminalError):
    """Another driver sends this stream's letters now; this one must stop."""


def letters(rejected: DataFrame, contract: Contract) -> DataFrame:
    """Rejected rows of bronze, but for tombstones that are skipped, as `Letters.send` takes them: id (the original's
    topic/partition/offset), error_class, reason, attempt, key, value, the producer's headers, `about` (the platform's
    ones, of a replayed record), timestamp (milliseconds since 1970); and for a pointer, which has no key, value and
    headers: `bronze`, `digest`, `size` and `schema_id`, which are null for others."""
    place = F.concat_ws("/", "topic", "partition", "offset")
    size = _size()
    fits = (size <= sizes.of_topic(contract)) & (F.col("error_class") != "oversized")
    about = F.when(F.col("topic") == contract.retry_topic, F.array_position(F.reverse(F.col("headers.key")), ID))
    about, all_ = F.coalesce(about.cast("int"), F.lit(0)), F.greatest(F.size("headers"), F.lit(0))
    ours = F.slice("headers", all_ - about + 1, about)
    others = F.filter(ours, lambda header: ~header["key"].startswith(PREFIX))
    pointer = {"bronze": place, "digest": _digest(), "size": size, "schema_id": F.col("schema_id")}
    return rejected.where(F.col("error_class") != TOMBSTONE).select(
        F.coalesce("original", place).alias("id"),
        "error_class",
        "reason",
        "attempt",
        *(F.when(fits, F.col(name)).alias(name) for name in ("key", "value")),
        F.when(fits, F.concat(F.slice("headers", F.lit(1), all_ - about), others)).alias("headers"),
        F.when(about > 0, ours).alias("about"),
        F.unix_millis("kafka_timestamp").alias("timestamp"),
        *(F.when(~fits & (F.col("error_class") != "oversized"), value).alias(name) for name, value in pointer.items()),
    )


def _size() -> Column:
    """The bytes of a record, as `schemas.sizes.of` counts them."""

    def add(sum_: Column, header: Column) -> Column:
        return sum_ + F.octet_length(header["key"]) + _length(header["value"]) + sizes.HEADER_OVERHEAD

    return _length("key") + _length("value") + F.coalesce(F.aggregate("headers", F.lit(0), add), F.lit(0))


def _length(bytes_: Column | str) -> Column:
    return F.coalesce(F.octet_length(bytes_), F.lit(0))


def _digest() -> Column:
    """The digest of a record, as `schemas.dead_letter.Stored` computes it."""

    def sha256(bytes_: Column | str) -> Column:
        return F.coalesce(F.sha2(bytes_, 256), F.lit("-"))

    headers = F.transform("headers", lambda header: F.concat_ws(
        ":", F.lower(F.hex(F.encode(header["key"], "utf-8"))), sha256(header["value"])
    ))  # fmt: skip
    lines = F.concat(F.array(sha256("key"), sha256("value")), F.coalesce(headers, F.array().cast("array<string>")))
    return F.sha2(F.array_join(lines, "\n").cast("binary"), 256)


class Letters:
    """Sends the contract's dead letters as transactions of `transactional.id` `stream.<application>`, where
    `application` is stream and checkpoint generation. Kafka fences an older process that still holds the id. `client`
    is the configuration of the connection, `clock` gives the time (UTC) of the failure."""

    def __init__(
        self,
        contract: Contract,
        client: Mapping[str, Any],
        application: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._contract = contract
        self._client = dict(client)
        self._name = f"stream.{application}"
        self._clock = clock
        self._producer: Producer | None = None
        self._consumer: Consumer | None = None
        self._marker = TopicPartition(contract.dlq_topic, 0)
        self._next = 0

    def send(self, batch_id: int, letters: Callable[[], Iterable[Row]]) -> int:
        """Sends what `letters` gives in one transaction with the marker and returns the number; 0 if the letters of the
        batch are out already. A failed transaction is tried again for `PATIENCE` seconds, with `letters` called anew:
        when a commit's outcome is unknown, the marker shows it. Raises `LettersError`, or `LettersFenced`."""
        attempts = Retrying(
            retry=retry_if_exception_type(LettersError),
            wait=wait_exponential_jitter(multiplier=0.2, max=5),
            stop=stop_after_delay(PATIENCE),
            before_sleep=before_sleep_log(log, logging.WARNING),
            reraise=True,
        )
        return attempts(self._send, batch_id, letters)

    def _send(self, batch_id: int, letters: Callable[[], Iterable[Row]]) -> int:
        try:
            producer, consumer = self._opened()
            if batch_id < self._next:
                return 0
            producer.begin_transaction()
            sent = 0
            for letter in letters():
                self._produce(producer, letter)
                sent += 1
            marker = TopicPartition(self._marker.topic, self._marker.partition, batch_id + 1)
            group = consumer.consumer_group_metadata()
            answered(partial(producer.send_offsets_to_transaction, [marker], group, TIMEOUT), TIMEOUT)
            producer.commit_transaction(TIMEOUT)
        except KafkaException as error:
            if isinstance(error, Unanswered):
                self._producer = None  # the next one's start voids its transaction
            # librdkafka lacks KIP-890: after a failed commit or abort only a new producer is sure to be clean.
            self.close()
            why = f"the dead letters of batch {batch_id} did not reach {self._contract.dlq_topic}: {error}"
            if error.args[0].fatal():
                raise LettersFenced(f"{why}; another driver has taken over the transactions of {self._name}") from error
            raise LettersError(why) from error
        except BaseException:
            self.close()
            raise
        self._next = batch_id + 1
        return sent

    def close(self) -> None:
        """Voids an open transaction and forgets the connection; the next `send` makes a new one."""
        producer, self._producer = self._producer, None
        consumer, self._consumer = self._consumer, None
        if producer is not None:
            with suppress(KafkaException):
                producer.abort_transaction(TIMEOUT)
        if consumer is not None:
            consumer.close()

    def _opened(self) -> tuple[Producer, Consumer]:
        if self._producer is None or self._consumer is None:
            self._producer = Producer(
                self._client
                | {
                    "transactional.id": self._name,
                    "transaction.timeout.ms": 300_000,
                    **sizes.producer(sizes.of_letters(self._contract)),
                    "linger.ms": 5,
                }
            )
            # Ends what a crashed predecessor left open, so the marker read next is the last committed one.
            self._producer.init_transactions(TIMEOUT)
            self._consumer = Consumer(
                self._client
                | {
                    "group.id": f"{self._name}.letters",
                    "enable.auto.commit": False,
                    "isolation.level": "read_committed",
                }
            )
            [committed] = self._consumer.committed([self._marker], TIMEOUT)
            if committed.error:
                raise KafkaException(committed.error)
            self._next = max(0, committed.offset)
        return self._producer, self._consumer

    def _produce(self, producer: Producer, letter: Row) -> None:
        message: dict[str, Any] = {
            "topic": self._contract.dlq_topic,
            "key": _bytes(letter["key"]),
            "value": _bytes(letter["value"]),
            "timestamp": letter["timestamp"] or 0,  # that of a record which nobody could open is unknown: 0 is now
            "headers": self._headers(letter),
        }
        while True:
            try:
                producer.produce(**message)
                return
            except BufferError:  # the local queue is full: let deliveries make room
                producer.poll(0.1)

    def _headers(self, letter: Row) -> list[tuple[str, bytes | None]]:
        own = [(header["key"], _bytes(header["value"])) for header in letter["headers"] or []]
        before = {header["key"]: _bytes(header["value"]) for header in letter["about"] or []}
        now, backoff = self._clock(), self._contract.dead_letters.policy[letter["error_class"]]
        replayed = letter["attempt"] > 0
        first = before.get(FIRST_FAILED_AT) if replayed else None
        ours = {
            ID: letter["id"].encode(),
            ERROR_CLASS: letter["error_class"].encode(),
            REASON: letter["reason"].encode(),
            ATTEMPT: str(letter["attempt"]).encode(),
            FIRST_FAILED_AT: first or instant(now).encode(),
            NEXT_DUE_AT: instant(now + backoff.due_after(letter["attempt"], letter["id"])).encode(),
        }
        if letter["bronze"] is not None:
            pointer = {BRONZE: "bronze", BRONZE_DIGEST: "digest", BRONZE_BYTES: "size", SCHEMA_ID: "schema_id"}
            ours |= {name: str(letter[its]).encode() for name, its in pointer.items() if letter[its] is not None}
        return [*own, *ours.items()]


def _bytes(value: bytearray | None) -> bytes | None:
    return None if value is None else bytes(value)
