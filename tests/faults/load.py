"""The steady load of the fault matrix: numbered records, and what became of each on its way to Kafka.

A record is all in its number: its event time, its fields, and whether it is good, breaks a rule, or is no Avro. So
whoever knows the numbers can say what the platform must hold, without asking it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from confluent_kafka import KafkaError, Message, Producer

from infra.settings import Settings
from tests.support.kafka_rows import wire

START = datetime(2026, 1, 1, tzinfo=UTC)
STEP = timedelta(seconds=9)
"""Event time between two numbers."""
EVERY = 0.1
"""Seconds between the sends of some numbers."""

Kind = Literal["good", "rule", "malformed", "newer"]


FUTURE = 1 << 40
"""Numbers from here on are of events that have not happened."""
STORM = 1 << 41
"""Numbers from here on are garbage."""
NEWER = 1 << 42
"""Numbers from here on are of a schema that is registered later; less this, they are numbers of events in between."""


def kind(number: int) -> Kind:
    if number >= NEWER:
        return "newer"
    if number >= STORM:
        return "malformed"
    if number >= FUTURE:
        return "rule"
    return "malformed" if number % 50 == 7 else "rule" if number % 50 == 21 else "good"


def record(number: int) -> dict[str, Any]:
    at = START + (timedelta(days=36_500) if FUTURE <= number < STORM else number % FUTURE * STEP)
    level = -1 if number < FUTURE and kind(number) == "rule" else number % 997
    return {"at": at, "number": number, "sensor": "abcd"[number % 4], "level": level}


@dataclass(frozen=True)
class Place:
    """Where Kafka keeps a record that it has acknowledged."""

    partition: int
    offset: int


class Load:
    """Sends `rate` records a second from `start` to `stop`, on a thread. `acknowledged` and `refused` fill as Kafka
    answers; a refused record may have arrived all the same."""

    def __init__(self, settings: Settings, topic: str, schema_id: int, schema: Mapping[str, Any], rate: int) -> None:
        self._topic, self._schema_id, self._schema, self._rate = topic, schema_id, schema, rate
        self.acknowledged: dict[int, Place] = {}
        self.refused: dict[int, str] = {}
        self.next_number = 0
        self._next_future, self._next_storm = FUTURE, STORM
        self._settings = settings
        self._producer = Producer(
            {
                **settings.kafka_client("producer"),
                "enable.idempotence": True,
                "linger.ms": 20,
                "delivery.timeout.ms": 120_000,
                "reconnect.backoff.max.ms": 1000,
                "log_level": 2,
            }
        )
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        return self._thread is not None

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._thread.start()

    def send_future(self, count: int) -> None:
        """Sends so many events of the far future, once each."""
        for number in range(self._next_future, self._next_future + count):
            self._send(number)
        self._next_future += count

    def send_storm(self, count: int) -> None:
        """Sends so many records of garbage in one transaction, so that one batch has them all."""
        producer = Producer(
            {**self._settings.kafka_client("admin"), "transactional.id": "storm", "partitioner": "murmur2_random"}
        )
        producer.init_transactions(30)
        producer.begin_transaction()
        for number in range(self._next_storm, self._next_storm + count):
            self._send(number, producer)
        producer.commit_transaction(30)
        self._next_storm += count

    def send_oversized(self, *bytes_: int) -> None:
        """Sends garbage of so many bytes each, which is small while it is compressed."""
        bounds = {"compression.type": "zstd", "message.max.bytes": 10**9, "queue.buffering.max.kbytes": 2 * 10**6}
        producer = Producer(self._settings.kafka_client("producer") | bounds)
        for number, size in enumerate(bytes_, start=self._next_storm):
            self._send(number, producer, bytes(size))
            assert producer.flush(60) == 0
        self._next_storm += len(bytes_)

    def send_newer(self, count: int, schema_id: int, schema: Mapping[str, Any]) -> None:
        """Sends so many events of another schema, as old as those that are sent by now."""
        first = NEWER + self.next_number
        for number in range(first, first + count):
            self._send(number, value=wire(schema_id, schema, record(number)))

    def stop(self) -> None:
        """Stops sending and waits until each record was acknowledged or refused."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        left = self._producer.flush(180)
        assert left == 0, f"{left} records are neither acknowledged nor refused"

    def _run(self) -> None:
        while not self._stopping.wait(EVERY):
            for number in range(self.next_number, self.next_number + max(1, int(self._rate * EVERY))):
                self._send(number)
                self.next_number = number + 1
            self._producer.poll(0)

    def _send(self, number: int, producer: Producer | None = None, value: bytes | None = None) -> None:
        value = value or (
            f"poison {number}".encode()
            if kind(number) == "malformed"
            else wire(self._schema_id, self._schema, record(number))
        )

        def answered(error: KafkaError | None, message: Message) -> None:
            if error is None:
                self.acknowledged[number] = Place(message.partition() or 0, message.offset() or 0)
            else:
                self.refused[number] = error.str()

        producer = producer or self._producer
        while True:
            try:
                producer.produce(self._topic, value, str(number), on_delivery=answered)
                return
            except BufferError:
                producer.poll(0.5)
