"""Dead letters and what becomes of them: reading their headers, and the policy of replay as a pure function.

The rule, per error class of the contract's `dead_letters.policy` (`attempts`, `base`, `cap`, `jitter`):

- A person decided (`producers.decisions`): that is done, whatever the policy says. `approve` and `edit` **retry** it,
  with `dl-attempt` one higher; `discard` sends it to the parked ones for good.
- Attempts used up, or `attempts: 0`: **park** it, for a person to decide.
- `dl-next-due-at` not reached: **wait**, unchanged.
- Due: **retry**, with `dl-attempt` one higher.
- `unknown_schema` is due as soon as the registry knows the letter's schema id, even before `dl-next-due-at`. While
  it does not, a letter is looked at when `dl-next-due-at` is reached, and each unsuccessful look is an attempt: it
  **waits** with `dl-attempt` one higher and `dl-next-due-at` moved on by the backoff. So a schema that never comes
  parks the letter after `attempts` looks, and one that comes late is picked up by the next run.
- A letter without readable headers, or `unknown_schema` without a schema id in its value, is parked: it must not
  hold up the others, and it must not get lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal, NamedTuple, get_args

from schemas.model import Backoff, ErrorClass
from schemas.wire import schema_id

Header = tuple[str, bytes | None]
Identity = tuple[str, str, bool]
"""`dl-id`, `dl-attempt`, and whether a person decided: letters that agree in all are the same letter sent twice."""
Fate = Literal["retry", "wait", "park", "discard", "drop"]
Verb = Literal["approve", "edit", "discard"]

PARKED_BECAUSE = "dl-parked-because"
"""Header that a parked letter has besides those of design §3: why it was given up."""

DECISION, DECIDED_BY, DECIDED_BECAUSE, DECIDED_AT = (
    "dl-decision",
    "dl-decided-by",
    "dl-decided-because",
    "dl-decided-at",
)
"""Headers of a letter that a person decided upon: a `Verb`, who, why and when (UTC)."""


class Letter(NamedTuple):
    """A record of `<stream>.dlq`: where it is, and all that must stay as it is. `timestamp` is Kafka's, in
    milliseconds, None if it has none."""

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
        """The letter with these headers set, in the place of old ones of those names; all others stay as they are."""
        kept = [(header[0], changes[header[0]].encode()) if header[0] in changes else header for header in self.headers]
        have = dict(kept)
        kept += [(name, value.encode()) for name, value in changes.items() if name not in have]
        return self._replace(headers=tuple(kept))

    @property
    def identity(self) -> Identity | None:
        """None if the letter does not say who it is."""
        headers = dict(self.headers)
        number, attempt = text(headers.get("dl-id")), text(headers.get("dl-attempt"))
        return (number, attempt, DECISION in headers) if number and attempt else None


class Decision(NamedTuple):
    """A letter's `fate`, and the `letter` to send: with changed headers, or the very same. `drop` is the fate of a
    copy; `decide`, which sees one letter at a time, never says so."""

    fate: Fate
    letter: Letter


def decide(
    letter: Letter, policy: Mapping[ErrorClass, Backoff], now: datetime, schema_exists: Callable[[int], bool]
) -> Decision:
    """What becomes of `letter` at `now` (UTC), by the rule of this module. `schema_exists` is asked only for letters
    of class `unknown_schema`; what it raises is passed on."""
    headers = dict(letter.headers)  # of repeated ones the last
    number, attempt = text(headers.get("dl-id")), attempts(headers)
    if DECISION in headers and number and attempt is not None:
        return _obeyed(letter, text(headers[DECISION]), attempt)
    error_class, due = _class(headers), _due(headers)
    if error_class is None or attempt is None or due is None or not number:
        return _park(letter, "its dl- headers are missing or unreadable")
    backoff = policy[error_class]
    if backoff.attempts == 0:
        return _park(letter, f"errors of class {error_class} are for a person to decide")
    if attempt >= backoff.attempts:
        return _park(letter, f"all {backoff.attempts} attempts are used up")
    if error_class == "unknown_schema":
        schema = schema_id(letter.value)
        if schema is None:
            return _park(letter, "its value names no schema")
        if not schema_exists(schema):
            return _looked(letter, number, attempt, backoff, now) if now >= due else Decision("wait", letter)
    elif now < due:
        return Decision("wait", letter)
    return _retry(letter, attempt)


def _obeyed(letter: Letter, verb: str | None, attempt: int) -> Decision:
    if verb in ("approve", "edit"):
        return _retry(letter, attempt)
    if verb == "discard":
        return Decision("discard", letter)
    return _park(letter, f"there is no decision {verb!r}")


def _retry(letter: Letter, attempt: int) -> Decision:
    return Decision("retry", letter.with_headers({"dl-attempt": str(attempt + 1)}))


def _looked(letter: Letter, number: str, attempt: int, backoff: Backoff, now: datetime) -> Decision:
    attempt += 1
    if attempt >= backoff.attempts:
        return _park(letter.with_headers({"dl-attempt": str(attempt)}), f"no such schema after {attempt} looks")
    due = instant(now + backoff.due_after(attempt, number))
    return Decision("wait", letter.with_headers({"dl-attempt": str(attempt), "dl-next-due-at": due}))


def _park(letter: Letter, because: str) -> Decision:
    return Decision("park", letter.with_headers({PARKED_BECAUSE: because}))


def instant(time: datetime) -> str:
    """`time` as dead-letter headers write it: ISO-8601 in UTC with a Z."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def moment(headers: Mapping[str, bytes | None], name: str) -> datetime | None:
    """The time in a header; None if it is missing, unreadable or has no time zone."""
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


_CLASSES: Mapping[bytes | None, ErrorClass] = {known.encode(): known for known in get_args(ErrorClass)}


def _class(headers: Mapping[str, bytes | None]) -> ErrorClass | None:
    return _CLASSES.get(headers.get("dl-error-class"))


def attempts(headers: Mapping[str, bytes | None]) -> int | None:
    """How often a letter was replayed, or its schema looked for; None if it does not say so."""
    value = headers.get("dl-attempt") or b""
    return int(value) if re.fullmatch(rb"[0-9]{1,9}", value) else None


def _due(headers: Mapping[str, bytes | None]) -> datetime | None:
    return moment(headers, "dl-next-due-at")
