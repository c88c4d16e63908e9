"""The state machine of velocity without Spark, against the definition read literally."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st
from pyspark.sql import Row
from pyspark.sql.streaming.tws_tester import TwsTester
from pyspark.sql.types import LongType

from spark.transforms.velocity import Crossings, Event, judged

WIDTH, LIMIT = 10, Decimal(3)

events = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 3)), min_size=1, max_size=30)


def by_definition(found: list[tuple[int, int]]) -> dict[int, int]:
    """Crossing to what was done."""
    instants = sorted({at for at, _ in found})
    done = {t: sum(amount for at, amount in found if t - WIDTH < at <= t) for t in instants}
    crossings, before = {}, None
    for t in instants:
        if done[t] > LIMIT and not (before is not None and t - before < WIDTH and done[before] > LIMIT):
            crossings[t] = done[t]
        before = t
    return crossings


def fed(batches: list[list[tuple[int, int]]], lateness: int) -> list[Event]:
    """What `judged` tells when events come in batches, with a watermark as Spark keeps it and the state that
    `Crossings` keeps."""
    kept: list[Event] = []
    told: list[Event] = []
    watermark, number = -(10**6), 0
    for batch in batches:
        kept = [event for event in kept if event.at > watermark - 2 * WIDTH]
        for at, amount in batch:
            number += 1
            if at > watermark:
                kept.append(Event(at, str(number), amount))
        if kept:
            kept, new = judged(kept, WIDTH, LIMIT, watermark - WIDTH)
            told += new
        watermark = max([watermark, *(at - lateness for at, _ in batch)])
    return told


@given(events, st.lists(st.integers(0, 30), max_size=5), st.integers(0, 5))
def test_events_in_order_are_told_as_the_definition_says_however_they_are_split(
    found: list[tuple[int, int]], cuts: list[int], lateness: int
) -> None:
    found = sorted(found)
    instants = [at for at, _ in found]
    # Events of one instant come together: a second batch of them would change what had been told.
    places = [0, *sorted(instants.index(instants[cut]) for cut in cuts if cut < len(found)), len(found)]
    batches = [found[start:end] for start, end in pairwise(places)]
    assert {event.at: event.amount for event in fed(batches, lateness)} == by_definition(found)


@example([(0, 1)] * 12 + [(2, 1), (11, 3), (10, 1)], [14])  # the last one splits a run that was told
@given(events, st.lists(st.integers(0, 30), max_size=5))
def test_in_whatever_order_they_come_each_run_above_the_limit_is_told_once_at_most(
    found: list[tuple[int, int]], cuts: list[int]
) -> None:
    places = [0, *sorted(cut for cut in cuts if cut < len(found)), len(found)]
    told = fed([found[start:end] for start, end in pairwise(places)], lateness=10**5)
    assert len({event.at for event in told}) == len(told)
    crossings = sorted(by_definition(found))
    assert len(told) >= len(crossings), "no run is missed while nothing is too late"
    assert all(crossings and crossings[0] <= event.at for event in told)


def test_the_state_of_a_key_is_bounded_while_it_is_busy_and_gone_when_it_has_been_silent() -> None:
    width = 1_000_000  # microseconds, as `_at`
    crossings = Crossings(["card"], width, Decimal(10**6), LongType())
    tester = TwsTester(crossings, timeMode="EventTime", eventTimeExtractor=lambda row: row["$at"] // 1000)
    kept = []
    for at in range(1_100, 60_000, 100):  # milliseconds: ten events a second for a minute, at most a second late
        tester.setWatermark(at - 1_000)
        tester.test("a", [Row(**{"$at": at * 1000, "$id": str(at), "$amount": 1})])
        state = tester.peekValueState("events", "a")
        assert state is not None
        kept.append(len(state[0]))
    assert max(kept) == kept[-1] == 10 + 2 * 10, "a second of lateness and twice the width"
    tester.setWatermark(59_900 + 2 * 1_000)
    assert tester.peekValueState("events", "a") is not None, "an event that comes now may still depend on the last one"
    tester.setWatermark(59_900 + 2 * 1_000 + 1)
    assert tester.peekValueState("events", "a") is None
