"""The driver's watch over the machine's clock."""

from __future__ import annotations

from dataclasses import dataclass

from spark.speed.clock import TOLERATED, Clock


@dataclass
class Hands:
    """A wall clock and a steady one, in seconds."""

    wall: float = 1_800_000_000.0
    steady: float = 10.0

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.steady)

    def go(self, seconds: float, jump: float = 0.0) -> None:
        self.wall += seconds + jump
        self.steady += seconds


def test_time_that_goes_by_is_no_jump() -> None:
    hands = Hands()
    clock = hands.clock()
    hands.go(3600)
    assert clock.set_back() == 0


def test_a_clock_that_is_set_back_is_told_once() -> None:
    hands = Hands()
    clock = hands.clock()
    hands.go(1, jump=-3600)
    assert round(clock.set_back()) == 3600
    hands.go(1)
    assert clock.set_back() == 0


def test_a_clock_that_was_set_forward_and_is_put_right_is_set_back_too() -> None:
    hands = Hands()
    clock = hands.clock()
    hands.go(1, jump=3600)
    assert clock.set_back() == 0
    hands.go(1, jump=-3600)
    assert round(clock.set_back()) == 3600


def test_what_is_corrected_in_small_steps_is_tolerated() -> None:
    hands = Hands()
    clock = hands.clock()
    for _ in range(100):
        hands.go(1, jump=-TOLERATED / 2)
        assert clock.set_back() == 0
