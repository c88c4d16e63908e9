"""What becomes of a dead letter, by error class, attempts, due time and the registry."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.replay_policy import Outcome, outcome
from schemas.contract.model import Backoff, ErrorClass
from schemas.dead_letter import DECISION, PARKED_BECAUSE, Letter, instant

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
POLICY: dict[ErrorClass, Backoff] = {
    "transient": Backoff(attempts=3, base=timedelta(seconds=30), cap=timedelta(hours=1), jitter=0),
    "unknown_schema": Backoff(attempts=4, base=timedelta(minutes=1), cap=timedelta(minutes=5), jitter=0),
    "malformed": Backoff(attempts=0),
    "rule": Backoff(attempts=0),
    "oversized": Backoff(attempts=9),
}
FOREIGN = (("trace", b"\xff\x00"), ("dl", None), ("trace", b""))


def letter(
    error_class: str = "transient", attempt: str = "0", due: str | None = None, value: bytes | None = None
) -> Letter:
    headers = {
        "dl-id": "flights/0/7",
        "dl-error-class": error_class,
        "dl-reason": "because",
        "dl-attempt": attempt,
        "dl-first-failed-at": "2024-05-01T11:00:00Z",
        "dl-next-due-at": instant(NOW) if due is None else due,
    }
    body = b"\0\0\0\0\x05body" if value is None else value
    return Letter(0, 1, b"k", body, 1000, (*FOREIGN, *((k, v.encode()) for k, v in headers.items())))


def decision(of: Letter, known: bool = False, now: datetime = NOW) -> Outcome:
    return outcome(of, POLICY, now, lambda number: known and number == 5)


@pytest.mark.parametrize(
    ("error_class", "attempt", "due_in", "known", "fate", "attempt_after"),
    [
        ("transient", 0, 0, False, "retry", 1),
        ("transient", 0, 1, False, "wait", 0),
        ("transient", 2, -60, False, "retry", 3),
        ("transient", 3, -60, False, "park", 3),
        ("transient", 3, 60, False, "park", 3),
        ("malformed", 0, -60, False, "park", 0),
        ("rule", 0, 60, False, "park", 0),
        ("oversized", 0, -60, False, "park", 0),
        ("unknown_schema", 0, 60, True, "retry", 1),
        ("unknown_schema", 3, 60, True, "retry", 4),
        ("unknown_schema", 4, 0, True, "park", 4),
        ("unknown_schema", 0, 60, False, "wait", 0),
        ("unknown_schema", 0, 0, False, "wait", 1),
        ("unknown_schema", 2, 0, False, "wait", 3),
        ("unknown_schema", 3, 0, False, "park", 4),
    ],
)
def test_the_rule(error_class: str, attempt: int, due_in: int, known: bool, fate: str, attempt_after: int) -> None:
    found = decision(letter(error_class, str(attempt), instant(NOW + timedelta(seconds=due_in))), known)
    assert found.fate == fate
    assert found.letter.header("dl-attempt") == str(attempt_after)
    assert (found.letter.header(PARKED_BECAUSE) is not None) == (fate == "park")


def test_looks_for_a_schema_back_off_and_end() -> None:
    """Looks after 1, 2, 4 and 5 (the cap) minutes; the fourth unsuccessful one parks."""
    current, now, waits = letter("unknown_schema"), NOW, []
    while (found := decision(current, now=now)).fate == "wait":
        due = datetime.fromisoformat(found.letter.header("dl-next-due-at") or "")
        waits.append((due - now) / timedelta(minutes=1))
        assert decision(found.letter, now=due - timedelta(seconds=1)) == Outcome("wait", found.letter)
        current, now = found.letter, due
    assert found.fate == "park"
    assert waits == [2, 4, 5]


@pytest.mark.parametrize("error_class", ["malformed", "rule", "transient", "unknown_schema", "?"])
@pytest.mark.parametrize(
    ("verb", "fate", "attempt_after"),
    [("approve", "retry", 10), ("edit", "retry", 10), ("discard", "discard", 9), ("ponder", "park", 10)],
)
def test_what_a_person_decided_is_done_whatever_the_policy_says(
    error_class: str, verb: str, fate: str, attempt_after: int
) -> None:
    """Attempts used up, not due, schema unknown: all the same."""
    parked = letter(error_class, "9", instant(NOW + timedelta(hours=1)))
    found = decision(parked.with_headers({DECISION: verb}))
    assert (found.fate, found.letter.header("dl-attempt")) == (fate, str(attempt_after))
    assert found.letter.header(DECISION) == verb


def test_a_decided_letter_is_another_than_the_one_it_is_about() -> None:
    """Else a copy of it that is read first would have the decision dropped as a repetition."""
    parked = letter()
    assert parked.identity != parked.with_headers({DECISION: "approve"}).identity
    assert parked.identity == parked._replace(offset=9, value=b"other").identity


def test_jitter_spreads_the_letters_of_one_outage_and_never_exceeds_the_backoff() -> None:
    backoff = Backoff(attempts=5, base=timedelta(minutes=1), cap=timedelta(minutes=10), jitter=0.25)
    for attempt, longest in ((0, 1), (3, 8), (9, 10)):
        waits = [
            backoff.due_after(attempt, f"flights/0/{number}") / timedelta(minutes=longest) for number in range(999)
        ]
        assert 0.75 <= min(waits) < 0.78
        assert 0.97 < max(waits) <= 1
        assert abs(sum(waits) / len(waits) - 0.875) < 0.02
    assert backoff.due_after(2, "a") == backoff.due_after(2, "a") != backoff.due_after(2, "b")
    assert Backoff(attempts=1, jitter=0).due_after(0, "a") == timedelta(minutes=1)


def test_the_registry_is_asked_only_for_unknown_schemas() -> None:
    def never(number: int) -> bool:
        raise AssertionError("asked")

    assert outcome(letter("transient"), POLICY, NOW, never).fate == "retry"
    assert outcome(letter("unknown_schema", "4"), POLICY, NOW, never).fate == "park"


@pytest.mark.parametrize(
    "broken",
    [
        letter("gremlins"),
        letter(attempt="many"),
        letter(attempt="-1"),
        letter(attempt="9" * 5000),
        letter(due="soon"),
        letter(due="2024-05-01T12:00:00"),
        letter("unknown_schema", value=b"\1\0\0\0\5"),
        letter("unknown_schema", value=b""),
        Letter(0, 0, None, None, None, ()),
        Letter(0, 0, None, None, None, (("dl-error-class", b"\xff"), ("dl-attempt", None))),
    ],
)
def test_a_letter_that_cannot_be_read_is_parked(broken: Letter) -> None:
    assert decision(broken).fate == "park"


@settings(deadline=None)
@given(
    st.sampled_from(["transient", "unknown_schema", "rule", "?"]),
    st.integers(-1, 6),
    st.integers(-1000, 1000),
    st.booleans(),
    st.lists(st.tuples(st.text(max_size=3), st.none() | st.binary(max_size=3)), max_size=3),
)
def test_nothing_but_the_dl_headers_changes(
    error_class: str, attempt: int, due_in: int, known: bool, foreign: list[tuple[str, bytes | None]]
) -> None:
    before = letter(error_class, str(attempt), instant(NOW + timedelta(seconds=due_in)))
    before = Letter(3, 9, before.key, before.value, 77, (*foreign, *before.headers, *foreign))
    found = decision(before, known)
    after = found.letter
    for part in ("partition", "offset", "key", "value", "timestamp"):
        assert getattr(after, part) == getattr(before, part)
    ours = {"dl-attempt", "dl-next-due-at", PARKED_BECAUSE}
    assert [h for h in after.headers if h[0] not in ours] == [h for h in before.headers if h[0] not in ours]
    for name in ("dl-id", "dl-error-class", "dl-reason", "dl-first-failed-at"):
        assert after.header(name) == before.header(name)
    if found.fate == "wait" and after.header("dl-attempt") == before.header("dl-attempt"):
        assert after is before


def test_the_last_of_repeated_headers_counts_and_the_others_are_the_producers() -> None:
    twice = Letter(0, 0, None, None, None, (*letter(attempt="9").headers, *letter(attempt="1").headers))
    found = decision(twice)
    assert found.fate == "retry"
    assert [v for k, v in found.letter.headers if k == "dl-attempt"] == [b"9", b"2"]


@pytest.mark.parametrize(("verb", "fate"), [("approve", "park"), ("edit", "retry"), ("discard", "discard")])
def test_of_a_record_that_no_memory_held_there_is_nothing_to_send_again(verb: str, fate: str) -> None:
    decided = letter("oversized").with_headers({DECISION: verb})
    assert decision(decided).fate == fate


def test_a_pointer_of_an_unknown_schema_is_due_when_its_schema_is_there() -> None:
    pointing = letter("unknown_schema", due=instant(NOW + timedelta(hours=1))).with_headers({"dl-schema-id": "5"})
    assert decision(pointing._replace(value=None), known=True).fate == "retry"
    assert decision(pointing._replace(value=None)).fate == "wait"
