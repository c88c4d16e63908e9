"""What replays have done, read back from where they put it: every letter on `<stream>.retry` and `<stream>.parked`.

Replays write there in transactions, so the two topics are the one truth about what was sent again, given up and
discarded, whatever was killed when. Their records become rows of `system/moves`. (The audit's repair writes to the
retry topic as well: records that were no dead letters, and so have no attempt behind them.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from confluent_kafka import KafkaException

from infra.settings import Settings
from producers.transactions import Reader, SessionError
from schemas.contract.model import Contract
from schemas.dead_letter import (
    DECIDED_AT,
    DECIDED_BECAUSE,
    DECIDED_BY,
    DECISION,
    ERROR_CLASS,
    FIRST_FAILED_AT,
    ID,
    PARKED_BECAUSE,
    REASON,
    Letter,
    attempts,
    moment,
    text,
)
from schemas.errors import TransientError

BLOCK = 25_000
"""Moves that are in memory at a time."""

Columns = dict[str, list[Any]]


class MovesError(TransientError):
    """Kafka failed while the moves were read. What was recorded stays; the next run goes on from there."""


def moves(
    contract: Contract, settings: Settings, after: Mapping[tuple[str, int], int], block: int = BLOCK
) -> Iterator[Columns]:
    """Yields the moves of a stream's letters, `block` at most at a time, as columns of `system/moves` without `run_id`
    and `recorded_at`. `after` holds the last known offset of each (topic, partition). Raises `MovesError`."""
    letters: list[tuple[str, Letter]] = []
    for topic in (contract.retry_topic, contract.parked_topic):
        try:
            with Reader(settings, topic, f"replay.{contract.stream}.moves") as reader:
                for partition, end in reader.ends().items():
                    for letter in reader.letters(partition, after.get((topic, partition), -1) + 1, end, end):
                        if topic == contract.retry_topic and not attempts(letter.about):
                            continue  # sent again by a repair
                        # Of the others nothing but the headers is recorded, and a block of values is no small thing.
                        edited = letter.header(DECISION) == "edit"
                        letters.append((topic, letter if edited else letter._replace(key=None, value=None)))
                        if len(letters) == block:
                            yield _columns(contract, letters)
                            letters.clear()
        except (KafkaException, SessionError) as error:
            raise MovesError(f"Kafka failed while {topic} was read: {error}") from error
    if letters:
        yield _columns(contract, letters)


def _columns(contract: Contract, letters: list[tuple[str, Letter]]) -> Columns:
    headers = [letter.about for _, letter in letters]
    texts = {
        name: [text(its.get(header)) for its in headers]
        for name, header in {
            "error_class": ERROR_CLASS,
            "reason": REASON,
            "parked_because": PARKED_BECAUSE,
            "decision": DECISION,
            "decided_by": DECIDED_BY,
            "decided_because": DECIDED_BECAUSE,
        }.items()
    }
    decisions = texts["decision"]
    return texts | {
        "stream": [contract.stream] * len(letters),
        "status": [
            "replayed" if topic == contract.retry_topic else "discarded" if decision == "discard" else "parked"
            for (topic, _), decision in zip(letters, decisions, strict=True)
        ],
        "id": [
            text(its.get(ID)) or f"{topic}/{letter.partition}/{letter.offset}"
            for (topic, letter), its in zip(letters, headers, strict=True)
        ],
        "attempt": [attempts(its) or 0 for its in headers],
        "first_failed_at": [moment(its, FIRST_FAILED_AT) for its in headers],
        "decided_at": [moment(its, DECIDED_AT) for its in headers],
        "edited": [
            letter.value if decision == "edit" else None
            for (_, letter), decision in zip(letters, decisions, strict=True)
        ],
        "topic": [topic for topic, _ in letters],
        "partition": [letter.partition for _, letter in letters],
        "offset": [letter.offset for _, letter in letters],
    }
