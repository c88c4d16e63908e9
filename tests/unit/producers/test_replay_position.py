"""Where a replay goes on when Kafka has forgotten it, against a simulation of all that replays do."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from producers.replay_position import Position, position
from schemas.dead_letter import Identity, Letter


def letter(offset: int, id_: str, attempt: int | str = 0, decision: str = "") -> Letter:
    headers = [("dl-id", id_), ("dl-attempt", str(attempt)), *([("dl-decision", decision)] if decision else [])]
    return Letter(0, offset, b"k", b"v", 1000, tuple((name, value.encode()) for name, value in headers))


def unreadable(offset: int) -> Letter:
    return Letter(0, offset, b"k", b"v", 1000, ())


@pytest.mark.parametrize(
    ("letters", "moved_through", "decided", "offset", "left"),
    [
        ([], {}, set(), 0, set()),
        ([letter(3, "a"), letter(5, "b")], {}, set(), 0, set()),  # nothing was ever moved
        ([letter(3, "a"), letter(5, "b")], {"a": 0}, set(), 4, set()),
        ([letter(3, "a"), letter(5, "b")], {"a": 0, "b": 0}, set(), 6, set()),
        ([letter(0, "a"), letter(1, "a", 1)], {"a": 0}, set(), 1, set()),  # it came back and waits
        ([letter(0, "a"), letter(1, "a", 1)], {"a": 1}, set(), 2, set()),
        ([letter(0, "a"), letter(1, "a", 1)], {}, set(), 1, set()),  # its schema was looked for in vain
        ([letter(0, "w"), letter(1, "a"), letter(2, "w")], {"a": 0}, set(), 2, set()),  # sent back to wait
        ([letter(0, "w"), letter(1, "x"), letter(2, "w")], {}, set(), 1, set()),
        ([letter(0, "b"), letter(1, "a"), letter(2, "a")], {}, set(), 2, {0}),  # two copies that the ingest sent
        ([unreadable(0), letter(1, "a"), unreadable(2)], {"a": 0}, set(), 2, set()),
        ([unreadable(0), letter(1, "a"), letter(2, "a")], {}, set(), 2, {0}),
        ([letter(0, "a", 0, "approve")], {"a": 0}, set(), 0, set()),  # what was parked is decided now
        ([letter(0, "a", 0, "approve")], {"a": 0}, {("a", "0", True)}, 1, set()),
        ([letter(0, "a", "many"), letter(1, "b")], {"b": 0}, set(), 2, set()),
    ],
)
def test_the_offset_follows_from_what_is_known_of_each_letter(
    letters: list[Letter], moved_through: dict[str, int], decided: set[Identity], offset: int, left: set[int]
) -> None:
    assert position(letters, moved_through, decided) == Position(offset, frozenset(left))


@dataclass
class Partition:
    """A partition of `.dlq`, moved as the replay moves it: in order, whole transactions, waiting ones to the end."""

    chance: random.Random
    log: list[Letter] = field(default_factory=list)
    at: int = 0
    moved: dict[str, int] = field(default_factory=dict)
    decided: set[Identity] = field(default_factory=set)
    parked: dict[str, int] = field(default_factory=dict)

    def add(self, id_: str, attempt: int, decision: str = "") -> None:
        self.log.append(letter(len(self.log), id_, attempt, decision))

    def transaction(self) -> None:
        some = self.log[self.at : self.at + self.chance.randint(1, 5)]
        fates = [self.chance.choice(["retry", "park", "wait", "look"]) for _ in some]
        while fates and fates[-1] == "wait":  # those that wait at the end stay there
            fates.pop()
        for its, fate in zip(some, fates, strict=False):
            identity = its.identity
            assert identity is not None
            id_, attempt, is_decision = identity[0], int(identity[1]), identity[2]
            if is_decision:
                self.decided.add(identity)
                self.moved[id_] = max(self.moved.get(id_, 0), attempt)
                self.parked.pop(id_, None)
                if self.chance.random() < 0.7:
                    self.add(id_, attempt + 1)
            elif fate == "retry":
                self.moved[id_] = attempt
                if self.chance.random() < 0.5:
                    self.add(id_, attempt + 1)  # rejected again
            elif fate == "park":
                self.moved[id_] = attempt
                self.parked[id_] = attempt
            else:
                self.add(id_, attempt + (fate == "look"))
        self.at += len(fates)


@pytest.mark.parametrize("seed", range(200))
def test_no_letter_is_lost_or_moved_twice_whatever_replays_did(seed: int) -> None:
    """The letters that are read from there on, with those that are sent back, are those behind the true offset, each
    once."""
    chance = random.Random(seed)
    partition = Partition(chance)
    for number in range(60):
        if chance.random() < 0.5:
            partition.add(f"id-{number}", 0)
        elif partition.parked and chance.random() < 0.3:
            id_ = chance.choice(sorted(partition.parked))
            partition.add(id_, partition.parked.pop(id_), "approve")
        else:
            partition.transaction()
    found = position(partition.log, partition.moved, partition.decided)
    assert found.offset <= partition.at, "nothing is passed over"
    again = [its for its in partition.log if its.offset >= found.offset or its.offset in found.left]
    assert sorted(its.identity or () for its in again) == sorted(
        its.identity or () for its in partition.log[partition.at :]
    )
