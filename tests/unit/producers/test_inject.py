"""Injected faults: the accepted events stay the same set, rates and seeds hold, and time goes forward."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.codec import Codec, Message
from producers.inject import KINDS, WIRE_FAULTS, Faults, FaultsError, Injected, violations
from producers.sources import source
from schemas.contract.catalog import catalog
from schemas.contract.verdict import Judge

CONTRACT = catalog()["flights"]
CODEC = Codec(CONTRACT, len(CONTRACT.versions))  # the judge takes ids for the numbers of versions
MESSAGES = list(CODEC.messages(source("flights").first(300)))
VIOLATIONS = violations(CODEC)
JUDGE = Judge(CONTRACT)

rates = st.sampled_from([0.0, 0.01, 0.3, 1.0])
delays = st.sampled_from([None, timedelta(seconds=1), timedelta(minutes=7), timedelta(hours=5)])


@settings(max_examples=40, deadline=None)
@given(st.builds(Faults, rates, rates, rates, delays, st.integers(0, 2**32)), st.integers(0, 60))
def test_the_accepted_events_are_the_same_whatever_is_injected(faults: Faults, count: int) -> None:
    messages = MESSAGES[:count]
    injected = Injected(messages, faults, VIOLATIONS)
    out = list(injected)
    assert injected.counts == Counter(message.kind for message in out)
    assert set(injected.counts) <= set(KINDS)

    accepted = [message for message in out if JUDGE.verdict(message.value).error_class is None]
    sent = Counter((message.key, message.value) for message in accepted)
    assert sent.keys() == {(message.key, message.value) for message in messages}, "nothing lost, nothing new"
    assert sum(sent.values()) == count + injected.counts["duplicate"]
    assert injected.counts["event"] + injected.counts["late"] == count
    assert max(sent.values(), default=0) <= 2
    for message in out:
        expected = {"rule_violation": "rule", "unknown_schema": "unknown_schema", "bad_magic": "malformed",
                    "truncated": "malformed"}.get(message.kind)  # fmt: skip
        assert JUDGE.verdict(message.value).error_class == expected

    on_time = [message.event_time for message in out if message.kind == "event"]
    assert on_time == sorted(on_time)
    first = {}
    for place, message in enumerate(out):
        if message.kind in ("event", "late"):
            first[message.value] = place
        elif message.kind == "duplicate":
            assert first[message.value] < place, "a copy comes after what it copies"
    if faults.delay is not None:
        delay = faults.delay.total_seconds() * 1e6
        newest = 0
        for place, message in enumerate(out):
            if message.kind == "late":
                at_the_end = all(other.kind != "event" for other in out[place:])
                assert newest >= message.event_time + delay or at_the_end
            newest = max(newest, message.event_time)


def test_rates_are_shares_and_every_kind_occurs() -> None:
    messages = list(CODEC.messages(source("flights").first(20_000)))
    injected = Injected(messages, Faults(duplicates=0.01, late=0.02, malformed=0.04, seed=3), VIOLATIONS)
    values = Counter(message.value for message in injected if message.kind == "rule_violation")
    assert injected.counts["duplicate"] == pytest.approx(200, rel=0.3)
    assert injected.counts["late"] == pytest.approx(400, rel=0.3)
    for kind in (*WIRE_FAULTS, "rule_violation"):
        assert injected.counts[kind] == pytest.approx(200, rel=0.3)
    assert len(values) == len(CONTRACT.rules), "every rule is broken"


def test_the_seed_decides_and_one_rate_does_not_change_another() -> None:
    faults = Faults(duplicates=0.1, late=0.1, malformed=0.1, seed=7)
    assert list(Injected(MESSAGES, faults, VIOLATIONS)) == list(Injected(MESSAGES, faults, VIOLATIONS))
    only_late = Injected(MESSAGES, Faults(late=0.1, seed=7))
    assert {m.value for m in only_late if m.kind == "late"} == {
        m.value for m in Injected(MESSAGES, faults, VIOLATIONS) if m.kind == "late"
    }


def test_late_without_a_delay_comes_last() -> None:
    out = list(Injected(MESSAGES, Faults(late=0.2, delay=None, seed=1)))
    kinds = [message.kind for message in out]
    assert kinds == sorted(kinds)  # all events, then all late
    late = [message.event_time for message in out if message.kind == "late"]
    assert late == sorted(late)


def test_without_rules_malformed_is_of_the_other_kinds() -> None:
    injected = Injected(MESSAGES, Faults(malformed=1.0))
    list(injected)
    assert set(injected.counts) == {"event", *WIRE_FAULTS}
    empty_body = [Message(b"k", b"\0\0\0\0\1", 0)]
    assert {m.kind for s in range(20) for m in Injected(empty_body, Faults(malformed=1.0, seed=s))} == {
        "event",
        "bad_magic",
        "unknown_schema",
    }


@pytest.mark.parametrize("wrong", [{"late": 1.5}, {"duplicates": -0.1}, {"delay": timedelta()}])
def test_impossible_faults_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(FaultsError):
        Faults(**wrong)  # type: ignore[arg-type]
