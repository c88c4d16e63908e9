"""Dead letters and what becomes of them: reading their headers, and the policy of replay as a pure function.

The rule, per error class of the contract's `dead_letters.policy` (`attempts`, `base`, `cap`):

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
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal, get_args

from schemas.model import Backoff, ErrorClass
from schemas.wire import schema_id

Header = tuple[str, bytes | None]
Fate = Literal["retry", "wait", "park", "drop"]

PARKED_BECAUSE = "dl-parked-because"
"""Header that a parked letter has besides those of design §3: why it was given up."""


@dataclass(frozen=True)
class Letter:
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
        for header, value in reversed(self.headers):
            if header == name and value is not None:
                try:
                    return value.decode()
                except UnicodeDecodeError:
                    return None
        return None

    def with_headers(self, changes: Mapping[str, str]) -> Letter:
        """The letter with these headers set, in the place of old ones of those names; all others stay as they are."""
        kept = [(name, changes[name].encode() if name in changes else value) for name, value in self.headers]
        have = {name for name, _ in kept}
        new = [(name, value.encode()) for name, value in changes.items() if name not in have]
        return replace(self, headers=(*kept, *new))

    @property
    def identity(self) -> tuple[str, str] | None:
        """`dl-id` and `dl-attempt`: two letters that agree in both are the same letter sent twice."""
        number, attempt = self.header("dl-id"), self.header("dl-attempt")
        return (number, attempt) if number and attempt else None


@dataclass(frozen=True)
class Decision:
    """A letter's `fate`, and the `letter` to send: with changed headers, or the very same. `drop` is the fate of a
    copy; `decide`, which sees one letter at a time, never says so."""

    fate: Fate
    letter: Letter


def decide(
    letter: Letter, policy: Mapping[ErrorClass, Backoff], now: datetime, schema_exists: Callable[[int], bool]
) -> Decision:
    """What becomes of `letter` at `now` (UTC), by the rule of this module. `schema_exists` is asked only for letters
    of class `unknown_schema`; what it raises is passed on."""
    error_class, attempt, due = _class(letter), _attempt(letter), _due(letter)
    if error_class is None or attempt is None or due is None or not letter.header("dl-id"):
        return _park(letter, "its dl- headers are missing or unreadable")
    backoff = policy[error_class]
    if backoff.attempts == 0:
        return _park(letter, f"errors of class {error_class} are for a person to decide")
    if attempt >= backoff.attempts:
        return _park(letter, f"all {backoff.attempts} attempts are used up")
    if error_class == "unknown_schema":
        number = schema_id(letter.value)
        if number is None:
            return _park(letter, "its value names no schema")
        if not schema_exists(number):
            return _looked(letter, attempt, backoff, now) if now >= due else Decision("wait", letter)
    elif now < due:
        return Decision("wait", letter)
    return Decision("retry", letter.with_headers({"dl-attempt": str(attempt + 1)}))


def _looked(letter: Letter, attempt: int, backoff: Backoff, now: datetime) -> Decision:
    attempt += 1
    if attempt >= backoff.attempts:
        return _park(letter.with_headers({"dl-attempt": str(attempt)}), f"no such schema after {attempt} looks")
    due = instant(now + backoff.delay(attempt))
    return Decision("wait", letter.with_headers({"dl-attempt": str(attempt), "dl-next-due-at": due}))


def _park(letter: Letter, because: str) -> Decision:
    return Decision("park", letter.with_headers({PARKED_BECAUSE: because}))


def instant(time: datetime) -> str:
    """`time` as dead-letter headers write it: ISO-8601 in UTC with a Z."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _class(letter: Letter) -> ErrorClass | None:
    text = letter.header("dl-error-class")
    return next((known for known in get_args(ErrorClass) if known == text), None)


def _attempt(letter: Letter) -> int | None:
    text = letter.header("dl-attempt") or ""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def _due(letter: Letter) -> datetime | None:
    try:
        time = datetime.fromisoformat(letter.header("dl-next-due-at") or "")
    except ValueError:
        return None
    return time if time.tzinfo else None
