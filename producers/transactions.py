"""Reading the letters of one topic, and a transactional producer that belongs to it: read, send and commit as one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType

from confluent_kafka import (
    OFFSET_BEGINNING,
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from infra.broker.bounded import Unanswered, answered
from infra.settings import Settings
from schemas import sizes
from schemas.dead_letter import Header, Letter

SECONDS = 30.0
"""Seconds that an answer of Kafka may take."""
TRANSACTION_TIMEOUT_MS = 60_000
"""Milliseconds after which the broker aborts the transaction of a process that vanished, so that readers can go on."""
ANY_PARTITION = -1
"""A partition's number that lets the record's key decide."""
_AT_ONCE = 16 * 1024 * 1024
"""Bytes of values that are taken from the consumer at once."""
Delivered = Callable[[KafkaError | None, Message], None]
FENCED = (KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED)


class SessionError(Exception):
    """Kafka stopped answering in the middle of a read."""


class TooLarge(Exception):
    """A topic refused records for their size. The transaction is void, and so is the session: a producer of librdkafka
    that had a record refused must raise its epoch, and its next transaction may be out of order or time out. `refused`
    has the positions of all that the topic refuses among those that were to be sent."""

    def __init__(self, refused: Sequence[int]) -> None:
        super().__init__(f"{len(refused)} records are larger than their topic takes")
        self.refused = refused


class Fenced(Exception):
    """A newer producer with the same transactional id is at work."""


class Reader:
    """Reads the committed letters of `topic`. Partitions are assigned, not subscribed to: the group `name` only holds
    offsets. Every method raises KafkaException."""

    def __init__(self, settings: Settings, topic: str, name: str) -> None:
        self.topic = topic
        self.position = 0
        """Offset after the last record that `letters` passed, in the partition it reads."""
        self._consumer = Consumer(
            {
                **settings.kafka_client("replay"),
                "reconnect.backoff.ms": 500,
                "group.id": name,
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                **sizes.consumer(),
                # What is fetched ahead is memory; a partition of a million letters must not be in it whole.
                "queued.max.messages.kbytes": 16 * 1024,
                "fetch.queue.backoff.ms": 5,
            }
        )

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the consumer. What was not committed is read again by the next one."""
        self._consumer.close()

    def ends(self) -> dict[int, int]:
        """Returns the end of each partition: the offset behind the last record that is committed."""
        partitions = self._consumer.list_topics(self.topic, SECONDS).topics[self.topic]
        if partitions.error is not None:
            raise KafkaException(partitions.error)
        ends = {}
        for number in partitions.partitions:
            _, ends[number] = self._consumer.get_watermark_offsets(TopicPartition(self.topic, number), SECONDS)
        return ends

    def committed(self, partitions: Iterable[int]) -> dict[int, int]:
        """Returns the offset from which to go on in each of `partitions`; `OFFSET_BEGINNING` where none is
        committed."""
        answers = self._consumer.committed([TopicPartition(self.topic, number) for number in partitions], SECONDS)
        for answer in answers:
            if answer.error is not None:
                raise KafkaException(answer.error)
        return {answer.partition: answer.offset if answer.offset >= 0 else OFFSET_BEGINNING for answer in answers}

    def letters(
        self, partition: int, start: int, end: int, most: int | None = None, topic: str | None = None
    ) -> Iterator[Letter]:
        """Yields the letters of `partition` (of another `topic`, if it is given) from `start` to before `end`, at most
        `most` of them. `position` moves along with them.

        Raises `SessionError` if nothing comes though the end is not reached.
        """
        if start >= end:
            self.position = end
            return
        self.position = start
        topic = topic or self.topic
        most = end - max(start, 0) if most is None else most
        self._consumer.assign([TopicPartition(topic, partition, start)])
        found, held = 0, 0
        heard = time.monotonic()
        while found < most and self.position < end:
            # No more at once than is small in memory, by the size of those read so far.
            some = max(1, min(1000, _AT_ONCE * found // max(held, 1))) if found else 100
            for message in self._consumer.consume(min(some, most - found), 0.1):
                heard = time.monotonic()
                error = message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                offset = message.offset() or 0
                if error is not None or offset >= end:  # what is left before the end are marks of transactions
                    self.position = end
                    break
                found += 1
                self.position = offset + 1
                letter = _letter(message)
                held += len(letter.value or b"")
                yield letter
            if time.monotonic() - heard > SECONDS:
                raise SessionError(f"{topic}/{partition} is silent at offset {self.position}, before its end")
        self._consumer.unassign()

    def commit_with(self, producer: Producer, partition: int, offset: int) -> None:
        """Makes `offset` the one to go on from, as part of the open transaction of `producer`. Raises `Unanswered`
        after `SECONDS`."""
        consumed = TopicPartition(self.topic, partition, offset)
        group = self._consumer.consumer_group_metadata()
        answered(partial(producer.send_offsets_to_transaction, [consumed], group, SECONDS), SECONDS)


class Session(Reader):
    """A reader of `topic` that writes in transactions of the same `name`.

    Opening a session fences off any other of the same name and ends its transaction; the offsets are read after that,
    so they no longer change. The transactional id alone decides who may commit. Once a method raised KafkaException,
    the session must be closed. `limit` is what the topics take that are written to (`max.message.bytes`).
    """

    def __init__(self, settings: Settings, topic: str, name: str, limit: int) -> None:
        self._limit = limit
        self._errors: list[str] = []
        self._unanswered = False
        self._options = {
            **settings.kafka_client("replay"),
            "reconnect.backoff.ms": 500,
            "transactional.id": name,
            "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
            **sizes.producer(limit),
            "partitioner": "murmur2_random",
            "error_cb": lambda error: self._errors.append(error.str()),
        }
        self._producer = Producer(self._options)
        super().__init__(settings, topic, name)

    def __enter__(self) -> Session:
        try:
            with _fencing():
                self._producer.init_transactions(SECONDS)
        except BaseException as error:
            self.close()
            if isinstance(error, KafkaException) and self._errors:
                raise SessionError(f"{error.args[0].str()}; {self._errors[-1]}") from error
            raise
        return self

    def close(self) -> None:
        """Closes consumer and producer. A transaction that is still open ends here, or with the next session."""
        super().close()
        self._close_producer()

    def _close_producer(self) -> None:
        if self._unanswered:
            return  # a call of the producer's never returned; the next session ends its transaction
        with contextlib.suppress(KafkaException):  # its transaction is over, or the next session ends it
            self._producer.purge()
            self._producer.close()

    def transaction(self, letters: Sequence[tuple[str, Letter]], offsets: Mapping[int, int] | None = None) -> None:
        """Sends `letters`, each with its topic, and commits the `offsets` to go on from, by partition, all or nothing.
        A letter for the session's own topic stays in its partition. Raises KafkaException (whether the transaction was
        committed may be unknown then; the next session's `committed` says it), `Fenced`, and `TooLarge`."""
        answers: dict[int, KafkaError | None] = {}
        # Others fit, and a delivery that is reported is a copy of the record.
        large = {
            position
            for position, (_, letter) in enumerate(letters)
            if sizes.of(letter.headers, letter.key, letter.value) > self._limit // 2
        }
        with _fencing():
            self._producer.begin_transaction()
            try:
                for position, (topic, letter) in enumerate(letters):
                    self._send(topic, letter, partial(_note, answers, position) if position in large else None)
                for partition, offset in (offsets or {}).items():
                    self.commit_with(self._producer, partition, offset)
                self._producer.commit_transaction(SECONDS)
            except Unanswered:
                self._unanswered = True
                raise
            except BaseException as error:
                self._producer.poll(0)  # what became of each letter may not have been reported yet
                if isinstance(error, KafkaException) and (refused := _refused(answers)):
                    # What was behind the first one that is refused did not reach the topic.
                    taken = {position for position, answer in answers.items() if answer is None}
                    rest = sorted(large - taken - refused)
                    raise TooLarge(sorted(refused | self._refused_of(letters, rest))) from error
                with contextlib.suppress(KafkaException):  # if this fails too, the next session or the broker aborts
                    self._producer.abort_transaction(5.0)
                raise

    def _refused_of(self, letters: Sequence[tuple[str, Letter]], positions: Sequence[int]) -> set[int]:
        """Returns those of `positions` whose letters a topic refuses for their size: each is sent, in transactions that
        nobody commits. Raises as `transaction` does."""
        refused: set[int] = set()
        usable = False
        for position in positions:
            if not usable:
                self._close_producer()
                self._producer = Producer(self._options)
                self._producer.init_transactions(SECONDS)
                self._producer.begin_transaction()
            answers: dict[int, KafkaError | None] = {}
            topic, letter = letters[position]
            self._send(topic, letter, partial(_note, answers, position))
            if self._producer.flush(SECONDS):
                raise SessionError(f"Kafka does not say whether {topic} takes a letter of its size")
            usable = answers[position] is None
            refused |= _refused(answers)
        return refused

    def _send(self, topic: str, letter: Letter, delivered: Delivered | None = None) -> None:
        send(self._producer, topic, letter, letter.partition if topic == self.topic else ANY_PARTITION, delivered)


def _note(answers: dict[int, KafkaError | None], position: int, error: KafkaError | None, message: Message) -> None:
    answers[position] = error


def _refused(answers: Mapping[int, KafkaError | None]) -> set[int]:
    return {position for position, error in answers.items() if error and error.code() == KafkaError.MSG_SIZE_TOO_LARGE}


def send(
    producer: Producer, topic: str, letter: Letter, partition: int = ANY_PARTITION, delivered: Delivered | None = None
) -> None:
    """Hands `letter` to `producer` as it is, waiting while the queue is full. `delivered` is called with what becomes
    of it. Raises KafkaException."""
    watched = {} if delivered is None else {"on_delivery": delivered}
    while True:
        try:
            producer.produce(
                topic,
                letter.value,
                letter.key,
                partition,
                timestamp=letter.timestamp or 0,  # 0 lets Kafka set its own
                headers=list(letter.headers),
                **watched,
            )
            return
        except BufferError:
            producer.poll(0.5)


@contextlib.contextmanager
def _fencing() -> Iterator[None]:
    """Raises `Fenced` for the errors by which Kafka says that a newer producer has the transactional id."""
    try:
        yield
    except KafkaException as error:
        if error.args[0].code() in FENCED:
            raise Fenced(error.args[0].str()) from error
        raise


def _letter(message: Message) -> Letter:
    kind, timestamp = message.timestamp()
    headers: list[Header] = message.headers() or []  # type: ignore[assignment]  # as read they are never a mapping
    return Letter(
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        key=message.key(),
        value=message.value(),
        timestamp=timestamp if kind != TIMESTAMP_NOT_AVAILABLE else None,
        headers=tuple(headers),
    )
