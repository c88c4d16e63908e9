"""What people decide about parked letters, sent to the replay where it reads everything else: on `<stream>.dlq`.

A decision is the parked letter itself, bit by bit as it is on `<stream>.parked`, with four more headers that say what
was decided, by whom, why and when; for `edit` with another key and value. The replay does what it says inside its
transactions. Until then it is pending, and another decision about the same letter should be refused (`pending` has
them); where two are taken in the same instant, the first counts.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast, get_args

import fastavro
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from infra.settings import Settings
from producers.codec import Codec, registry, schema_id, writer_schema
from producers.transactions import Reader, SessionError, send
from schemas import sizes
from schemas.contract.examples import Misfit, encode
from schemas.contract.field_kinds import from_json
from schemas.contract.model import Contract
from schemas.contract.verdict import Judge
from schemas.dead_letter import (
    ATTEMPT,
    DECIDED_AT,
    DECIDED_BECAUSE,
    DECIDED_BY,
    DECISION,
    ID,
    Letter,
    Verb,
    instant,
    moment,
)
from schemas.errors import TerminalError, TransientError
from schemas.wire import HEADER, header
from schemas.wire import schema_id as schema_id_of

FLUSH_SECONDS = 60.0
LONGEST_TEXT = 500
"""Characters of a reason or a name: a letter with them must still fit into every topic."""


class DecisionError(TerminalError):
    """A decision cannot be taken; the message says what is wrong with it."""


class DecisionsNotSent(TransientError):
    """Not every decision reached Kafka. Sending all of them again is safe."""


class DecisionsUnknown(TransientError):
    """Kafka failed while the pending decisions were read."""


@dataclass(frozen=True)
class Parked:
    """A parked letter: its id and attempt, and its partition and offset on `<stream>.parked`."""

    id: str
    attempt: int
    partition: int
    offset: int

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Parked:
        """The parked letter of `row`, a row of the view `<stream>_letters` whose status is parked."""
        return cls(row["id"], row["attempt"], row["parked_partition"], row["parked_offset"])


@dataclass(frozen=True)
class Decision:
    """What a person decided about letters, and why; `at` is UTC. Raises `DecisionError` if who or why is blank or
    longer than `LONGEST_TEXT`."""

    verb: Verb
    by: str
    because: str
    at: datetime

    def __post_init__(self) -> None:
        for name, said in (("who decided", self.by), ("why", self.because)):
            if not said.strip():
                raise DecisionError(f"a decision about a dead letter needs to say {name}")
            if len(said) > LONGEST_TEXT:
                raise DecisionError(f"{name} is {len(said)} characters long; {LONGEST_TEXT} are allowed")

    def __str__(self) -> str:
        return f"{self.verb} by {self.by}: {self.because}"


def announce(
    contract: Contract,
    settings: Settings,
    parked: Collection[Parked],
    decision: Decision,
    edited: tuple[bytes, bytes] | None = None,
) -> int:
    """Sends `decision` about each of the `parked` letters, with the key and value of `edited` instead of their own, and
    returns their number. Raises `DecisionError` if a letter is not on the topic, and `DecisionsNotSent`."""
    failures: list[str] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            failures.append(error.str())

    try:
        producer = Producer(
            {
                **settings.kafka_client("replay"),
                "log_level": 2,  # errors are reported, not logged line by line
                "enable.idempotence": True,
                **sizes.producer(sizes.of_letters(contract)),
                "partitioner": "murmur2_random",
                "on_delivery": delivered,
            }
        )
        for known, letter in _read(contract, settings, parked):
            sent = letter if edited is None else letter._replace(key=edited[0], value=edited[1])
            # The letter's own headers may be unreadable, and the replay must know which letter is meant.
            who = {ID: known.id, ATTEMPT: str(known.attempt)}
            what = {
                DECISION: decision.verb,
                DECIDED_BY: decision.by,
                DECIDED_BECAUSE: decision.because,
                DECIDED_AT: instant(decision.at),
            }
            send(producer, contract.dlq_topic, sent.with_headers(who | what))
        left = producer.flush(FLUSH_SECONDS)
    except (KafkaException, SessionError) as error:
        raise DecisionsNotSent(
            f"Kafka failed while decisions were sent: {error}; decide again when it is up"
        ) from error
    if left or failures:
        raise DecisionsNotSent(
            f"{left + len(failures)} of {len(parked)} decisions did not reach {contract.dlq_topic}: "
            f"{failures[0] if failures else f'no answer within {FLUSH_SECONDS:.0f} s'}; decide again when Kafka is up"
        )
    return len(parked)


def pending(contract: Contract, settings: Settings) -> dict[str, Decision]:
    """The decisions that no replay has carried out yet, by the id of their letter. Raises `DecisionsUnknown`."""
    found: dict[str, Decision] = {}
    try:
        with Reader(settings, contract.dlq_topic, f"replay.{contract.stream}") as reader:
            ends = reader.ends()
            for partition, start in reader.committed(ends).items():
                for letter in reader.letters(partition, start, ends[partition], ends[partition]):
                    who, verb, at = letter.header(ID), letter.header(DECISION), moment(letter.about, DECIDED_AT)
                    if who and verb in get_args(Verb) and at:
                        by, because = letter.header(DECIDED_BY) or "?", letter.header(DECIDED_BECAUSE) or "?"
                        found.setdefault(who, Decision(cast("Verb", verb), by, because, at))
    except (KafkaException, SessionError) as error:
        raise DecisionsUnknown(f"Kafka failed while {contract.dlq_topic} was read for decisions: {error}") from error
    return found


def _read(contract: Contract, settings: Settings, parked: Collection[Parked]) -> Iterable[tuple[Parked, Letter]]:
    """Yields each of the `parked` letters with its record on `<stream>.parked`. Raises `DecisionError` if one is
    gone."""
    with Reader(settings, contract.parked_topic, f"replay.{contract.stream}.decisions") as reader:
        for partition in sorted({known.partition for known in parked}):
            wanted = {known.offset: known for known in parked if known.partition == partition}
            first, last = min(wanted), max(wanted)
            for letter in reader.letters(partition, first, last + 1, last + 1 - first):
                if letter.offset in wanted:
                    yield wanted.pop(letter.offset), letter
            if wanted:
                gone = next(iter(wanted.values()))
                raise DecisionError(
                    f"letter {gone.id} is not on {contract.parked_topic}, partition {partition}, offset {gone.offset}"
                )


def decoded(value: bytes | None, settings: Settings) -> dict[str, Any]:
    """Returns the record in a letter's value, read with the schema that its bytes name. Raises `DecisionError` if it
    cannot be decoded, and what `producers.codec` raises for the registry."""
    number = schema_id_of(value)
    if value is None or number is None:
        raise DecisionError("the value does not begin with 0x00 and the 4 bytes of a schema id")
    schema = writer_schema(registry(settings), number)
    if schema is None:
        raise DecisionError(f"the registry has no schema {number}")
    body = io.BytesIO(value[HEADER.size :])
    try:
        record: Any = fastavro.schemaless_reader(body, fastavro.parse_schema(schema), None)
    except Exception as error:  # a decoder of arbitrary bytes may raise anything
        raise DecisionError(f"its bytes are no record of schema {number}") from error
    if not isinstance(record, dict):
        raise DecisionError(f"schema {number} is not of a record")
    return record


def encoded(contract: Contract, settings: Settings, record: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Returns key and value of an edited `record` (JSON; timestamps in ISO-8601 with an offset), in the newest schema.
    Raises `DecisionError` if it does not fit or still breaks a rule, since the ingest would only reject it again."""
    try:
        event = from_json(contract.fields, record)
        body = encode(contract, event)
    except (Misfit, ValueError) as error:
        raise DecisionError(f"this is no event of stream {contract.stream}: {error}") from error
    number = schema_id(contract, registry(settings))
    value = header(number) + body
    verdict = Judge(contract, {number: contract.schema_now}).verdict(value)
    if verdict.error_class is not None:
        raise DecisionError(f"the edited record would be refused again: {verdict.reason}")
    assert verdict.record is not None
    return Codec(contract, number).key(verdict.record), value
