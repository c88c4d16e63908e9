"""Which hours a batch run recomputes, and how far numbers become final."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from spark.batch.plan import TouchedHour, plan
from spark.definitions.times import EmptyRange, literal, utc, whole_hours
from spark.lake.columnar import delta_instant
from spark.lake.publications import Publication, published_without, unique_run_id

LATENESS = timedelta(hours=1)
T0 = datetime(2024, 3, 31, tzinfo=UTC)
NOW = datetime(2024, 4, 2, tzinfo=UTC)


def at(hour: float, minute: float = 0) -> datetime:
    return T0 + timedelta(hours=hour, minutes=minute)


def touched(hour: int, minute: int = 30, new: int = 1) -> TouchedHour:
    return TouchedHour(at(hour), at(hour, minute), new)


def publication(hour: int, batch: int, run_id: str = "r") -> Publication:
    return Publication(run_id, "sales", at(hour), batch, 1, 1, NOW)


def test_hours_close_by_the_newest_event_less_the_allowed_lateness() -> None:
    found = plan([touched(0), touched(2), touched(4, 5)], 7, None, LATENESS)
    assert found.final_through == at(3)
    assert (found.new_hours, found.late_hours) == ((at(0), at(2)), ())
    assert found.replaced == f"(hour < {delta_instant(at(3))})"


def test_an_hour_that_ends_at_the_watermark_is_closed() -> None:
    assert plan([touched(0), touched(2, 0)], 7, None, LATENESS).final_through == at(1)


def test_nothing_is_closed_before_the_allowed_lateness_has_passed() -> None:
    found = plan([touched(0, 10)], 7, None, timedelta(hours=2))
    assert found.hours == 0
    assert found.final_through == T0 - timedelta(hours=2)


def test_a_late_row_dirties_its_hour_and_no_other() -> None:
    found = plan([touched(1, 15), touched(6, 30)], 9, publication(5, 7), LATENESS)
    assert (found.new_hours, found.late_hours) == ((), (at(1),))
    assert found.final_through == at(5)
    assert found.replaced == f"hour in ({delta_instant(at(1))})"


def test_forced_hours_are_recomputed_without_news() -> None:
    hours = [touched(hour, new=0) for hour in (1, 2, 3)] + [touched(4, new=3)]
    found = plan(hours, 9, publication(5, 7), LATENESS, forced=(at(2), at(4)))
    assert (found.new_hours, found.late_hours) == ((), (at(2), at(3), at(4)))
    assert found.final_through == at(5)
    assert plan(hours[:3], 9, publication(5, 7), LATENESS).is_idle


def test_times_are_taken_as_whole_hours() -> None:
    assert whole_hours(utc("2024-03-31T01:30"), utc("2024-03-31T04:00+01:00")) == (at(1), at(3))
    assert whole_hours(utc("2024-03-31T01:30"), utc("2024-03-31T01:31")) == (at(1), at(2))
    with pytest.raises(EmptyRange, match="there is no hour"):
        whole_hours(at(2), at(2))


def test_hours_that_closed_since_are_new_also_when_their_rows_are_old() -> None:
    found = plan([touched(5, new=0), touched(6, new=0), touched(8)], 9, publication(5, 7), LATENESS)
    assert (found.new_hours, found.late_hours) == ((at(5), at(6)), ())
    assert found.replaced == f"(hour >= {delta_instant(at(5))} and hour < {delta_instant(at(7))})"


def test_final_through_never_moves_back() -> None:
    found = plan([touched(1)], 9, publication(5, 7), LATENESS)
    assert found.final_through == at(5)


def test_without_new_rows_or_closed_hours_there_is_nothing_to_do() -> None:
    assert plan([], 7, publication(5, 7), LATENESS).is_idle
    assert plan([touched(5), touched(6, 20)], 8, publication(5, 7), LATENESS).is_idle
    assert plan([], 7, None, LATENESS).is_idle


def test_a_naive_time_is_no_literal() -> None:
    with pytest.raises(ValueError, match="aware"):
        literal(at(0).replace(tzinfo=None))


def test_hours_are_without_a_measure_until_they_are_published_with_it() -> None:
    def made(hour: int, run_id: str, *measures: str) -> Publication:
        return Publication(run_id, "sales", at(hour), hour, 1, 1, NOW + timedelta(hours=hour), measures=measures)

    log = [made(1, "r1", "a.n"), made(2, "r2", "a.n"), made(3, "r3", "a.n", "a.m"), made(4, "r4", "a.n", "a.m")]
    assert published_without(log, "a.m") == (at(2), {"r3", "r4"})
    assert published_without(log, "a.n") == (None, set())
    assert published_without([publication(1, 1)], "a.m") == (None, set()), "from before that was recorded"


def test_a_repeated_run_that_had_published_gets_an_id_of_its_own() -> None:
    published = [publication(1, 1, "r"), publication(2, 2, "r#2"), publication(3, 3, "s")]
    assert unique_run_id("r", published) == "r#3"
    assert unique_run_id("t", published) == "t"
