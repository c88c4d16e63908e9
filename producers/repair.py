"""Sends records that Kafka holds and bronze lacks once more, to `<stream>.retry`, so that the ingest reads them again.

A record goes as it is: key, value, timestamp and headers. The headers `dl-id` and `dl-attempt` say which record it is
(`schemas.dead_letter.identity`): to the rest of the platform it is the one that was lost. It happens exactly once:
records are sent in transactions of `transactional.id` `repair.<stream>`; opening one ends any other repair's; and what
is on the retry topic by then and is not ingested yet is not sent again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from confluent_kafka import KafkaException

from infra.broker.offsets import Offsets
from infra.broker.ranges import Partition, Range
from infra.settings import Settings
from producers.replay import TRANSACTION_BYTES, TRANSACTION_LETTERS
from producers.transactions import Fenced, Session, SessionError, TooLarge
from schemas import sizes
from schemas.contract.model import Contract
from schemas.dead_letter import ATTEMPT, ID, Identity, Letter, identity
from schemas.errors import TransientError


class RepairError(TransientError):
    """A repair could not finish. What was committed stays; the next one sends what is left."""


def repair(
    contract: Contract, settings: Settings, missing: Mapping[Partition, Sequence[Range]], ingested: Offsets
) -> int:
    """Sends the `missing` records of `<stream>` and `<stream>.retry` and returns their number. `ingested` is the offset
    up to which each partition of the retry topic is in bronze.

    Raises `RepairError` if Kafka fails or another repair of the stream took over.
    """
    run = _Run(contract, missing, ingested)
    try:
        while not run.done:
            with Session(
                settings, contract.retry_topic, f"repair.{contract.stream}", sizes.of_letters(contract)
            ) as session:
                run.go(session)
    except Fenced as error:
        raise RepairError(f"another repair of {contract.stream} has taken over: {error}") from error
    except (KafkaException, SessionError) as error:
        raise RepairError(f"Kafka failed the repair of {contract.stream}: {error}; run it again") from error
    if run.refused:
        raise RepairError(
            f"{len(run.refused)} records are larger than {contract.retry_topic} takes, with the headers that say what "
            f"they are; {run.sent} were sent again. Raise max.message.bytes in {contract.stream}'s topic.configs, "
            "provision, and repair once more"
        )
    return run.sent


@dataclass
class _Run:
    """A repair, over one session or several: a session is void once the topic refused a record."""

    contract: Contract
    missing: Mapping[Partition, Sequence[Range]]
    ingested: Offsets
    sent: int = 0
    refused: set[Identity] = field(default_factory=set)
    done: bool = False

    def go(self, session: Session) -> None:
        """Sends what is left; unless it is `done` then, another session has to go on."""
        on_topic = {
            letter.identity
            for partition, end in session.ends().items()
            for letter in session.letters(partition, self.ingested.get((self.contract.retry_topic, partition), 0), end)
        }
        letters = (
            letter
            for letter in _lost(self.contract, session, self.missing)
            if letter.identity not in on_topic and letter.identity not in self.refused
        )
        while some := _transaction(letters):
            try:
                session.transaction([(self.contract.retry_topic, letter) for letter in some])
            except TooLarge as error:
                self.refused |= {who for at in error.refused if (who := some[at].identity)}
                return
            self.sent += len(some)
        self.done = True


def _transaction(letters: Iterator[Letter]) -> list[Letter]:
    """The next letters that are sent together: not many, and not many bytes."""
    some: list[Letter] = []
    held = 0
    while len(some) < TRANSACTION_LETTERS and held < TRANSACTION_BYTES and (letter := next(letters, None)):
        some.append(letter)
        held += sizes.of(letter.headers, letter.key, letter.value)
    return some


def _lost(contract: Contract, session: Session, missing: Mapping[Partition, Sequence[Range]]) -> Iterator[Letter]:
    """The missing records as they are sent: each to the partition it was in, so that a key's order is kept."""
    for (topic, partition), ranges in missing.items():
        for first, last in ranges:
            for letter in session.letters(partition, first, last + 1, topic=topic):
                id_, attempt = identity(contract, topic, partition, letter.offset, letter.headers)
                is_letter = topic == contract.retry_topic and letter.header(ID) is not None
                who = {ID: id_, ATTEMPT: str(attempt)}
                yield letter.with_headers(who) if is_letter else letter.sent_again_as(id_, attempt)
