"""A dead letter as it is on a topic: its headers, how they are read and written, and which record it stands for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from schemas.contract.model import Contract

Header = tuple[str, bytes | None]
Identity = tuple[str, str, bool]
"""`dl-id`, `dl-attempt`, and whether a person decided: letters that agree in all are the same letter sent twice."""
Verb = Literal["approve", "edit", "discard"]


PREFIX = "dl-"
"""How the name of every header begins that the platform itself sets; all others are the producer's."""

ID = "dl-id"
"""`topic/partition/offset` of the record as it first came."""
ERROR_CLASS = "dl-error-class"
REASON = "dl-reason"
ATTEMPT = "dl-attempt"
"""How often the letter was replayed, or its schema looked for; a decimal number."""
FIRST_FAILED_AT = "dl-first-failed-at"
NEXT_DUE_AT = "dl-next-due-at"
PARKED_BECAUSE = "dl-parked-because"
"""Why a parked letter was given up."""

DECISION = "dl-decision"
"""A `Verb`: what a person decided about the letter. The next three say who, why and when (UTC)."""
DECIDED_BY = "dl-decided-by"
DECIDED_BECAUSE = "dl-decided-because"
DECIDED_AT = "dl-decided-at"


class Letter(NamedTuple):
    """A record of `<stream>.dlq`: where it is, and all that must stay as it is. `timestamp` is Kafka's, in milliseconds
    since 1970 UTC; None if the record has none."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int | None
    headers: tuple[Header, ...]

    def header(self, name: str) -> str | None:
        """The text of the last header of that name; None if there is none, or it is not UTF-8."""
        return text(dict(self.headers).get(name))

    def with_headers(self, changes: Mapping[str, str]) -> Letter:
        """Returns the letter with the headers `changes` set. They replace older headers of the same names; all others
        stay as they are."""
        kept = [(header[0], changes[header[0]].encode()) if header[0] in changes else header for header in self.headers]
        have = dict(kept)
        kept += [(name, value.encode()) for name, value in changes.items() if name not in have]
        return self._replace(headers=tuple(kept))

    @property
    def identity(self) -> Identity | None:
        """What distinguishes the letter from others; None if its `dl-id` or `dl-attempt` is missing or unreadable."""
        headers = dict(self.headers)
        number, attempt = text(headers.get(ID)), text(headers.get(ATTEMPT))
        return (number, attempt, DECISION in headers) if number and attempt else None


def instant(time: datetime) -> str:
    """`time` as dead-letter headers write it: ISO-8601 in UTC with a Z."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def moment(headers: Mapping[str, bytes | None], name: str) -> datetime | None:
    """The time in the header `name`, with its time zone; None if it is missing, unreadable or has no time zone."""
    if (value := text(headers.get(name))) is None:
        return None
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        return None
    return time if time.tzinfo else None


def text(value: bytes | None) -> str | None:
    """A header's value as text; None if there is none, or it is not UTF-8."""
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def attempts(headers: Mapping[str, bytes | None]) -> int | None:
    """How often a letter was replayed, or its schema looked for; None if the header is missing or is no number."""
    value = headers.get(ATTEMPT) or b""
    return int(value) if re.fullmatch(rb"[0-9]{1,9}", value) else None


def identity(contract: Contract, topic: str, partition: int, offset: int, headers: Sequence[Header]) -> tuple[str, int]:
    """Returns the `dl-id` and the attempt of the record at `offset`. A record that was replayed to the retry topic is
    the letter that its headers name; every other one is itself: `topic/partition/offset`, attempt 0."""
    letter = Letter(partition, offset, None, None, None, tuple(headers) if topic == contract.retry_topic else ())
    attempt = letter.header(ATTEMPT) or ""
    return letter.header(ID) or f"{topic}/{partition}/{offset}", int(attempt) if attempt.isdecimal() else 0
