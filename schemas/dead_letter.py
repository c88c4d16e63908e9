"""A dead letter as it is on a topic: its headers, how they are read and written, and which record it stands for.

The producer's headers come first, as they were, whatever their names; the platform's follow, and begin at the last
`dl-id`. So a producer may use names that begin with `dl-` too.

A letter whose record is too large for its topic (`schemas.sizes`) is a *pointer*: it has no key, value and headers of
the producer's, and `dl-bronze` names the row of bronze that holds them. The replay puts them in again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from schemas import wire
from schemas.contract.model import Contract

Header = tuple[str, bytes | None]
Identity = tuple[str, str, bool]
"""`dl-id`, `dl-attempt`, and whether a person decided: letters that agree in all are the same letter sent twice."""
Place = tuple[str, int, int]
"""Topic, partition and offset of a row of bronze."""
Verb = Literal["approve", "edit", "discard"]


PREFIX = "dl-"
"""How the names of the platform's headers begin."""

ID = "dl-id"
"""`topic/partition/offset` of the record as it first came. It is the first of the platform's headers."""
ERROR_CLASS = "dl-error-class"
REASON = "dl-reason"
ATTEMPT = "dl-attempt"
"""How often the letter was replayed, or its schema looked for; a decimal number."""
FIRST_FAILED_AT = "dl-first-failed-at"
NEXT_DUE_AT = "dl-next-due-at"
PARKED_BECAUSE = "dl-parked-because"
"""Why a parked letter was given up."""

BRONZE = "dl-bronze"
"""`topic/partition/offset` of the row of bronze that holds what a pointer stands for. The next two are the digest of
that (`digest`) and its size in bytes; `dl-schema-id` is the id in its value, if that has one."""
BRONZE_DIGEST = "dl-bronze-sha256"
BRONZE_BYTES = "dl-bronze-bytes"
SCHEMA_ID = "dl-schema-id"
_POINTER = (BRONZE, BRONZE_DIGEST, BRONZE_BYTES, SCHEMA_ID)

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

    @property
    def about(self) -> dict[str, bytes | None]:
        """The platform's headers. In a letter without a `dl-id`, which is somebody else's, they are those of their
        names."""
        return dict(self.headers[_begin(self.headers) or 0 :])

    def header(self, name: str) -> str | None:
        """The text of the platform's header of that name; None if there is none, or it is not UTF-8."""
        return text(self.about.get(name))

    def with_headers(self, changes: Mapping[str, str]) -> Letter:
        """Returns the letter with the platform's headers `changes` set. They replace older ones of the same names; all
        others, and the producer's, stay as they are."""
        begin = _begin(self.headers)
        begin = len(self.headers) if begin is None else begin
        kept = [(name, changes[name].encode()) if name in changes else (name, value)
                for name, value in self.headers[begin:]]  # fmt: skip
        have = dict(kept)
        kept += [(name, value.encode()) for name, value in changes.items() if name not in have]
        return self._replace(headers=(*self.headers[:begin], *kept))

    def sent_again_as(self, id_: str, attempt: int) -> Letter:
        """Returns the letter of a record that is none yet: all its headers are the producer's."""
        return self._replace(headers=(*self.headers, (ID, id_.encode()), (ATTEMPT, str(attempt).encode())))

    @property
    def schema_id(self) -> int | None:
        """The schema id in the value, also in that of which this is a pointer; None if there is none."""
        noted = self.about.get(SCHEMA_ID) or b""
        return int(noted) if re.fullmatch(rb"[0-9]{1,10}", noted) else wire.schema_id(self.value)

    @property
    def pointer(self) -> Pointer | None:
        """Where in bronze the record is, None if this letter has it itself, or does not say where in so many words."""
        about = self.about
        place, digest = text(about.get(BRONZE)), text(about.get(BRONZE_DIGEST))
        found, size = re.fullmatch(r"(.+)/([0-9]{1,9})/([0-9]{1,18})", place or ""), about.get(BRONZE_BYTES) or b""
        if not found or not digest:
            return None
        bytes_ = int(size) if re.fullmatch(rb"[0-9]{1,12}", size) else 0
        return Pointer((found[1], int(found[2]), int(found[3])), digest, bytes_)

    def restored(self, stored: Stored) -> Letter:
        """Returns the letter of which this is a pointer, with what bronze has `stored`: a letter that a person edited
        keeps its own key and value."""
        about = [(name, value) for name, value in self.headers[_begin(self.headers) or 0 :] if name not in _POINTER]
        whole = self._replace(headers=(*producers_headers(stored.headers, stored.replayed), *about))
        return whole if self.about.get(DECISION) == b"edit" else whole._replace(key=stored.key, value=stored.value)

    @property
    def identity(self) -> Identity | None:
        """What distinguishes the letter from others; None if its `dl-id` or `dl-attempt` is missing or unreadable."""
        about = self.about
        number, attempt = text(about.get(ID)), text(about.get(ATTEMPT))
        return (number, attempt, DECISION in about) if number and attempt else None


def _begin(headers: Sequence[Header]) -> int | None:
    """Where the platform's headers begin: at the last `dl-id`. None if there is none."""
    return next((at for at in range(len(headers) - 1, -1, -1) if headers[at][0] == ID), None)


def producers_headers(headers: Sequence[Header], replayed: bool) -> tuple[Header, ...]:
    """Returns the producer's headers of a record. One that was not `replayed` to the retry topic has no others; in one
    that was, a header after the last `dl-id` is the producer's as well if its name is not like the platform's."""
    begin = _begin(headers) if replayed else None
    if begin is None:
        return tuple(headers)
    return (*headers[:begin], *(header for header in headers[begin:] if not header[0].startswith(PREFIX)))


class Pointer(NamedTuple):
    """The topic, partition and offset of a row of bronze; the digest of its record, and its size in bytes."""

    place: Place
    digest: str
    size: int


class Stored(NamedTuple):
    """A record as bronze has it; `replayed`: it came from the retry topic."""

    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...]
    replayed: bool

    @property
    def digest(self) -> str:
        """The SHA-256 of the lines `key`, `value` and then each header, each line the SHA-256 of its bytes, and `-` for
        null; a header has its name (UTF-8, hexadecimal) and a colon before it. The ingest computes the same in Spark
        (`spark.speed.dead_letters`)."""
        lines = [_sha256(self.key), _sha256(self.value)]
        lines += [f"{name.encode().hex()}:{_sha256(value)}" for name, value in self.headers]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _sha256(value: bytes | None) -> str:
    return "-" if value is None else hashlib.sha256(value).hexdigest()


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
