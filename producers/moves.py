"""What replays have done, read back from where they put it: every letter on `<stream>.retry` and `<stream>.parked`.

Only replays write there, in transactions, so the two topics are the one truth about what was sent again, given up and
discarded, whatever was killed when. Their records become rows of `system/moves`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from confluent_kafka import KafkaException

from infra.settings import Settings
from producers.letters import (
    DECIDED_AT,
    DECIDED_BECAUSE,
    DECIDED_BY,
    DECISION,
    PARKED_BECAUSE,
    Letter,
    moment,
    text,
)
from producers.transactions import Reader, SessionError
from schemas.errors import TransientError
from schemas.model import Contract

BLOCK = 50_000
"""Rows that are in memory at a time."""


class MovesError(TransientError):
    """Kafka failed while the moves were read. What was recorded stays; the next run goes on from there."""


def moves(
    contract: Contract, settings: Settings, after: Mapping[tuple[str, int], int], block: int = BLOCK
) -> Iterator[list[dict[str, Any]]]:
    """The moves of a stream's letters, as rows of `system/moves` without `run_id` and `recorded_at`, in lists of
    `block` at most. `after` holds the last known offset of each (topic, partition). Raises `MovesError`."""
    rows: list[dict[str, Any]] = []
    for topic in (contract.retry_topic, contract.parked_topic):
        try:
            with Reader(settings, topic, f"replay.{contract.stream}.moves") as reader:
                for partition, end in reader.ends().items():
                    for letter in reader.letters(partition, after.get((topic, partition), -1) + 1, end, end):
                        rows.append(_row(contract, topic, letter))
                        if len(rows) == block:
                            yield rows
                            rows = []
        except (KafkaException, SessionError) as error:
            raise MovesError(f"Kafka failed while {topic} was read: {error}") from error
    if rows:
        yield rows


def _row(contract: Contract, topic: str, letter: Letter) -> dict[str, Any]:
    headers = dict(letter.headers)
    decision, attempt = text(headers.get(DECISION)), text(headers.get("dl-attempt")) or ""
    parked = "discarded" if decision == "discard" else "parked"
    return {
        "stream": contract.stream,
        "status": "replayed" if topic == contract.retry_topic else parked,
        "id": text(headers.get("dl-id")) or f"{topic}/{letter.partition}/{letter.offset}",
        "attempt": int(attempt) if attempt.isdecimal() and len(attempt) < 10 else 0,
        "error_class": text(headers.get("dl-error-class")),
        "reason": text(headers.get("dl-reason")),
        "first_failed_at": moment(headers, "dl-first-failed-at"),
        "parked_because": text(headers.get(PARKED_BECAUSE)),
        "decision": decision,
        "decided_by": text(headers.get(DECIDED_BY)),
        "decided_because": text(headers.get(DECIDED_BECAUSE)),
        "decided_at": moment(headers, DECIDED_AT),
        "edited": letter.value if decision == "edit" else None,
        "topic": topic,
        "partition": letter.partition,
        "offset": letter.offset,
    }
