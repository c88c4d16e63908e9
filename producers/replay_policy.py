"""The policy of replay as a pure function: what becomes of a dead letter, from its headers and the time.

The rule, per error class of the contract's `dead_letters.policy` (`attempts`, `base`, `cap`, `jitter`):

- A person decided (`producers.decisions`): that is done, whatever the policy says. `approve` and `edit` **retry** it,
  with `dl-attempt` one higher; `discard` sends it to the parked ones for good. What cannot be done is an attempt too:
  the letter is parked with `dl-attempt` one higher, so that people can decide about it once more.
- Attempts used up, or `attempts: 0`: **park** it, for a person to decide.
- `dl-next-due-at` not reached: **wait**, unchanged.
- `oversized`: **park** it, and so again if a person approves it, because the platform has nothing of it to send.
- Due: **retry**, with `dl-attempt` one higher.
- `unknown_schema` is due as soon as the registry knows the letter's schema id, even before `dl-next-due-at`. While
  it does not, a letter is looked at when `dl-next-due-at` is reached, and each unsuccessful look is an attempt: it
  **waits** with `dl-attempt` one higher and `dl-next-due-at` moved on by the backoff. So a schema that never comes
  parks the letter after `attempts` looks, and one that comes late is picked up by the next run.
- A letter without readable headers, or `unknown_schema` without a schema id in its value, is parked: it must not
  hold up the others, and it must not get lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Literal, NamedTuple, get_args

from schemas.contract.model import Backoff, ErrorClass
from schemas.dead_letter import (
    ATTEMPT,
    DECISION,
    ERROR_CLASS,
    ID,
    NEXT_DUE_AT,
    PARKED_BECAUSE,
    Letter,
    attempts,
    instant,
    moment,
    text,
)

Fate = Literal["retry", "wait", "park", "discard", "drop"]


class Outcome(NamedTuple):
    """A letter's `fate`, and the `letter` to send: with changed headers, or the very same. `drop` is the fate of a
    copy; `outcome`, which sees one letter at a time, never gives it."""

    fate: Fate
    letter: Letter


def outcome(
    letter: Letter, policy: Mapping[ErrorClass, Backoff], now: datetime, schema_exists: Callable[[int], bool]
) -> Outcome:
    """Returns what becomes of `letter` at `now` (UTC), by the rule of this module. `schema_exists` is asked only for
    letters of class `unknown_schema`; what it raises is passed on."""
    headers = letter.about
    number, attempt = text(headers.get(ID)), attempts(headers)
    if DECISION in headers and number and attempt is not None:
        return _obeyed(letter, text(headers[DECISION]), attempt, headers.get(ERROR_CLASS) == b"oversized")
    error_class, due = _class(headers), _due(headers)
    if error_class is None or attempt is None or due is None or not number:
        return _park(letter, "its dl- headers are missing or unreadable")
    backoff = policy[error_class]
    if backoff.attempts == 0 or error_class == "oversized":  # nothing of it could be sent
        return _park(letter, f"errors of class {error_class} are for a person to decide")
    if attempt >= backoff.attempts:
        return _park(letter, f"all {backoff.attempts} attempts are used up")
    if error_class == "unknown_schema":
        schema = letter.schema_id
        if schema is None:
            return _park(letter, "its value names no schema")
        if not schema_exists(schema):
            return _looked(letter, number, attempt, backoff, now) if now >= due else Outcome("wait", letter)
    elif now < due:
        return Outcome("wait", letter)
    return _retry(letter, attempt)


def _obeyed(letter: Letter, verb: str | None, attempt: int, without_bytes: bool) -> Outcome:
    if verb == "approve" and without_bytes:
        return parked(letter, "its bytes are on Kafka alone, under its id: it can be edited or discarded")
    if verb in ("approve", "edit"):
        return _retry(letter, attempt)
    if verb == "discard":
        return Outcome("discard", letter)
    return parked(letter, f"there is no decision {verb!r}")


def _retry(letter: Letter, attempt: int) -> Outcome:
    return Outcome("retry", letter.with_headers({ATTEMPT: str(attempt + 1)}))


def _looked(letter: Letter, number: str, attempt: int, backoff: Backoff, now: datetime) -> Outcome:
    attempt += 1
    if attempt >= backoff.attempts:
        return _park(letter.with_headers({ATTEMPT: str(attempt)}), f"no such schema after {attempt} looks")
    due = instant(now + backoff.due_after(attempt, number))
    return Outcome("wait", letter.with_headers({ATTEMPT: str(attempt), NEXT_DUE_AT: due}))


def parked(letter: Letter, because: str) -> Outcome:
    """Returns the outcome of a `letter`, as it was read, that cannot be sent. A person's decision about it is used up:
    the same attempt is decided upon once (`spark.lake.letter_moves.decided`), so the next one is another attempt."""
    attempt = attempts(letter.about)
    if DECISION in letter.about and attempt is not None:
        letter = letter.with_headers({ATTEMPT: str(attempt + 1)})
    return _park(letter, because)


def _park(letter: Letter, because: str) -> Outcome:
    return Outcome("park", letter.with_headers({PARKED_BECAUSE: because}))


_CLASSES: Mapping[bytes | None, ErrorClass] = {known.encode(): known for known in get_args(ErrorClass)}


def _class(headers: Mapping[str, bytes | None]) -> ErrorClass | None:
    return _CLASSES.get(headers.get(ERROR_CLASS))


def _due(headers: Mapping[str, bytes | None]) -> datetime | None:
    return moment(headers, NEXT_DUE_AT)
