"""Sends a stream's records to Kafka: idempotent, acknowledged by all replicas, every delivery accounted for.

Two modes. **Idempotent**, the default: the client's own retries neither double nor reorder; a process that dies leaves
what was sent, and sending it all again repeats it (events have ids, so it is recognised). **Transactional**, under an
id of the caller's choice: exactly once over any number of deaths. The messages go out in transactions, each of which
also commits how many messages of the sequence are sent by then, as an offset of the consumer group of that id. So
readers of committed records see whole transactions only, and a run with the same id and the same sequence of messages
(source, faults, seed) goes on after the last one that was committed; when all was sent it sends nothing. A producer of
the same id that still lives is fenced off by the next one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka import Message as Delivered

from infra.broker.bounded import Unanswered, answered
from infra.settings import Settings
from producers.codec import Codec, Message, registry, schema_id
from producers.inject import Faults, Injected, violations
from producers.sources import Record
from schemas import sizes
from schemas.contract.model import Contract
from schemas.errors import TerminalError, TransientError

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
"""Longer than librdkafka's delivery timeout, so a flush ends with every message delivered or failed."""
DELIVERY_TIMEOUT_MS = 120_000
IN_TRANSACTION = 10_000
TRANSACTION_SECONDS = 1.0
"""A transaction ends after so many messages, or after so many seconds: nobody sees them before."""


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
    committed_before: int = 0
    """In transactional mode: messages of the sequence that earlier runs of the id had sent."""

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
    transactional: str | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] | None = None,
) -> Report:
    """Sends `records` (in event-time order) to the contract's topic, with `faults` among them, and waits for Kafka's
    answer to each.

    `speed` is event seconds per second of `clock` (None: flat out). `on_progress` is called with the running report
    about every `POLL_EVERY` messages and at the end. `options` are further librdkafka options. `transactional` is the
    id of the transactional mode (see above); None is the idempotent one. `sleep` defaults to serving deliveries
    meanwhile. On Ctrl-C what was sent is flushed and reported with `interrupted`.

    Raises `ProduceError` with the count and the first reason if a delivery failed, `TopicMissing`,
    `BrokerUnavailable`, and what `producers.codec` raises for the registry and for records that do not fit.
    """
    if speed is not None and speed <= 0:
        raise TerminalError(f"the speed must be above 0, not {speed}")
    kind = partial(_Transactional, transactional) if transactional else _Client
    bounds = sizes.producer(sizes.of_topic(contract))
    client = kind(settings, contract.main_topic, {**bounds, **(options or {})}, on_progress, clock)
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
        """Sends `messages` and returns the report once Kafka has answered for each. Raises `ProduceError`."""
        report = self._report
        try:
            self._send_all(messages)
        except KeyboardInterrupt:
            report.interrupted = True
        except KafkaException as error:  # the client is broken for good: what is in its queue fails
            self._serve()  # the delivery that broke it says more than the call that met it broken
            self._first_failure = self._first_failure or str(error.args[0])
        finally:
            self._settle()
            self._report_progress()
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

    def _serve(self) -> None:
        """Takes the deliveries that have been reported."""
        with suppress(KafkaException):
            self._producer.poll(0)

    def _send_all(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self._send(message)
            if self._report.sent % POLL_EVERY == 0:
                self._progress()

    def _settle(self) -> None:
        """Waits until every message is delivered or has failed."""
        undelivered = self._producer.flush(FLUSH_SECONDS)  # first: its callbacks count failures, too
        self._report.failed += undelivered

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
        self._report_progress()

    def _report_progress(self) -> None:
        self._report.seconds = self._clock() - self._started
        self._on_progress(self._report)

    def _on_error(self, error: KafkaError) -> None:
        self._last_error = error.str()

    def _look_up(self, bootstrap: str) -> None:
        """Raises `BrokerUnavailable` or `TopicMissing` at once, rather than after a delivery timeout."""
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


class _Transactional(_Client):
    """A client that sends exactly once under its id `name`."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        topic: str,
        options: Mapping[str, str | int | float | bool],
        on_progress: Callable[[Report], None] | None,
        clock: Callable[[], float],
    ) -> None:
        options = {**options, "transactional.id": name, "transaction.timeout.ms": DELIVERY_TIMEOUT_MS}
        super().__init__(settings, topic, options, on_progress, clock)
        # The group that holds how far the sequence is; nobody consumes with it.
        self._group = Consumer(
            {**settings.kafka_client("producer"), "group.id": name, "enable.auto.commit": False, "log_level": 2}
        )
        self._open = False
        self._held = False  # True once a call has not returned in time: then nothing else may use the client
        self._visible = 0

    def _serve(self) -> None:
        if not self._held:
            super()._serve()

    def _send_all(self, messages: Iterable[Message]) -> None:
        self._producer.init_transactions(LOOK_UP_SECONDS)  # ends what a producer of this id left open
        self._report.committed_before = done = self._committed()
        begun = 0.0
        for message in islice(messages, done, None):
            if not self._open:
                self._producer.begin_transaction()
                self._open, begun = True, self._clock()
            self._send(message)
            done += 1
            if done % POLL_EVERY == 0:
                self._progress()
            if done % IN_TRANSACTION == 0 or self._clock() - begun >= TRANSACTION_SECONDS:
                self._commit(done)
        if self._open:
            self._commit(done)

    def _commit(self, done: int) -> None:
        """Ends the transaction, and with it notes that `done` messages of the sequence are sent."""
        sent = TopicPartition(self._topic, 0, done)
        group = self._group.consumer_group_metadata()
        try:
            answered(partial(self._producer.send_offsets_to_transaction, [sent], group, FLUSH_SECONDS), FLUSH_SECONDS)
        except Unanswered:
            self._held = True
            raise
        self._producer.commit_transaction(FLUSH_SECONDS)
        self._open, self._visible = False, self._report.acknowledged

    def _committed(self) -> int:
        """How many messages of the sequence have been committed under this id."""
        [sent] = self._group.committed([TopicPartition(self._topic, 0)], LOOK_UP_SECONDS)
        if sent.error is not None:
            raise KafkaException(sent.error)
        return max(0, sent.offset)

    def _settle(self) -> None:
        """Ends a transaction that is still open: nobody will have seen its messages."""
        report = self._report
        if self._open:
            if not self._held:
                self._producer.purge()
                with suppress(KafkaException):  # if this fails too, the next producer of the id ends it, or the broker
                    self._producer.abort_transaction(LOOK_UP_SECONDS)
                with suppress(KafkaException):  # raises what broke the client for good
                    self._producer.poll(0)
            report.acknowledged = self._visible
            report.failed = report.sent - self._visible
            if report.interrupted:  # on purpose: what was not committed was not sent
                report.sent, report.failed, self._first_failure = self._visible, 0, ""
        self._group.close()
