"""Sends records that Kafka holds and bronze lacks once more, to `<stream>.retry`, so that the ingest reads them again.

A record goes as it is: key, value, timestamp and headers. The headers `dl-id` and `dl-attempt` say which record it is
(`schemas.dead_letter.identity`): to the rest of the platform it is the one that was lost. It happens exactly once:
records are sent in transactions of `transactional.id` `repair.<stream>`; opening one ends any other repair's; and what
is on the retry topic by then and is not ingested yet is not sent again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from confluent_kafka import KafkaException

from infra.broker.offsets import Offsets
from infra.broker.ranges import Partition, Range
from infra.settings import Settings
from producers.replay import TRANSACTION_LETTERS
from producers.transactions import Fenced, Session, SessionError
from schemas import sizes
from schemas.contract.model import Contract
from schemas.dead_letter import ATTEMPT, ID, Letter, identity
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
    try:
        with Session(
            settings, contract.retry_topic, f"repair.{contract.stream}", sizes.of_letters(contract)
        ) as session:
            waiting = {
                letter.identity
                for partition, end in session.ends().items()
                for letter in session.letters(partition, ingested.get((contract.retry_topic, partition), 0), end)
            }
            letters = (
                letter for letter in _lost(contract, session, missing) if letter.identity not in waiting
            )  # fmt: skip
            sent = 0
            while some := list(islice(letters, TRANSACTION_LETTERS)):
                session.transaction([(contract.retry_topic, letter) for letter in some])
                sent += len(some)
            return sent
    except Fenced as error:
        raise RepairError(f"another repair of {contract.stream} has taken over: {error}") from error
    except (KafkaException, SessionError) as error:
        raise RepairError(f"Kafka failed the repair of {contract.stream}: {error}; run it again") from error


def _lost(contract: Contract, session: Session, missing: Mapping[Partition, Sequence[Range]]) -> Iterator[Letter]:
    """The missing records as they are sent: each to the partition it was in, so that a key's order is kept."""
    for (topic, partition), ranges in missing.items():
        for first, last in ranges:
            for letter in session.letters(partition, first, last + 1, topic=topic):
                id_, attempt = identity(contract, topic, partition, letter.offset, letter.headers)
                is_letter = topic == contract.retry_topic and letter.header(ID) is not None
                who = {ID: id_, ATTEMPT: str(attempt)}
                yield letter.with_headers(who) if is_letter else letter.sent_again_as(id_, attempt)
