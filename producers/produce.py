"""Sends a stream's records to Kafka: idempotent, acknowledged by all replicas, every delivery accounted for."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as Delivered

from infra.settings import Settings
from producers.codec import Codec, Message, registry, schema_id
from producers.inject import Faults, Injected, violations
from producers.sources import Record
from schemas.errors import TerminalError, TransientError
from schemas.model import Contract

OPTIONS: dict[str, str | int | float | bool] = {
    "enable.idempotence": True,  # no duplicates and no reordering by the client's own retries
    "acks": "all",
    "compression.type": "lz4",
    "linger.ms": 20,
    "batch.size": 512 * 1024,
    "queue.buffering.max.messages": 200_000,
    "queue.buffering.max.kbytes": 128 * 1024,
    "reconnect.backoff.ms": 500,
    "log_level": 2,  # connection errors are reported, not logged line by line: see _on_error
    "partitioner": "murmur2_random",  # the Java clients' default: a key has one partition whoever sends it
}
LOOK_UP_SECONDS = 15.0
"""How long to wait for the first answer of Kafka."""
POLL_EVERY = 1000
"""Messages between two looks for deliveries."""
FLUSH_SECONDS = 150.0
"""Longer than librdkafka's delivery timeout with the options below, so a flush ends with every message decided."""
DELIVERY_TIMEOUT_MS = 120_000


class ProduceError(TransientError):
    """Not every record reached Kafka. `report` says what did; sending again is safe: events have ids."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


class TopicMissing(TerminalError):
    """The stream's topic does not exist."""


class BrokerUnavailable(TransientError):
    """No broker answers, or it refuses this principal."""


@dataclass
class Report:
    """What was sent: messages handed to the client, acknowledged by Kafka and failed; bytes of key and value; seconds;
    messages by kind (see `producers.inject.KINDS`); whether Ctrl-C ended it early."""

    sent: int = 0
    acknowledged: int = 0
    failed: int = 0
    bytes: int = 0
    seconds: float = 0.0
    by_kind: Counter[str] = field(default_factory=Counter)
    interrupted: bool = False

    @property
    def rate(self) -> float:
        """Acknowledged messages a second."""
        return self.acknowledged / self.seconds if self.seconds else 0.0


def produce(
    contract: Contract,
    records: Iterable[Record],
    *,
    settings: Settings,
    faults: Faults | None = None,
    speed: float | None = None,
    on_progress: Callable[[Report], None] | None = None,
    options: Mapping[str, str | int | float | bool] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] | None = None,
) -> Report:
    """Sends `records` (in event-time order) to the contract's topic, with `faults` among them, and waits for Kafka's
    answer to each.

    `speed` is event seconds per second of `clock` (None: flat out). `on_progress` is called with the running report
    about every `POLL_EVERY` messages and at the end. `options` are further librdkafka options. `sleep` defaults to
    serving deliveries meanwhile. On Ctrl-C what was sent is flushed and reported with `interrupted`.

    Raises `ProduceError` with the count and the first reason if a delivery failed, `TopicMissing`,
    `BrokerUnavailable`, and what `producers.codec` raises for the registry and for records that do not fit.
    """
    if speed is not None and speed <= 0:
        raise TerminalError(f"the speed must be above 0, not {speed}")
    client = _Client(settings, contract.stream, options or {}, on_progress, clock)
    codec = Codec(contract, schema_id(contract, registry(settings)))
    messages: Iterable[Message] = codec.messages(records)
    if faults is not None and faults.any:
        messages = Injected(messages, faults, violations(codec) if faults.malformed else ())
    if speed is not None:
        messages = paced(messages, speed, clock, sleep or client.wait)
    return client.send(messages)


def paced(
    messages: Iterable[Message], speed: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> Iterator[Message]:
    """The messages at the pace of their event times, `speed` event seconds per second of `clock`, from the first one
    on. A message whose time has passed comes at once, so one slow moment does not delay the rest."""
    first: tuple[int, float] | None = None
    for message in messages:
        first = first or (message.event_time, clock())
        due = first[1] + (message.event_time - first[0]) / 1e6 / speed
        while (ahead := due - clock()) > 0:
            sleep(ahead)
        yield message


class _Client:
    """One producer and the account of what it sent."""

    def __init__(
        self,
        settings: Settings,
        topic: str,
        options: Mapping[str, str | int | float | bool],
        on_progress: Callable[[Report], None] | None,
        clock: Callable[[], float],
    ) -> None:
        self._topic = topic
        self._on_progress = on_progress or (lambda report: None)
        self._clock = clock
        self._started = clock()
        self._report = Report()
        self._first_failure = ""
        self._last_error = ""
        self._producer = Producer(
            {
                **settings.kafka_client("producer"),
                "delivery.timeout.ms": DELIVERY_TIMEOUT_MS,
                **OPTIONS,
                **options,
                "error_cb": self._on_error,
            }
        )
        self._look_up(settings.bootstrap)

    def send(self, messages: Iterable[Message]) -> Report:
        report = self._report
        try:
            for message in messages:
                self._send(message)
                if report.sent % POLL_EVERY == 0:
                    self._progress()
        except KeyboardInterrupt:
            report.interrupted = True
        except KafkaException as error:  # the client is broken for good: what is in its queue fails
            self._first_failure = self._first_failure or str(error.args[0])
        finally:
            undelivered = self._producer.flush(FLUSH_SECONDS)
            report.failed += undelivered
            self._progress()
        if report.failed or self._first_failure:
            reason = self._first_failure or self._last_error or f"no answer within {FLUSH_SECONDS:.0f} s"
            raise ProduceError(
                f"{report.failed} of {report.sent} records did not reach topic {self._topic}; first: {reason}. "
                "Send again when Kafka is well: repeats are recognised by their event id",
                report,
            )
        return report

    def wait(self, seconds: float) -> None:
        """Serves deliveries for `seconds`."""
        self._producer.poll(seconds)

    def _send(self, message: Message) -> None:
        while True:
            try:
                self._producer.produce(
                    self._topic, message.value, message.key, on_delivery=partial(self._delivered, message.kind)
                )
                break
            except BufferError:  # the local queue is full: Kafka is slower than we are
                self._producer.poll(0.5)
        self._report.sent += 1
        self._report.bytes += len(message.key) + len(message.value)
        self._report.by_kind[message.kind] += 1

    def _delivered(self, kind: str, error: KafkaError | None, delivered: Delivered) -> None:
        if error is None:
            self._report.acknowledged += 1
        else:
            self._report.failed += 1
            self._first_failure = self._first_failure or f"{kind}: {error.str()}"

    def _progress(self) -> None:
        self._producer.poll(0)
        self._report.seconds = self._clock() - self._started
        self._on_progress(self._report)

    def _on_error(self, error: KafkaError) -> None:
        self._last_error = error.str()

    def _look_up(self, bootstrap: str) -> None:
        """Finds out at once, rather than by a delivery timeout, that there is no broker or no topic."""
        try:
            topics: Any = self._producer.list_topics(self._topic, timeout=LOOK_UP_SECONDS).topics
        except KafkaException as error:
            reason = self._last_error or error.args[0].str()
            raise BrokerUnavailable(f"Kafka at {bootstrap} does not answer: {reason}") from error
        problem = topics[self._topic].error
        if problem is not None:
            raise TopicMissing(
                f"topic {self._topic} cannot be written ({problem.str()}); "
                "DAG `provision` makes a stream's topics, and its principals' rights"
            )
