"""How long a query stands still before it is tried again, and before somebody hears of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from infra.locks.driver_lease import LeaseLost, LeaseUnreachable
from schemas.errors import Halt, TerminalError
from spark.speed.standstill import DECISION_PAUSE, LONGEST_PAUSE, REPORTED_AFTER, Standstill

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    now = BEGAN

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def standstill(clock: Clock) -> Standstill:
    return Standstill("stream coffee", "look at its log", clock)


def pause(standstill: Standstill, clock: Clock) -> float:
    """The seconds until it is tried again."""
    began = clock.now
    while not standstill.due:
        clock.now += timedelta(seconds=1)
    return (clock.now - began).total_seconds()


def test_pauses_double_up_to_the_longest_and_begin_anew_after_a_finished_batch(
    standstill: Standstill, clock: Clock
) -> None:
    pauses = []
    for _ in range(8):
        with standstill.trying():
            assert not standstill.of(None)
        standstill.failed(OSError("disk"))
        pauses.append(pause(standstill, clock))
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]
    assert LONGEST_PAUSE.total_seconds() == 60
    standstill.finished()
    assert standstill.due
    standstill.failed(OSError("disk"))
    assert pause(standstill, clock) == 2


def test_who_waits_for_a_decision_is_tried_often_however_long_it_takes(standstill: Standstill, clock: Clock) -> None:
    for _ in range(20):
        standstill.failed(Halt("decide"))
        assert pause(standstill, clock) == DECISION_PAUSE.total_seconds()


def test_a_decision_is_reported_at_once_and_a_failure_when_it_lasts(standstill: Standstill, clock: Clock) -> None:
    standstill.failed(OSError("disk"))
    clock.now += REPORTED_AFTER - timedelta(seconds=1)
    standstill.failed(OSError("disk"))
    assert standstill.reported() is None
    clock.now += timedelta(seconds=1)
    assert standstill.reported() == {
        "why": "stream coffee stands still: OSError: disk\n"
        "It is tried again by itself; if it stays so, look at its log",
        "since": (BEGAN + REPORTED_AFTER).isoformat(),
    }
    standstill.failed(Halt("decide: this or that"))
    assert standstill.reported() == {"why": "decide: this or that", "since": clock.now.isoformat()}
    clock.now += timedelta(hours=1)
    with standstill.trying():
        pass
    assert standstill.reported() is None, "it runs"
    standstill.failed(Halt("decide: this or that"))
    assert standstill.reported() == {
        "why": "decide: this or that",
        "since": (BEGAN + REPORTED_AFTER).isoformat(),
    }, "the same decision, since the same moment"
    standstill.failed(Halt("decide: something else"))
    assert standstill.reported() == {"why": "decide: something else", "since": clock.now.isoformat()}


@pytest.mark.parametrize(
    ("error", "all_of_them"),
    [
        (LeaseLost("gone"), "gone"),
        (LeaseUnreachable("away"), None),
        (TerminalError("mine"), None),
        (KeyError("x"), None),
    ],
)
def test_a_lost_lease_alone_concerns_all(standstill: Standstill, error: Exception, all_of_them: str | None) -> None:
    standstill.failed(error)
    assert standstill.concerns_all() == all_of_them
